package ratelimit

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Quota is what an upstream last said of how much an account may pull.
type Quota struct {
	Account string        // empty: whoever asks from our address
	Limit   int           // pulls per Window; -1 if it was not said
	Left    int           // pulls left; -1 if it was not said, or not since the window ended
	Reserve int           // the last of them, for who waits for what is not held
	Window  time.Duration // 0 if it was not said
	Resets  time.Time     // when all of it will be there again, at the latest; zero if unknown
	Exact   bool          // Resets is upstream's word, not our bound
	Paused  time.Time     // until when no counted request is sent, to find out; zero if one may be
	Source  string        // whom upstream counts: an address or an account
	Seen    time.Time
}

// maxSource bounds what a stranger's header may add to our memory and output.
const maxSource = 128

// ReadQuota reads the headers of Docker Hub's form: "ratelimit-limit: 100;w=21600",
// "ratelimit-remaining: 20;w=21600" and "docker-ratelimit-source" (docs.docker.com,
// "Docker Hub usage and limits", pulls), and "ratelimit-reset", the seconds that
// are left of the window, of the IETF's drafts. ok is false where neither number
// is there: the upstream then sets no limit, or tells none.
func ReadQuota(h http.Header, now time.Time) (q Quota, ok bool) {
	limit, window, okLimit := readLimit(h.Get("Ratelimit-Limit"))
	left, window2, okLeft := readLimit(h.Get("Ratelimit-Remaining"))
	if !okLimit && !okLeft {
		return Quota{}, false
	}
	q = Quota{Limit: limit, Left: left, Window: max(window, window2), Source: source(h.Get("Docker-Ratelimit-Source")), Seen: now}
	if seconds, ok := count(h.Get("Ratelimit-Reset")); ok && seconds <= maxReset {
		q.Resets, q.Exact = now.Add(time.Duration(seconds)*time.Second), true
	}
	return q, true
}

// maxReset bounds the seconds of a ratelimit-reset: some send a time of day in
// its place, counted from 1970.
const maxReset = 7 * 24 * 3600

// readLimit reads "100;w=21600". Of a list ("100, 100;w=60", the form of the
// early IETF drafts) the first number counts, and the first window.
func readLimit(s string) (n int, window time.Duration, ok bool) {
	first, _, _ := strings.Cut(s, ",")
	number, _, _ := strings.Cut(first, ";")
	n, ok = count(number)
	if !ok {
		return -1, 0, false
	}
	for param := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ';' || r == ',' }) {
		if w, found := strings.CutPrefix(strings.TrimSpace(param), "w="); found {
			if seconds, ok := count(w); ok {
				return n, time.Duration(seconds) * time.Second, true
			}
		}
	}
	return n, 0, true
}

// maxCount is the largest number that a limit or a window in seconds can have.
const maxCount = 1<<31 - 1

// count reads such a number.
func count(s string) (int, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 31)
	return int(n), err == nil
}

func source(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), maxSource)]
}
