package ratelimit

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// maxAccounts bounds the budgets that are remembered.
const maxAccounts = 64

// keptRetry is the most that is waited for what is kept.
const keptRetry = 15 * time.Minute

// busyRetry is the RetryAfter of who waited in vain for the answer that tells
// what is left.
const busyRetry = time.Second

// budget is an account's quota, as an upstream tells it, and what is about to be
// spent of it. The last part of it is kept for those who wait themselves, for what is not held.
//
// It never refuses on its own arithmetic: with nothing left, and no word of when
// there will be more, one request at a time is let through to find out, after
// pauses that grow where it is refused; of a limit that nobody told, whoever asks.
type budget struct {
	quota   Quota
	known   bool
	dry     bool      // it was refused, and not given out since
	began   time.Time // when the running window was first seen: it ends a Window later at the latest
	pause   pause     // after a refusal that named no time
	meter   meter     // what it is spent on
	running int       // requests on their way, which the answers so far do not count
	users   int       // passes that point here
	changed chan struct{}
	used    time.Time
}

func (l *Limiter) budgetLocked(account string) *budget {
	b := l.budgets[account]
	if b == nil {
		if len(l.budgets) >= maxAccounts {
			l.forgetBudgetLocked()
		}
		b = &budget{quota: Quota{Account: account}, changed: make(chan struct{}), meter: newMeter()}
		l.budgets[account] = b
	}
	b.used = time.Now()
	return b
}

// forgetBudgetLocked drops the one unused for longest; none while all are in use.
func (l *Limiter) forgetBudgetLocked() {
	var oldest *budget
	for _, b := range l.budgets {
		if b.users == 0 && (oldest == nil || b.used.Before(oldest.used)) {
			oldest = b
		}
	}
	if oldest != nil {
		delete(l.budgets, oldest.quota.Account)
	}
}

// tell wakes those who wait for an answer.
func (b *budget) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// current reports whether what was told still holds: with the end of its window
// it does not.
func (b *budget) current(now time.Time) bool {
	return b.known && (b.quota.Resets.IsZero() || now.Before(b.quota.Resets))
}

// reserve is the part of a limit that is kept for those who wait themselves, for
// what is not held.
func (b *budget) reserve(share float64) int {
	if b.quota.Limit <= 0 || share <= 0 {
		return 0
	}
	return int(math.Ceil(share * float64(b.quota.Limit)))
}

// costs reports whether a call is to be counted, as far as is known.
func (b *budget) costs(call Call, now time.Time) bool {
	return call.Class == Pull && !b.meter.isExempt(call.Repository, now)
}

// obstacle is what stands before another counted request; nil for nothing.
// claim says that it is about to be sent.
func (b *budget) obstacle(call Call, share float64, now time.Time, claim bool) *obstacle {
	told := b.current(now) && b.quota.Left >= 0
	left := b.quota.Left - b.running
	isKept := told && b.quota.Limit > 0 && (call.Background || call.Held) && left <= b.reserve(share)
	wait := b.pause.left(now)
	switch {
	case wait > 0:
		o := b.spent(wait, now)
		if isKept { // once the pause is over, too
			o.retry = max(wait, b.keptFor(now))
		}
		return o
	case told && b.quota.Left == 0 && b.quota.Exact:
		return b.spent(b.quota.Resets.Sub(now), now)
	case isKept:
		return b.kept(share, now)
	case claim && b.running > 0 && (b.dry || told && left <= 0):
		return &obstacle{
			unsure: true, changed: b.changed, code: oci.TooManyRequests, retry: busyRetry,
			detail: "the last pulls" + b.of() + " are being spent",
		}
	}
	return nil
}

// spent says that nothing is left for a while: until the window ends, or until it is
// time to find out whether there is more.
func (b *budget) spent(wait time.Duration, now time.Time) *obstacle {
	detail := fmt.Sprintf("the pulls%s are spent", b.of())
	if b.quota.Limit > 0 && b.quota.Window > 0 {
		detail = fmt.Sprintf("the %d pulls%s in %v are spent", b.quota.Limit, b.of(), b.quota.Window)
	}
	var when string
	resets := b.quota.Resets.Sub(now).Round(time.Second)
	switch {
	case resets <= 0:
		when = fmt.Sprintf(": when there are more is not known, and found out in %v", wait.Round(time.Second))
	case b.quota.Exact:
		when = fmt.Sprintf(": there are more in %v", resets)
	default:
		when = fmt.Sprintf(": there are more in %v at the latest, and in %v it is found out whether there are before", resets, wait.Round(time.Second))
	}
	return &obstacle{wait: wait, retry: wait, code: oci.TooManyRequests, detail: detail, when: when, changed: b.changed}
}

// keptFor is how long what is kept is not asked for. It can be back before the window
// ends, and asking again costs nothing.
func (b *budget) keptFor(now time.Time) time.Duration {
	if b.quota.Resets.IsZero() {
		return keptRetry
	}
	return min(b.quota.Resets.Sub(now), keptRetry)
}

// kept refuses what the reserve is not for.
func (b *budget) kept(share float64, now time.Time) *obstacle {
	retry := b.keptFor(now)
	var cause error
	if b.quota.Left > 0 {
		cause = oci.ErrReserved
	}
	return &obstacle{
		wait: retry, retry: retry, never: true, code: oci.TooManyRequests, cause: cause,
		detail: fmt.Sprintf("%d of the %d pulls%s are left, and the last %d are kept for clients who ask for what is not held", b.quota.Left, b.quota.Limit, b.of(), b.reserve(share)),
	}
}

func (b *budget) of() string {
	if b.quota.Account == "" {
		return " of our address"
	}
	return " of " + b.quota.Account
}

// refuse notes a 429 that speaks of the quota, and returns for how long nothing
// more is asked for.
func (b *budget) refuse(retry time.Duration, now time.Time) time.Duration {
	if !b.known {
		b.quota = Quota{Account: b.quota.Account, Limit: -1}
	}
	b.known, b.dry, b.quota.Left, b.quota.Seen = true, true, 0, now
	switch {
	case retry > 0:
		b.quota.Resets, b.quota.Exact = now.Add(retry), true
	case !b.quota.Exact || !b.current(now):
		b.quota.Exact = false
		b.pause.back(now, maxQuotaBackoff, oci.TooManyRequests)
		return b.pause.left(now)
	}
	return b.quota.Resets.Sub(now)
}

// noteQuotaLocked keeps what the headers tell, or that there are none.
func (p *Pass) noteQuotaLocked(status int, quota Quota, told bool, now time.Time) {
	class := p.call.Class
	switch {
	case class != Pull && class != Check:
	case told:
		b := p.limiter.budgetLocked(p.call.Account)
		b.note(quota, p.left, now)
		b.meter.count(p.call.Repository, now)
		switch {
		case status != http.StatusOK:
		case class == Pull:
			b.pause.backoff = 0
		default:
			b.meter.heads = true
		}
	case status == http.StatusOK:
		if b := p.limiter.budgets[p.call.Account]; b != nil && b.known {
			b.noteNone(p.call, now)
		}
	}
}

// noteNone takes in an answer without a word of a quota that is known: what it is for
// costs nothing, or there is no limit any more.
func (b *budget) noteNone(call Call, now time.Time) {
	switch {
	case call.Class == Pull && b.meter.endsWith(call.Repository):
		b.known, b.dry, b.pause, b.meter = false, false, pause{}, newMeter()
	case call.Class == Pull || b.meter.heads:
		b.meter.exempt(call.Repository, now)
	default:
		return
	}
	b.tell()
}

// note takes in upstream's word, in the answer to a request that was made when
// so many were known to be left.
func (b *budget) note(q Quota, before int, now time.Time) {
	was := b.quota
	q.Account = was.Account
	isSame := b.current(now) && was.Left >= 0 && q.Left >= 0 && q.Left <= max(before, was.Left)
	if isSame { // answers overtake each other: the least is the latest
		q.Left = min(q.Left, was.Left)
	}
	if !isSame || b.began.After(now) { // that is of a clock which was set back
		b.began = now
	}
	if q.Limit < 0 {
		q.Limit = was.Limit
	}
	if q.Window == 0 {
		q.Window = was.Window
	}
	switch {
	case q.Exact:
	case was.Exact && b.current(now) && q.Left == 0:
		q.Resets, q.Exact = was.Resets, true
	case q.Window > 0:
		q.Resets = b.began.Add(q.Window)
	}
	b.quota, b.known = q, true
	if q.Left > 0 {
		b.dry, b.pause.until = false, time.Time{}
		b.tell()
	}
}

// Pauses is until when hosts are not asked, or not for all of what they have,
// since they asked us to wait. Those of accounts are with their Quotas.
func (l *Limiter) Pauses() map[string]time.Time {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]time.Time{}
	note := func(host string, p pause) {
		if p.left(now) > 0 && p.until.After(all[host]) {
			all[host] = p.until
		}
	}
	for name, h := range l.hosts {
		note(name, h.all)
		for _, class := range h.classes {
			note(name, class)
		}
	}
	return all
}

// Quotas is what upstream told, by account.
func (l *Limiter) Quotas() []Quota {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Quota
	for _, b := range l.budgets {
		if !b.known {
			continue
		}
		q := b.quota
		q.Reserve = b.reserve(l.limits.Reserve)
		if !b.current(now) {
			q.Left, q.Resets, q.Exact = -1, time.Time{}, false
		}
		if wait := b.pause.left(now); wait > 0 {
			q.Paused = b.pause.until
		}
		all = append(all, q)
	}
	slices.SortFunc(all, func(a, b Quota) int { return strings.Compare(a.Account, b.Account) })
	return all
}
