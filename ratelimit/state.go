package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"entrepot/oci"
)

// State is what an upstream said of how much it may be asked, in the form in which the
// next process is told: advice, of which nothing is secret.
type State struct {
	Quotas []KeptQuota `json:"quotas,omitempty"` // by account
	Pauses []KeptPause `json:"pauses,omitempty"` // by host and class
}

// KeptQuota is an account's Quota, and how far we are with finding out whether there is
// more of it.
type KeptQuota struct {
	Account string    `json:"account"`
	Limit   int       `json:"limit"`
	Left    int       `json:"left"`
	Window  int64     `json:"window,omitempty"` // seconds
	Began   time.Time `json:"began,omitzero"`
	Resets  time.Time `json:"resets,omitzero"`
	Exact   bool      `json:"exact,omitempty"`
	Source  string    `json:"source,omitempty"`
	Seen    time.Time `json:"seen"`
	Dry     bool      `json:"dry,omitempty"`
	Heads   bool      `json:"heads,omitempty"`
	Until   time.Time `json:"until,omitzero"`    // of its pause
	Backoff int64     `json:"backoff,omitempty"` // seconds
}

// KeptPause is a pause of a host.
type KeptPause struct {
	Host    string    `json:"host"`
	Class   string    `json:"class,omitempty"` // empty: all
	Until   time.Time `json:"until"`
	Backoff int64     `json:"backoff,omitempty"` // seconds
}

const (
	maxPauses   = 256 // of a State
	maxKeptName = 512 // bytes of a name in it

	// quotaLife is how long a quota is believed whose end nobody told.
	quotaLife = oci.MaxRetryAfter
)

// keptClasses names the classes that can have a pause of their own.
var keptClasses = [numClasses]string{Pull: "pull", Check: "check", Blob: "blob", List: "list", Token: "token", Redirect: "redirect"}

// State is what holds now.
func (l *Limiter) State() State {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var s State
	for _, b := range l.budgets {
		if k := b.keep(); b.known && k.holds(now) {
			s.Quotas = append(s.Quotas, k)
		}
	}
	for name, h := range l.hosts {
		s.Pauses = append(s.Pauses, h.keep(name, now)...)
	}
	slices.SortFunc(s.Quotas, func(a, b KeptQuota) int { return cmp.Compare(a.Account, b.Account) })
	slices.SortFunc(s.Pauses, func(a, b KeptPause) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Class, b.Class))
	})
	s.Pauses = s.Pauses[:min(len(s.Pauses), maxPauses)]
	return s
}

func (b *budget) keep() KeptQuota {
	return KeptQuota{
		Account: b.quota.Account, Limit: b.quota.Limit, Left: b.quota.Left, Window: seconds(b.quota.Window),
		Began: b.began, Resets: b.quota.Resets, Exact: b.quota.Exact, Source: b.quota.Source, Seen: b.quota.Seen,
		Dry: b.dry, Heads: b.meter.heads, Until: b.pause.until, Backoff: seconds(b.pause.backoff),
	}
}

func (h *host) keep(name string, now time.Time) (all []KeptPause) {
	add := func(class string, p pause) {
		if p.left(now) > 0 {
			all = append(all, KeptPause{name, class, p.until, seconds(p.backoff)})
		}
	}
	add("", h.all)
	for class, name := range keptClasses {
		if name != "" {
			add(name, h.classes[class])
		}
	}
	return all
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// holds reports whether a quota has neither reset nor, as its clock was another, been
// seen in the future.
func (k *KeptQuota) holds(now time.Time) bool {
	switch {
	case k.Seen.After(now), k.Until.After(now.Add(maxQuotaBackoff)):
		return false
	case k.Until.After(now):
		return true
	case k.Resets.IsZero():
		return now.Sub(k.Seen) < quotaLife
	}
	return now.Before(k.Resets)
}

// holds reports whether a pause is not over, and no longer than one can be.
func (k *KeptPause) holds(now time.Time) bool {
	return k.Until.After(now) && !k.Until.After(now.Add(oci.MaxRetryAfter))
}

// Check refuses a State that no Limiter can have had.
func (s *State) Check() error {
	if len(s.Quotas) > maxAccounts || len(s.Pauses) > maxPauses {
		return fmt.Errorf("it has %d quotas and %d pauses, and room for %d and %d", len(s.Quotas), len(s.Pauses), maxAccounts, maxPauses)
	}
	for _, k := range s.Quotas {
		if k.Limit < -1 || k.Left < -1 || k.Window < 0 || k.Window > maxCount || k.Backoff < 0 || k.Backoff > seconds(maxQuotaBackoff) {
			return fmt.Errorf("the quota of %.40q is impossible", k.Account)
		}
		if k.Began.After(k.Seen) || len(k.Account) > maxKeptName {
			return fmt.Errorf("the quota of %.40q is impossible", k.Account)
		}
	}
	for _, k := range s.Pauses {
		switch {
		case k.Host == "" || len(k.Host) > maxKeptName:
			return errors.New("a pause is of no host")
		case k.Class != "" && !slices.Contains(keptClasses[:], k.Class), k.Backoff < 0, k.Backoff > seconds(maxBackoff):
			return fmt.Errorf("the pause of %.40q is impossible", k.Host)
		}
	}
	return nil
}

// Restore takes over what is still true of a State that has passed Check, into a
// Limiter that was not asked yet.
func (l *Limiter) Restore(s State) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range s.Quotas {
		if k.holds(now) {
			l.budgetLocked(k.Account).restore(k)
		}
	}
	for _, k := range s.Pauses {
		if k.holds(now) {
			l.hostLocked(k.Host).restore(k)
		}
	}
}

func (b *budget) restore(k KeptQuota) {
	b.quota = Quota{
		Account: k.Account, Limit: k.Limit, Left: k.Left, Window: time.Duration(k.Window) * time.Second,
		Resets: k.Resets, Exact: k.Exact, Source: source(k.Source), Seen: k.Seen,
	}
	b.known, b.dry, b.began, b.meter.heads = true, k.Dry, k.Began, k.Heads
	b.pause = pause{until: k.Until, code: oci.TooManyRequests, backoff: time.Duration(k.Backoff) * time.Second}
}

func (h *host) restore(k KeptPause) {
	p := pause{until: k.Until, code: oci.TooManyRequests, backoff: time.Duration(k.Backoff) * time.Second}
	if k.Class == "" {
		h.all = p
		return
	}
	h.classes[slices.Index(keptClasses[:], k.Class)] = p
}
