package cache

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/oci"
	"entrepot/store"
)

var update = flag.Bool("update", false, "write testdata/ladder.txt anew")

// What a row of the ladder is called. One without a name has no row, and fails.
var (
	kindNames    = [numKinds]string{"tag", "digest", "head", "tags", "referrers"}
	holdingNames = [numHoldings]string{"nothing", "known", "unproven", "whole"}
	saidNames    = [numSaid]string{
		"not asked yet", "offline", "the same", "moved or new", "moved, not here", "moved, not to be had", "404", "401 to a good login", "401, 403", "429", "no such API", "astray", "of no use", "trouble", "slow",
	}
)

// exists reports whether there is such a case: names and lists are held or not, and
// bytes are of digests; no list is fresh, so that it is never found the same.
func exists(c Case) bool {
	whole := c.Kind == TagKind || c.Kind == TagsKind || c.Kind == ReferrersKind
	switch {
	case whole && (c.Held == Known || c.Held == Unproven), c.Kind == DigestKind && c.Held == Known:
		return false
	case c.Said == Moved, c.Said == Unfetched:
		return c.Kind == TagKind
	case c.Said == Confirmed:
		return c.Held != Nothing && c.Kind != TagsKind && c.Kind != ReferrersKind
	}
	return true
}

// wasSaid reports what can be remembered: that a question failed.
func wasSaid(s Said) bool { return s > Moved && s != Slow }

var (
	testLadder   = Ladder{CheckWait: 2 * time.Second, Pause: 30 * time.Second, Remember: 10 * time.Second, Astray: 5 * time.Minute}
	strictLadder = Ladder{CheckWait: 2 * time.Second, Pause: 30 * time.Second, Remember: 10 * time.Second, Astray: 5 * time.Minute, DropDeleted: true}
)

func (r Rung) String() string {
	text := [...]string{"theirs", "ours", "error", "ask", "confirm", "fetch", "fallback tag"}[r.Serve]
	if r.Mark != "" {
		text += " as " + string(r.Mark)
	}
	if (r.Serve == Ask || r.Serve == Confirm) && r.Wait >= 0 {
		text += " for " + r.Wait.String()
	}
	if r.Behind {
		text += ", goes on behind"
	}
	if r.Again > 0 {
		text += ", again in " + r.Again.String()
	}
	if r.Grows {
		text += ", then later and later"
	}
	return text + [...]string{"", ", put", ", drop"}[r.Record]
}

// TestLadder is all of it, as a table that people read: what upstream said, by what
// is asked for and what is held, of which a tag is older than its TTL.
func TestLadder(t *testing.T) {
	var table strings.Builder
	row := func(cells ...string) {
		fmt.Fprintf(&table, "%-10s| %-9s| %-20s| %-42s| %-42s| %-42s| %-30s| %s\n", cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6], cells[7])
	}
	row("asked for", "held", "upstream says", "so", "told to come in 5 min", "deleted is deleted", "remembered", "remembered, forced")
	for k, kind := range kindNames {
		for h, held := range holdingNames {
			for s, said := range saidNames {
				if kind == "" || held == "" || said == "" {
					t.Fatalf("kind %d, holding %d or answer %d has no name", k, h, s)
				}
				c := Case{Kind: Kind(k), Held: Holding(h), Said: Said(s), Age: time.Hour, TTL: time.Minute}
				if !exists(c) {
					continue
				}
				cells := []string{kind, held, said, testLadder.Climb(c).String(), "", strictLadder.Climb(c).String(), "", ""}
				told, remembered := c, c
				told.Retry, remembered.Remembered = 5*time.Minute, true
				cells[4] = testLadder.Climb(told).String()
				if wasSaid(c.Said) {
					cells[6] = testLadder.Climb(remembered).String()
					remembered.Forced = true
					cells[7] = testLadder.Climb(remembered).String()
				}
				for _, i := range []int{4, 5} {
					if cells[i] == cells[3] {
						cells[i] = "likewise"
					}
				}
				row(cells...)
			}
		}
	}
	const golden = "testdata/ladder.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(table.String(), "\n")); diff != "" {
		t.Errorf("the table is another (-want +got):\n%s", diff)
	}
}

// eachCase visits the product of all that an answer depends on.
func eachCase(visit func(Ladder, Case)) {
	yesno := []bool{false, true}
	for k := range numKinds {
		for h := range numHoldings {
			for s := range numSaid {
				for _, age := range []time.Duration{0, time.Minute - 1, time.Minute, -time.Hour} {
					for _, ttl := range []time.Duration{0, time.Minute, Never} {
						for _, retry := range []time.Duration{0, 5 * time.Minute, 9000 * time.Hour} {
							for bits := range 32 {
								for _, l := range []Ladder{testLadder, strictLadder} {
									c := Case{
										Kind: k, Held: h, Said: s, Age: age, TTL: ttl, Retry: retry, Forced: yesno[bits&1],
										Background: yesno[bits>>1&1], Mute: yesno[bits>>2&1], Remembered: yesno[bits>>3&1], Doubted: yesno[bits>>4&1],
									}
									if exists(c) && (!c.Remembered || wasSaid(s)) {
										visit(l, c)
									}
								}
							}
						}
					}
				}
			}
		}
	}
}

// TestLadderKeepsItsPromises: what holds of every case there is.
func TestLadderKeepsItsPromises(t *testing.T) {
	failed := map[string]bool{}
	eachCase(func(l Ladder, c Case) {
		r := l.Climb(c)
		asks, serves := r.Serve == Ask || r.Serve == Confirm, r.Serve == Theirs || r.Serve == Ours
		isDigest, isName := c.Kind == DigestKind || c.Kind == HeadKind, c.Kind == TagKind
		fresh := isName && c.Held == Whole && !c.Forced && (c.TTL == Never || c.Age >= 0 && c.Age < c.TTL)
		here := Rung{Serve: Ours, Mark: oci.Hit}
		if fresh && c.Doubted {
			here.Mark = oci.Stale
		}
		isFailure := c.Said > Moved
		deleted := l.DropDeleted && (c.Said == Gone || c.Said == Hidden)
		for promise, kept := range map[string]bool{
			"an answer has a mark, nothing else has":           serves == (r.Mark != ""),
			"who is offline asks nobody":                       c.Said != Offline || !asks,
			"who was answered asks nobody":                     c.Said <= Offline || c.Remembered || !asks,
			"what was not answered is asked, or held":          c.Said != Unasked || asks || r == here,
			"a held digest needs no upstream":                  !isDigest || c.Held != Whole || c.Said == Confirmed || c.Said == Changed || r == Rung{Serve: Ours, Mark: oci.Hit},
			"a fresh tag needs no upstream":                    !fresh || c.Said != Unasked && !c.Remembered || r == here || c.Said == Offline,
			"a tag that is not is asked for":                   !isName || fresh || c.Said != Unasked || asks,
			"trouble takes away nothing":                       c.Held != Whole || !isFailure || deleted && !isDigest || c.Remembered && c.Forced || r.Serve == Ours || r.Serve == Fallback,
			"what is held is served as stale":                  isDigest || r.Serve != Ours || c.Said == Unasked || c.Said == Offline || fresh && c.Remembered || r.Mark == oci.Stale,
			"a tag that cannot be had is served as it was":     !isName || !c.Doubted || c.Forced || c.Held != Whole || c.Said != Confirmed || r == Rung{Serve: Ours, Mark: oci.Stale, Record: Put},
			"what is not held is not served":                   r.Serve != Ours || c.Held == Whole || c.Kind == HeadKind && c.Held == Known || c.Held == Unproven && c.Said == Confirmed,
			"only what is deleted is forgotten, by policy":     (r.Record == Drop) == ((isName || c.Kind == ReferrersKind) && c.Held == Whole && deleted && !c.Remembered),
			"what upstream has goes on record, nothing else":   (r.Record == Put) == (c.Said == Confirmed || c.Said == Changed || c.Said == Moved && c.Held == Nothing),
			"what is held is given up for what is here":        (r.Serve == Fetch) == (c.Said == Moved && c.Held == Whole),
			"no time is longer than an hour":                   r.Again <= time.Hour,
			"a time that is told is kept to, for what is held": c.Remembered || c.Said == Slow || c.Background || r.Mark != oci.Stale || c.Said <= Confirmed || r.Again == min(max(30*time.Second, c.Retry), time.Hour),
			"a pause is not made longer by who meets it":       !c.Remembered || r.Again == 0 || r.Serve == Fallback,
			"trouble is not remembered for who has nothing":    c.Held == Whole || r.Again == 0 || r.Serve == Fallback || c.Said.isFinal() || c.Said == Astray || c.Said == Spoilt,
			"the background's limits are its own":              !c.Background || c.Said != Limited && c.Said != Unfetched || r.Again == 0,
			"who wants upstream's word waits for it":           !asks || !c.Forced || r.Wait < 0,
			"who holds nothing waits for it":                   !asks || c.Held == Whole || r.Wait < 0,
			"a mute upstream is not waited for":                !asks || c.Held != Whole || c.Forced || c.Mute == (r.Wait == 0),
			"who does not wait leaves the check behind":        r.Behind == (c.Said == Slow && c.Held == Whole && !isDigest),
			"bytes that are here are not fetched":              !asks || (r.Serve == Confirm) == (c.Held == Unproven),
		} {
			if !kept && !failed[promise] {
				failed[promise] = true
				t.Errorf("%s: %+v: %s", promise, c, r)
			}
		}
	})
}

func TestEveryErrorHasAPlaceOnTheLadder(t *testing.T) {
	for _, row := range []struct {
		err  error
		want Said
	}{
		{oci.ErrManifestUnknown, Gone},
		{oci.ErrBlobUnknown, Gone},
		{oci.ErrNameUnknown, Gone},
		{oci.ErrDenied, Refused},
		{&oci.Error{Code: oci.Denied, Err: oci.ErrHidden}, Hidden},
		{&oci.Error{Code: oci.Unauthorized}, Refused},
		{oci.ErrTooManyRequests, Limited},
		{fmt.Errorf("%w: %w", errUnfetched, oci.ErrTooManyRequests), Unfetched},
		{fmt.Errorf("%w: %w", errUnfetched, oci.ErrManifestUnknown), Unfetched},
		{fmt.Errorf("fill: %w", store.ErrMismatch), Astray},
		{fmt.Errorf("%w: %w", store.ErrMismatch, store.ErrAltered), Trouble},
		{&oci.Error{Code: oci.Denied, Err: oci.ErrAstray}, Astray},
		{fmt.Errorf("%w: %w", oci.ErrSpoilt, io.ErrUnexpectedEOF), Spoilt},
		{oci.ErrUnavailable, Trouble},
		{&oci.Error{Code: oci.BadUpstream}, Trouble},
		{&oci.Error{Code: oci.Timeout}, Trouble},
		{oci.ErrUnsupported, NoAPI},
		{errors.New("connection reset by peer"), Trouble},
	} {
		if got := saidBy(row.err); got != row.want {
			t.Errorf("%v: %d, want %d", row.err, got, row.want)
		}
	}
}

func TestTagsHaveTheTTLOfTheirRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "latest", pattern(1, 10))
		s.pushImage(alpine, "3.20", pattern(2, 10))
		s.pushImage(alpine, "pinned", pattern(3, 10))
		s.pushImage(alpine, "edge", pattern(4, 10))
		c := newCache(t, s, Config{TTL: 5 * time.Minute, Rules: []Rule{
			{"*:latest", time.Minute}, {"docker.io/*:[0-9]*", 24 * time.Hour}, {"*:pinned", Never},
		}})
		defer closeCache(t, c)
		asked := map[string]int{}
		for range 2 * 24 * 60 { // a pull of each every minute, for two days
			for _, tag := range []string{"latest", "3.20", "pinned", "edge"} {
				if _, _, err := c.Resolve(t.Context(), alpine, tag, oci.Ask{}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Minute)
		}
		for _, q := range s.questions() {
			asked[q[strings.LastIndexByte(q, ' ')+1:]]++
			if !strings.HasPrefix(q, "HEAD ") {
				t.Errorf("a check cost more than a HEAD: %s", q)
			}
		}
		for tag, most := range map[string]int{"latest": 2880, "3.20": 2, "pinned": 1, "edge": 576} {
			if asked[tag] != most {
				t.Errorf("%s was checked %d times in two days, want %d", tag, asked[tag], most)
			}
		}
	})
}

func TestNegativeAnswersAreRememberedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		missing := oci.Sum([]byte("missing"))
		ask := func() {
			t.Helper()
			_, _, err := c.Resolve(t.Context(), alpine, "missing", oci.Ask{})
			wantCode(t, err, oci.ManifestUnknown)
			_, _, err = c.Manifest(t.Context(), alpine, missing, oci.Ask{})
			wantCode(t, err, oci.ManifestUnknown)
			_, _, err = read(t.Context(), c, alpine, missing, 0, -1)
			wantCode(t, err, oci.BlobUnknown)
		}
		for range 10 {
			ask()
			synctest.Wait()
		}
		if n := len(s.questions()); n != 3 {
			t.Errorf("ten askers cost %d questions, want 3: %q", n, s.questions())
		}
		c.Forget()
		ask()
		if n := len(s.questions()); n != 6 {
			t.Errorf("after Forget: %d questions, want 6", n)
		}
		time.Sleep(31 * time.Second)
		s.pushImage(alpine, "missing", pattern(1, 10))
		if _, _, err := c.Resolve(t.Context(), alpine, "missing", oci.Ask{}); err != nil {
			t.Errorf("once it is there: %v", err)
		}
	})
}

// A refusal is one credential's: with another the question is asked at once.
func TestChangedCredentialForgetsItsRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.down = &oci.Error{Code: oci.Denied}
		login := "old"
		c := newCache(t, s, Config{Remember: time.Hour, Login: func(context.Context, oci.Repository) string { return login }})
		defer closeCache(t, c)
		missing := oci.Sum([]byte("missing"))
		ask := func(want int) {
			t.Helper()
			for range 3 {
				_, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
				wantCode(t, err, oci.Denied)
				_, _, err = c.Manifest(t.Context(), alpine, missing, oci.Ask{})
				wantCode(t, err, oci.Denied)
				_, _, err = read(t.Context(), c, alpine, missing, 0, -1)
				wantCode(t, err, oci.Denied)
				_, _, err = c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{})
				wantCode(t, err, oci.Denied)
				_, _, err = c.Referrers(t.Context(), alpine, missing, "", oci.Ask{})
				wantCode(t, err, oci.Denied)
				synctest.Wait()
			}
			if n := len(s.questions()); n != want {
				t.Errorf("with the %s login %d questions were asked in all, want %d: %q", login, n, want, s.questions())
			}
		}
		ask(5)
		login = "new"
		ask(10)
	})
}

// A limit is not the cache's to remember for who has nothing: how long it still
// lasts, and for whom, upstream knows, and tells without asking.
func TestALimitIsToldByUpstreamAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "held", pattern(1, 10))
		s.pushImage(alpine, "new", pattern(2, 10))
		login := "old"
		c := newCache(t, s, Config{TTL: time.Minute, Login: func(context.Context, oci.Repository) string { return login }})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "held"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for _, left := range []time.Duration{time.Hour, time.Minute} {
			s.set(func() { s.down = &oci.Error{Code: oci.TooManyRequests, RetryAfter: left} })
			_, _, err := c.Resolve(t.Context(), alpine, "new", oci.Ask{})
			if oci.CodeOf(err) != oci.TooManyRequests || oci.RetryAfter(err) != left {
				t.Errorf("%v, come again in %v, want what upstream says now: %v", err, oci.RetryAfter(err), left)
			}
			if _, out, err := c.Resolve(t.Context(), alpine, "held", oci.Ask{}); err != nil || out.Cache != oci.Stale {
				t.Errorf("what is held: %s %v, want stale", out.Cache, err)
			}
		}
		s.set(func() { s.down = nil })
		if _, _, err := c.Resolve(t.Context(), alpine, "new", oci.Ask{}); err != nil {
			t.Errorf("after the limit: %v", err)
		}
		if _, out, _ := c.Resolve(t.Context(), alpine, "held", oci.Ask{}); out.Cache != oci.Stale {
			t.Errorf("what is held is checked again before its time: %s", out.Cache)
		}
		login = "new"
		if _, out, _ := c.Resolve(t.Context(), alpine, "held", oci.Ask{}); out.Cache != oci.Hit {
			t.Errorf("with another account, what is held is a %s, want a check", out.Cache)
		}
	})
}

// TestReferrersWhileOurLoginIsRefused: a registry that hides a repository from nobody
// seems to have no referrers API for it, and no tag. Nothing is told of that, and what
// was known before is served; the API is asked again soon, or by another login.
func TestReferrersWhileOurLoginIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		held := oci.Sum([]byte("held"))
		login := "good"
		c := newCache(t, s, Config{DropDeleted: map[string]bool{alpine.Host: true}, Login: func(context.Context, oci.Repository) string { return login }})
		defer closeCache(t, c)
		list := func(d oci.Digest) (int, oci.Outcome, error) {
			list, out, err := c.Referrers(t.Context(), alpine, d, "", oci.Ask{})
			return len(list.Manifests), out, err
		}
		if n, _, err := list(held); n != 1 || err != nil {
			t.Fatalf("%d referrers, %v", n, err)
		}
		refuse := func(is bool) { s.set(func() { s.nobody, s.noAPI = is, is }) }
		for _, mended := range []struct {
			how  string
			mend func()
		}{
			{"over there", func() { time.Sleep(time.Minute) }},
			{"here", func() { login = "better" }},
		} {
			other := oci.Sum([]byte(mended.how))
			refuse(true)
			if n, out, err := list(held); n != 1 || err != nil || out.Cache != oci.Stale {
				t.Errorf("what was known: %d referrers, %s, %v", n, out.Cache, err)
			}
			if n, _, err := list(other); n != 0 || oci.CodeOf(err) != oci.Denied {
				t.Errorf("what was not: %d referrers, %v", n, err)
			}
			refuse(false)
			mended.mend()
			if n, _, err := list(other); n != 1 || err != nil {
				t.Errorf("after the login was put right %s: %d referrers, %v", mended.how, n, err)
			}
		}
	})
}

// TestListsStandOnTheLadder: a list that is held is served while upstream cannot
// say, and upstream is not asked again for a while.
func TestListsStandOnTheLadder(t *testing.T) {
	subject := oci.Sum([]byte("subject"))
	for _, tc := range []struct {
		name string
		err  error
	}{
		{"down", errDown},
		{"limited", &oci.Error{Code: oci.TooManyRequests}},
		{"denied", &oci.Error{Code: oci.Denied}},
		{"deleted", oci.ErrNameUnknown},
		{"corrupt", &oci.Error{Code: oci.BadUpstream}},
		{"slow", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				s.pushImage(alpine, "latest", pattern(1, 10))
				s.pushManifest(alpine, subject.FallbackTag(), []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"`+subject.String()+`"}]}`), "application/vnd.oci.image.index.v1+json")
				c := newCache(t, s, Config{TTL: 24 * time.Hour})
				defer closeCache(t, c)
				for _, tag := range []string{"latest", subject.FallbackTag()} {
					if _, err := pull(t.Context(), c, alpine, tag); err != nil {
						t.Fatal(err)
					}
				}
				s.set(func() { s.down, s.asked = tc.err, nil })
				if tc.err == nil {
					s.set(func() { s.delay = 50 * time.Second })
				}
				for range 5 {
					list, out, err := c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{})
					if err != nil || out.Cache != oci.Stale || len(list.Tags) != 2 {
						t.Fatalf("tags: %q %s %v, want both that are held, as stale", list.Tags, out.Cache, err)
					}
					refs, out, err := c.Referrers(t.Context(), alpine, subject, "", oci.Ask{})
					if err != nil || out.Cache != oci.Stale || len(refs.Manifests) != 1 {
						t.Fatalf("referrers: %v %s %v, want the one that is held, as stale", refs, out.Cache, err)
					}
				}
				synctest.Wait() // for those that nobody waits for
				if n := len(s.questions()); n != 2 {
					t.Errorf("upstream was asked %q, want each list once", s.questions())
				}
			})
		})
	}
}

// TestReferrersOfAnAPIOutliveAnOutage: the last answer is served while upstream
// cannot give another, in bounded memory.
func TestReferrersOfAnAPIOutliveAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		c := newCache(t, s, Config{})
		defer closeCache(t, c)
		subject := oci.Sum([]byte("subject"))
		ask := func(d oci.Digest, want oci.CacheStatus) {
			t.Helper()
			refs, out, err := c.Referrers(t.Context(), alpine, d, "", oci.Ask{})
			if err != nil || out.Cache != want || len(refs.Manifests) != 1 || refs.Manifests[0].Digest != d {
				t.Errorf("%v %s %v, want the one, as %s", refs.Manifests, out.Cache, err, want)
			}
		}
		ask(subject, oci.Miss)
		s.set(func() { s.down, s.asked = errDown, nil })
		for range 5 {
			ask(subject, oci.Stale)
		}
		wantAsked(t, s, "GET library/alpine referrers "+subject.String())
		_, _, err := c.Referrers(t.Context(), alpine, oci.Sum([]byte("other")), "", oci.Ask{})
		wantCode(t, err, oci.CodeOf(errDown))
		s.set(func() { s.down = nil })
		time.Sleep(time.Minute)
		ask(subject, oci.Miss)
		for i := range 60_000 {
			c.kept.put(strconv.Itoa(i), oci.ReferrerList{})
		}
		if c.kept.lists.weight > maxWeighed || len(c.kept.lists.items) > maxWeighed/200 {
			t.Errorf("%d bytes in %d lists are kept", c.kept.lists.weight, len(c.kept.lists.items))
		}
	})
}

// TestReferrersOfWhatIsDeletedArePolicy: what an API told of a repository outlives
// what upstream says of its deletion, whichever question that answers, or it does
// not, in the next outage either. What it told of others does in any case.
func TestReferrersOfWhatIsDeletedArePolicy(t *testing.T) {
	subject := oci.Sum([]byte("subject"))
	edge := oci.Repository{Host: alpine.Host, Path: alpine.Path + "-edge"}
	referrers := func(t *testing.T, c *Cache, repo oci.Repository) (int, oci.CacheStatus) {
		t.Helper()
		list, out, _ := c.Referrers(t.Context(), repo, subject, "", oci.Ask{})
		return len(list.Manifests), out.Cache
	}
	tag := func(t *testing.T, c *Cache) {
		t.Helper()
		_, _, _ = c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
	}
	list := func(t *testing.T, c *Cache) { t.Helper(); referrers(t, c, alpine) }
	for _, tc := range []struct {
		name   string
		delete func(*source)
		ask    func(*testing.T, *Cache)
	}{
		{"the tag is gone", func(s *source) { clear(s.tags) }, tag},
		{"the repository is gone", func(s *source) { s.down = oci.ErrNameUnknown }, tag},
		{"the repository is hidden", func(s *source) { s.down = &oci.Error{Code: oci.Denied, Err: oci.ErrHidden} }, tag},
		{"the list is hidden", func(s *source) { s.down = &oci.Error{Code: oci.Denied, Err: oci.ErrHidden} }, list},
		{"the list's route is gone", func(s *source) { s.noAPIFor = alpine.Path; clear(s.tags) }, list},
	} {
		for _, drop := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, dropped: %v", tc.name, drop), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSource()
					s.pushImage(alpine, "latest", pattern(1, 10))
					c := newCache(t, s, Config{TTL: time.Minute, DropDeleted: map[string]bool{"docker.io": drop}})
					defer closeCache(t, c)
					tag(t, c)
					for _, repo := range []oci.Repository{alpine, edge} {
						if n, mark := referrers(t, c, repo); n != 1 || mark != oci.Miss {
							t.Fatalf("%d as %s", n, mark)
						}
					}
					time.Sleep(time.Hour)
					s.set(func() { tc.delete(s) })
					tc.ask(t, c)
					for range 2 {
						time.Sleep(2 * time.Hour)
						s.set(func() { s.down, s.noAPIFor = errDown, "" })
						if n, mark := referrers(t, c, alpine); drop && n > 0 || !drop && (n != 1 || mark != oci.Stale) {
							t.Errorf("in an outage: %d as %s", n, mark)
						}
						if n, mark := referrers(t, c, edge); n != 1 || mark != oci.Stale {
							t.Errorf("of another repository: %d as %s, want one as stale", n, mark)
						}
					}
				})
			})
		}
	}
	t.Run("removed here", func(t *testing.T) {
		s := newSource()
		c := newCache(t, s, Config{})
		referrers(t, c, alpine)
		referrers(t, c, edge)
		c.ForgetReferrers(alpine)
		s.set(func() { s.down = errDown })
		n, _ := referrers(t, c, alpine)
		if others, _ := referrers(t, c, edge); n != 0 || others != 1 || c.kept.lists.weight > 1000 {
			t.Errorf("%d, and %d of another repository, in %d bytes, want none and one", n, others, c.kept.lists.weight)
		}
	})
	t.Run("without a word of it", func(t *testing.T) { // the list's own question tells
		synctest.Test(t, func(t *testing.T) {
			s := newSource()
			c := newCache(t, s, Config{TTL: time.Minute})
			defer closeCache(t, c)
			referrers(t, c, alpine)
			s.set(func() { s.noAPIFor = alpine.Path })
			if n, mark := referrers(t, c, alpine); n != 1 || mark != oci.Stale {
				t.Errorf("once its route is gone: %d as %s, want what it told, as stale", n, mark)
			}
		})
	})
}

// TestForcedCheckAsksForTheTagAlone: however fresh the record, and however often
// at once, by one HEAD, and upstream is not told to forget its own pauses.
func TestForcedCheckAsksForTheTagAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Hour})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		s.set(func() { s.asked, s.delay = nil, time.Second })
		var clients sync.WaitGroup
		for range 100 {
			clients.Go(func() {
				_, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{Refresh: true})
				if err != nil || out.Cache != oci.Hit || out.Why != "revalidated" {
					t.Errorf("%s (%s) %v, want a check", out.Cache, out.Why, err)
				}
			})
		}
		clients.Wait()
		wantAsked(t, s, "HEAD library/alpine latest")
		if s.refreshed > 0 {
			t.Error("upstream was told to refresh, which would have it try a refused password")
		}
	})
}

func TestDeletedUpstreamIsDroppedByPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Minute, DropDeleted: map[string]bool{"docker.io": true}})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		s.set(func() { clear(s.tags) })
		for range 3 {
			_, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
			wantCode(t, err, oci.ManifestUnknown)
		}
		time.Sleep(time.Hour)
		s.set(func() { s.down = errDown })
		_, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
		wantCode(t, err, oci.CodeOf(errDown))
	})
}

func TestOneUpstreamOffline(t *testing.T) {
	s := newSource()
	s.pushImage(alpine, "latest", pattern(1, 10))
	quay := oci.Repository{Host: "quay.io", Path: "a/b"}
	s.pushImage(quay, "latest", pattern(2, 10))
	c := newCache(t, s, Config{Without: map[string]bool{"docker.io": true}})
	_, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	if _, err := pull(t.Context(), c, quay, "latest"); err != nil {
		t.Error(err)
	}
}
