package ratelimit

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"entrepot/oci"
)

const (
	// A 429 that names no time is answered by doubling pauses between these, each
	// a little longer so that not all of us come back together.
	minBackoff      = time.Second
	maxBackoff      = time.Minute
	maxQuotaBackoff = 5 * time.Minute // for what is refilled once in hours
)

// pause is a time in which nothing is sent.
type pause struct {
	until   time.Time
	code    oci.Code
	backoff time.Duration // the last one that we chose ourselves; 0 after a success
	trial   *trial        // after one that we chose ourselves; nil: none is needed
}

// trial is the one request that goes after a pause whose length we chose ourselves:
// the others wait for what it is answered, or all would hit the same wall.
type trial struct {
	by   *Pass         // nil: nobody yet
	over chan struct{} // closed when it is
}

func newTrial() *trial { return &trial{over: make(chan struct{})} }

func (p *pause) left(now time.Time) time.Duration { return max(0, p.until.Sub(now)) }

func (p *pause) extend(until time.Time, code oci.Code) {
	if until.After(p.until) {
		p.until, p.code = until, code
	}
}

// back backs off, for longer than the last time. Answers to requests that were
// under way when a pause began do not lengthen it.
func (p *pause) back(now time.Time, most time.Duration, code oci.Code) {
	if p.left(now) > 0 {
		return
	}
	p.backoff = min(max(minBackoff, 2*p.backoff), most)
	p.extend(now.Add(min(p.backoff+rand.N(p.backoff/4), most)), code)
}

// pauseLocked is the pause of the call's host, or of its class there.
func (p *Pass) pauseLocked(now time.Time) *obstacle {
	longest := p.host.all
	if c := p.host.classes[p.call.Class]; c.until.After(longest.until) {
		longest = c
	}
	wait := longest.left(now)
	if wait == 0 {
		return nil
	}
	return &obstacle{
		wait: wait, code: longest.code, retry: wait,
		detail: p.call.Host + " asked us to wait", when: fmt.Sprintf(": the next request is in %v", wait.Round(time.Second)),
	}
}

// tryLocked makes a request that is about to be sent, with claim, the trial of its class
// if one is needed, or is the obstacle that another one is.
func (p *Pass) tryLocked(claim bool) *obstacle {
	trial := p.host.classes[p.call.Class].trial
	switch {
	case trial == nil:
	case trial.by != nil:
		return &obstacle{
			unsure: true, changed: trial.over, code: oci.TooManyRequests, retry: busyRetry,
			detail: p.call.Host + " refused us for a while: whether it still does is being found out",
		}
	case claim:
		trial.by = p
	}
	return nil
}

// triedLocked ends the trial that a request is: if it was not answered another one is.
func (p *Pass) triedLocked(answered bool) {
	class := &p.host.classes[p.call.Class]
	if class.trial == nil || class.trial.by != p {
		return
	}
	close(class.trial.over)
	class.trial = nil
	if !answered {
		class.trial = newTrial()
	}
}

// answeredLocked notes what an answer says about the requests to come.
//
// What a refusal pauses depends on its form. Docker Hub's 429 for a spent quota
// is JSON with the code TOOMANYREQUESTS (or, to a HEAD, shows nothing left): it
// concerns the account and the class that was refused, since HEADs and blobs are
// not counted. Its 429 for abuse is plain text with a Retry-After, and concerns
// the host. A 503 with a Retry-After is the word of what was asked for, so it
// pauses nothing here: what it returns is for the breakers.
//
// A probe pauses no others like it, which are for another outage, and its host for
// maxBackoff at most: it goes out without credentials, and who has some may be let in.
func (p *Pass) answeredLocked(status int, header http.Header, body []byte, now time.Time) time.Duration {
	p.triedLocked(true)
	quota, told := ReadQuota(header, now)
	p.noteQuotaLocked(status, quota, told, now)
	class := &p.host.classes[p.call.Class]
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		if status < http.StatusInternalServerError {
			class.backoff = 0
		}
		return 0
	}
	refusal := oci.ReadError(status, header, body, oci.NotFound, now)
	wait := refusal.RetryAfter // oci.MaxRetryAfter at most
	isProbe := p.call.Class == Probe
	isQuota := status == http.StatusTooManyRequests && (told && quota.Left == 0 || isQuotaRefusal(body))
	switch {
	case status == http.StatusServiceUnavailable:
		return wait
	case isQuota && p.budget != nil:
		p.budget.meter.count(p.call.Repository, now)
		return p.budget.refuse(wait, now)
	case wait > 0 && !isQuota && isProbe:
		p.host.all.extend(now.Add(min(wait, maxBackoff)), refusal.Code)
	case wait > 0 && !isQuota:
		p.host.all.extend(now.Add(wait), refusal.Code)
	case isProbe:
	case wait > 0:
		class.extend(now.Add(wait), refusal.Code)
	default:
		class.back(now, maxBackoff, refusal.Code)
		if class.trial == nil {
			class.trial = newTrial()
		}
	}
	return max(p.host.all.left(now), class.left(now))
}

// isQuotaRefusal reports whether body is the JSON form of a 429.
func isQuotaRefusal(body []byte) bool {
	var w struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	return json.Unmarshal(body, &w) == nil && len(w.Errors) > 0 && w.Errors[0].Code == oci.TooManyRequests.String()
}
