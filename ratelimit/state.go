package ratelimit

import (
	"cmp"
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
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now() // with the lock, or what is answered meanwhile is of the future
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
	s.bound()
	return s
}

// bound cuts off what there is no room for.
func (s *State) bound() {
	s.Quotas = s.Quotas[:min(len(s.Quotas), maxAccounts)]
	s.Pauses = s.Pauses[:min(len(s.Pauses), maxPauses)]
}

func (b *budget) keep() KeptQuota {
	k := KeptQuota{
		Account: b.quota.Account, Limit: b.quota.Limit, Left: b.quota.Left, Window: seconds(b.quota.Window),
		Began: b.began, Resets: b.quota.Resets, Exact: b.quota.Exact, Source: b.quota.Source, Seen: b.quota.Seen,
		Dry: b.dry, Heads: b.meter.heads, Until: b.pause.until, Backoff: seconds(b.pause.backoff),
	}
	k.Began, k.Resets = earlier(k.Began, k.Seen), earlier(k.Resets, k.latest())
	return k
}

// earlier compares as what is kept is compared, by the wall's clock, though that was set
// back in between.
func earlier(a, b time.Time) time.Time {
	if a.Round(0).After(b.Round(0)) {
		return b
	}
	return a
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

// Sift leaves out of a State what no Limiter can have had. The error, of the first that
// it left out, says why.
func (s *State) Sift() (err error) {
	if len(s.Quotas) > maxAccounts || len(s.Pauses) > maxPauses {
		err = fmt.Errorf("it has %d quotas and %d pauses, and room for %d and %d", len(s.Quotas), len(s.Pauses), maxAccounts, maxPauses)
		s.bound()
	}
	s.Quotas = slices.DeleteFunc(s.Quotas, func(k KeptQuota) bool {
		if !k.isPossible() {
			err = cmp.Or(err, fmt.Errorf("the quota of %.40q is impossible", k.Account))
			return true
		}
		return false
	})
	s.Pauses = slices.DeleteFunc(s.Pauses, func(k KeptPause) bool {
		if !k.isPossible() {
			err = cmp.Or(err, fmt.Errorf("the pause of %.40q is impossible", k.Host))
			return true
		}
		return false
	})
	return err
}

// latest is when a quota resets at the latest, by what upstreams can tell of that: the
// moment, or a window.
func (k *KeptQuota) latest() time.Time {
	longest := int64(maxReset)
	if !k.Exact {
		longest = max(longest, k.Window)
	}
	return k.Seen.Add(time.Duration(longest) * time.Second)
}

func (k *KeptQuota) isPossible() bool {
	switch {
	case k.Limit < -1 || k.Left < -1 || k.Window < 0 || k.Window > maxCount || k.Backoff < 0 || k.Backoff > seconds(maxQuotaBackoff):
		return false
	case k.Began.After(k.Seen) || k.Resets.After(k.latest()):
		return false
	}
	return len(k.Account) <= maxKeptName
}

func (k *KeptPause) isPossible() bool {
	isOfHost := k.Host != "" && len(k.Host) <= maxKeptName
	isOfClass := k.Class == "" || slices.Contains(keptClasses[:], k.Class)
	return isOfHost && isOfClass && k.Backoff >= 0 && k.Backoff <= seconds(maxBackoff)
}

// Restore takes over what is still true of a State that has passed Sift, into a
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
