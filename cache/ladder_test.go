package cache

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// TestLadder is the whole of it: what upstream said by what is held.
func TestLadder(t *testing.T) {
	ladder := Ladder{Pause: 30 * time.Second, Remember: 10 * time.Second}
	strict := ladder
	strict.DropDeleted = true
	const hour = time.Hour
	for _, row := range []struct {
		name  string
		l     Ladder
		held  bool
		said  Said
		retry time.Duration
		want  Rung
	}{
		{"same digest", ladder, true, Confirmed, 0, Rung{Theirs, oci.Hit, 0, true, false}},
		{"moved", ladder, true, Changed, 0, Rung{Theirs, oci.Miss, 0, true, false}},
		{"new", ladder, false, Changed, 0, Rung{Theirs, oci.Miss, 0, true, false}},
		{"deleted, held", ladder, true, Gone, 0, Rung{Ours, oci.Stale, 30 * time.Second, false, false}},
		{"deleted, held, dropped by policy", strict, true, Gone, 0, Rung{Error, "", 10 * time.Second, false, true}},
		{"hidden, held", ladder, true, Hidden, 0, Rung{Ours, oci.Stale, 30 * time.Second, false, false}},
		{"hidden, held, dropped by policy", strict, true, Hidden, 0, Rung{Error, "", 10 * time.Second, false, true}},
		{"hidden", ladder, false, Hidden, 0, Rung{Error, "", 10 * time.Second, false, false}},
		{"missing", ladder, false, Gone, 0, Rung{Error, "", 10 * time.Second, false, false}},
		{"denied, held", ladder, true, Refused, 0, Rung{Ours, oci.Stale, 30 * time.Second, false, false}},
		{"denied, held, policy is about deletion alone", strict, true, Refused, 0, Rung{Ours, oci.Stale, 30 * time.Second, false, false}},
		{"denied", ladder, false, Refused, 0, Rung{Error, "", 10 * time.Second, false, false}},
		{"limited, held", ladder, true, Limited, 0, Rung{Ours, oci.Stale, 30 * time.Second, false, false}},
		{"limited, held, told when", ladder, true, Limited, 5 * time.Minute, Rung{Ours, oci.Stale, 5 * time.Minute, false, false}},
		{"limited, held, told next year", ladder, true, Limited, 9000 * hour, Rung{Ours, oci.Stale, hour, false, false}},
		{"limited", ladder, false, Limited, 0, Rung{Error, "", 0, false, false}},
		{"limited, told when", ladder, false, Limited, time.Minute, Rung{Error, "", 0, false, false}},
		{"trouble, held", ladder, true, Trouble, 0, Rung{Ours, oci.Stale, 30 * time.Second, false, false}},
		{"trouble", ladder, false, Trouble, 0, Rung{Error, "", 0, false, false}},
		{"slow, held", ladder, true, Slow, 0, Rung{Ours, oci.Stale, 0, false, false}},
		{"slow", ladder, false, Slow, 0, Rung{Error, "", 0, false, false}},
	} {
		if got := row.l.Climb(row.held, row.said, row.retry); got != row.want {
			t.Errorf("%s: %+v, want %+v", row.name, got, row.want)
		}
	}
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
		{oci.ErrUnavailable, Trouble},
		{&oci.Error{Code: oci.BadUpstream}, Trouble},
		{&oci.Error{Code: oci.Timeout}, Trouble},
		{oci.ErrUnsupported, Trouble},
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
		if c.kept.bytes > maxKeptLists || len(c.kept.lists) > maxKeptLists/200 {
			t.Errorf("%d bytes in %d lists are kept", c.kept.bytes, len(c.kept.lists))
		}
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
				_, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{Refresh: true, Manifest: true})
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
