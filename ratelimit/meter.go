package ratelimit

import "time"

const (
	// exemptFor is how long a repository counts as one that costs nothing: longer than
	// it takes to pull what a check was for, with all that its index lists.
	exemptFor = 10 * time.Minute
	// maxMetered bounds the repositories that are remembered of an account.
	maxMetered = 256
	// manyWithout is how many repositories, one after the other, have to be given out
	// without a word of the quota until there is none any more. Before that only those
	// would be refused wrongly that no HEAD exempts.
	manyWithout = 8
)

// meter remembers what an account's quota, which is known, is spent on. Docker Hub
// counts no pulls of some repositories: headers tell of the quota beside all others,
// and not beside those.
type meter struct {
	heads   bool                // an answer to HEAD has told of the quota: one that does not is a word, too
	known   map[string]metered  // by repository
	without map[string]struct{} // repositories given out without a word since any had one
}

type metered struct {
	counted bool      // an answer told of the quota
	exempt  time.Time // none has until then
	seen    time.Time
}

func newMeter() meter {
	return meter{known: map[string]metered{}, without: map[string]struct{}{}}
}

// count notes that pulls of a repository cost something.
func (m *meter) count(repository string, now time.Time) {
	clear(m.without)
	m.put(repository, metered{counted: true, seen: now})
}

// exempt notes that they do not.
func (m *meter) exempt(repository string, now time.Time) {
	m.put(repository, metered{m.known[repository].counted, now.Add(exemptFor), now})
}

func (m *meter) isExempt(repository string, now time.Time) bool {
	return now.Before(m.known[repository].exempt)
}

// endsWith reports whether a manifest that is given out without a word means that
// there is no quota any more: it was counted before, or the last of many.
func (m *meter) endsWith(repository string) bool {
	m.without[repository] = struct{}{}
	return m.known[repository].counted || len(m.without) >= manyWithout
}

// put remembers a repository, in the place of the one heard of longest ago if there
// are too many.
func (m *meter) put(repository string, is metered) {
	if _, ok := m.known[repository]; !ok && len(m.known) >= maxMetered {
		var oldest string
		for name, one := range m.known {
			if o, ok := m.known[oldest]; !ok || one.seen.Before(o.seen) {
				oldest = name
			}
		}
		delete(m.known, oldest)
	}
	m.known[repository] = is
}
