package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// pull asks as a client that never sends HEAD: tag, manifest, blobs.
func pull(ctx context.Context, c *Cache, repo oci.Repository, tag string) (oci.CacheStatus, error) {
	res, out, err := c.Resolve(ctx, repo, tag, oci.Ask{})
	if err != nil {
		return "", err
	}
	m, _, err := c.Manifest(ctx, repo, res.Digest, oci.Ask{})
	if err != nil {
		return "", err
	}
	links, err := oci.ParseLinks(m.Content)
	if err != nil {
		return "", err
	}
	for _, b := range links.Blobs() {
		if _, _, err := read(ctx, c, repo, b.Digest, 0, -1); err != nil {
			return "", err
		}
	}
	return out.Cache, nil
}

func TestColdPullAsksOnceAndWarmPullNothing(t *testing.T) {
	s := newSource()
	layer := pattern(1, 1000)
	m := s.pushImage(alpine, "latest", layer)
	c := newCache(t, s, Config{TTL: time.Hour})
	links, _ := oci.ParseLinks(m.Content)
	for range 2 {
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		wantAsked(t, s,
			"HEAD library/alpine latest",
			"GET library/alpine manifest "+m.Digest.String(),
			"GET library/alpine blob "+links.Config.Digest.String()+" 0+-1",
			"GET library/alpine blob "+oci.Sum(layer).String()+" 0+-1")
	}
}

func TestTenPullsAtOnceAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "latest", pattern(1, 1000), pattern(2, 2000))
		s.delay = time.Second
		c := newCache(t, s, Config{TTL: time.Hour})
		defer closeCache(t, c)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := len(s.questions()); n != 5 {
			t.Errorf("%d questions %q, want HEAD, manifest, config and two layers", n, s.questions())
		}
	})
}

func TestTagIsCheckedAgainAfterItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		old := s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Minute})
		defer closeCache(t, c)
		resolve := func() (oci.Digest, oci.CacheStatus) {
			t.Helper()
			res, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
			if err != nil {
				t.Fatal(err)
			}
			return res.Digest, out.Cache
		}
		resolve()
		moved := s.pushImage(alpine, "latest", pattern(2, 10))
		if d, cs := resolve(); d != old.Digest || cs != oci.Hit {
			t.Errorf("inside the ttl: %s %s, want the old digest as a hit", d, cs)
		}
		time.Sleep(time.Minute)
		if d, cs := resolve(); d != moved.Digest || cs != oci.Miss {
			t.Errorf("after the ttl: %s %s, want the new digest as a miss", d, cs)
		}
		time.Sleep(time.Minute)
		if d, cs := resolve(); d != moved.Digest || cs != oci.Hit {
			t.Errorf("unchanged: %s %s, want a hit", d, cs)
		}
		wantAsked(t, s, "HEAD library/alpine latest", "HEAD library/alpine latest", "HEAD library/alpine latest")
	})
}

func TestHeldTagSurvivesItsUpstream(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		why  string
	}{
		{"down", errDown, "upstream is down"},
		{"limited", &oci.Error{Code: oci.TooManyRequests, RetryAfter: time.Minute}, "too many requests"},
		{"denied", &oci.Error{Code: oci.Denied}, "denied"},
		{"deleted", &oci.Error{Code: oci.ManifestUnknown}, "deleted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				m := s.pushImage(alpine, "latest", pattern(1, 10))
				c := newCache(t, s, Config{TTL: time.Minute})
				defer closeCache(t, c)
				if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				s.set(func() { s.down, s.asked = tc.err, nil })
				for range 100 {
					res, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
					if err != nil || res.Digest != m.Digest || out.Cache != oci.Stale || !strings.Contains(out.Why, tc.why) {
						t.Fatalf("got %s %s (%s) %v, want the held digest as stale", res.Digest, out.Cache, out.Why, err)
					}
				}
				if n := len(s.questions()); n != 1 {
					t.Errorf("a hundred pulls in trouble made %d checks, want 1", n)
				}
				_, _, err := c.Resolve(t.Context(), alpine, "other", oci.Ask{})
				wantCode(t, err, oci.CodeOf(tc.err))
			})
		})
	}
}

func TestSlowCheckIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Minute})
		defer closeCache(t, c)
		if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		s.set(func() { s.delay = 20 * time.Second })
		moved := s.pushImage(alpine, "latest", pattern(2, 10))
		began := time.Now()
		_, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
		if waited := time.Since(began); err != nil || out.Cache != oci.Stale || waited != 2*time.Second {
			t.Errorf("%s after %v, %v, want stale after 2 s", out.Cache, waited, err)
		}
		time.Sleep(40 * time.Second) // the check goes on behind it, and gets what it found
		res, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{})
		if err != nil || res.Digest != moved.Digest || out.Cache != oci.Hit {
			t.Errorf("%s %s %v, want what the check found", res.Digest, out.Cache, err)
		}
	})
}

// TestNothingHeldIsEvictedWhileItsUpstreamIsAway: however old it is, and however
// much others bring in under the cap, whether clients ask for tags in the outage
// or for digests alone, and after a restart in the middle of it, when nobody has asked
// that upstream yet.
func TestNothingHeldIsEvictedWhileItsUpstreamIsAway(t *testing.T) {
	const layer = 512 << 10
	for _, what := range []string{"tag", "digest"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newSource()
			layers := [][]byte{pattern(1, layer), pattern(2, layer)}
			m := s.pushImage(alpine, "latest", layers...)
			on := store.Config{Dir: t.TempDir(), Memory: layer, Budget: 8 * layer}
			c := openCacheOf(t, on, s, Config{})
			if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
				t.Fatal(err)
			}
			s.set(func() { s.down, s.downHost = &oci.Error{Code: oci.Timeout}, "docker.io" })
			n := 10
			crowd := func(c *Cache, asked bool) {
				t.Helper()
				switch {
				case !asked:
				case what == "tag":
					if _, out, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil || out.Cache != oci.Stale {
						t.Fatalf("%s %v, want stale", out.Cache, err)
					}
				default:
					_, _, err := c.Manifest(t.Context(), alpine, oci.Sum([]byte("unheld")), oci.Ask{})
					wantCode(t, err, oci.Timeout)
				}
				for range 20 {
					n++
					tag := fmt.Sprint(n)
					quay := oci.Repository{Host: "quay.io", Path: "a/b"}
					s.set(func() { s.pushImage(quay, tag, pattern(n, layer)) })
					if _, err := pull(t.Context(), c, quay, tag); err != nil {
						t.Fatal(err)
					}
				}
				if n := c.disk.Stats().Evicted; n == 0 {
					t.Fatal("nothing was evicted: the disk was not crowded")
				}
				for _, d := range []oci.Digest{m.Digest, oci.Sum(layers[0]), oci.Sum(layers[1])} {
					if _, err := c.disk.Size(d); err != nil {
						t.Errorf("%s: %v", d, err)
					}
				}
			}
			crowd(c, true)
			closeCache(t, c)
			c = openCacheOf(t, on, s, Config{})
			crowd(c, false)
			crowd(c, true)
		})
	}
}

// TestOnlyTheFirstWaitsForAMuteUpstream: who asks for a held tag while a check is
// overdue gets it at once, be it that tag or another, until upstream has said
// something.
func TestOnlyTheFirstWaitsForAMuteUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		tags := []string{"a", "b", "c"}
		for i, tag := range tags {
			s.pushImage(alpine, tag, pattern(i, 10))
		}
		c := newCache(t, s, Config{TTL: time.Minute})
		defer closeCache(t, c)
		for _, tag := range tags {
			if _, err := pull(t.Context(), c, alpine, tag); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		s.set(func() { s.delay = 20 * time.Second })
		resolve := func(tag string, want oci.CacheStatus, wait time.Duration) {
			t.Helper()
			began := time.Now()
			_, out, err := c.Resolve(t.Context(), alpine, tag, oci.Ask{})
			if waited := time.Since(began); err != nil || out.Cache != want || waited != wait {
				t.Errorf("%s: %s after %v, %v, want %s after %v", tag, out.Cache, waited, err, want, wait)
			}
		}
		resolve("a", oci.Stale, 2*time.Second)
		resolve("a", oci.Stale, 0)
		resolve("b", oci.Stale, 0)
		synctest.Wait()
		s.set(func() { s.delay = time.Second })
		resolve("c", oci.Stale, 0) // its check is answered in a second
		time.Sleep(time.Second)
		synctest.Wait()
		resolve("c", oci.Hit, 0)
		resolve("b", oci.Stale, 2*time.Second) // upstream speaks: this one is waited for
		time.Sleep(time.Hour)
		resolve("a", oci.Hit, time.Second)
	})
}

// TestAConfirmedTagIsNotNew: when it came to name what it names is not when that was
// confirmed last.
func TestAConfirmedTagIsNotNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		s.pushImage(alpine, "latest", pattern(1, 10))
		c := newCache(t, s, Config{TTL: time.Minute})
		defer closeCache(t, c)
		began := time.Now()
		for range 3 {
			if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if tag, err := c.disk.Tag(alpine, "latest"); err != nil || !tag.Changed.Equal(began) || !tag.Checked.After(began) {
			t.Errorf("it names that since %v, checked %v, %v: want %v and later", tag.Changed, tag.Checked, err, began)
		}
	})
}

// TestOnlyTheFirstWaitsForAQuestionThatHangs: at an upstream that answers all
// others, as long as it hangs, and however often it is asked again meanwhile.
func TestOnlyTheFirstWaitsForAQuestionThatHangs(t *testing.T) {
	subject := oci.Sum([]byte("subject"))
	resolve := func(tag string) func(*Cache) (oci.Outcome, error) {
		return func(c *Cache) (oci.Outcome, error) {
			_, out, err := c.Resolve(context.Background(), alpine, tag, oci.Ask{})
			return out, err
		}
	}
	for _, tc := range []struct {
		hangs string
		ask   func(*Cache) (oci.Outcome, error)
		after oci.CacheStatus // once it does not hang any more
	}{
		{"HEAD library/alpine hung", resolve("hung"), oci.Hit},
		{"tags", func(c *Cache) (oci.Outcome, error) {
			_, out, err := c.Tags(context.Background(), alpine, oci.Page{N: -1}, oci.Ask{})
			return out, err
		}, oci.Miss},
		{"referrers", func(c *Cache) (oci.Outcome, error) {
			_, out, err := c.Referrers(context.Background(), alpine, subject, "", oci.Ask{})
			return out, err
		}, oci.Miss},
	} {
		t.Run(tc.hangs, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				s.pushImage(alpine, "hung", pattern(1, 10))
				s.pushImage(alpine, "well", pattern(2, 10))
				c := newCache(t, s, Config{TTL: time.Minute})
				defer closeCache(t, c)
				well, wait := resolve("well"), 2*time.Second
				for _, ask := range []func(*Cache) (oci.Outcome, error){well, resolve("hung"), tc.ask} {
					if _, err := ask(c); err != nil {
						t.Fatal(err)
					}
				}
				s.set(func() { s.hangs, s.asked = tc.hangs, nil })
				for i := range 120 {
					time.Sleep(time.Minute)
					for _, again := range []time.Duration{0, time.Second, 0, 25 * time.Second, 0} {
						time.Sleep(again)
						began := time.Now()
						out, err := tc.ask(c)
						if waited := time.Since(began); err != nil || out.Cache != oci.Stale || waited != wait {
							t.Fatalf("minute %d: %s after %v, %v, want stale after %v", i, out.Cache, waited, err, wait)
						}
						wait = 0
					}
					if out, err := well(c); err != nil || out.Cache != oci.Hit {
						t.Fatalf("minute %d: another tag is a %s: %v", i, out.Cache, err)
					}
				}
				hung := 0
				for _, q := range s.questions() {
					if strings.Contains(q, tc.hangs) {
						hung++
					}
				}
				if hung < 120 || s.most > 1 {
					t.Errorf("in two hours it was asked %d times, %d at once, want now and then, one by one", hung, s.most)
				}
				time.Sleep(time.Minute)
				s.set(func() { s.hangs, s.delay = "", time.Second })
				if out, err := tc.ask(c); err != nil || out.Cache != oci.Stale {
					t.Errorf("the first after it: %s %v, want stale", out.Cache, err)
				}
				time.Sleep(time.Minute)
				if out, err := tc.ask(c); err != nil || out.Cache != tc.after {
					t.Errorf("once it was answered: %s %v, want %s, which is waited for", out.Cache, err, tc.after)
				}
			})
		})
	}
}

// What is remembered of questions that hang is bounded, and nothing of those that
// were answered.
func TestFewQuestionsAreKnownToHang(t *testing.T) {
	var m mutes
	for i := range 3 * maxOverdue {
		answered, hung := strconv.Itoa(i), "hung "+strconv.Itoa(i)
		for _, key := range []string{answered, hung} {
			began := m.asked(key, oci.Ask{})
			m.heard("docker.io", began, oci.Ask{}, nil)
			m.gaveUp("docker.io", key)
			m.ended(key, key == answered)
			m.gaveUp("docker.io", answered) // too late: it was answered
		}
		if !m.is("docker.io", hung) || m.is("docker.io", answered) {
			t.Fatalf("question %d: hung %v, answered %v", i, m.is("docker.io", hung), m.is("docker.io", answered))
		}
	}
	if hung, flying := len(m.overdue), len(m.flying); hung > maxOverdue || flying > 0 {
		t.Errorf("%d questions are known to hang, and %d to be on their way", hung, flying)
	}
}

// Who had no turn among all that ask has heard nothing of an upstream that is mute.
func TestWhoHadNoTurnHasHeardNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for err, stays := range map[error]bool{
			&oci.Error{Code: oci.TooManyRequests, Err: oci.ErrCrowded}: true,
			&oci.Error{Code: oci.TooManyRequests}:                      false,
			oci.ErrManifestUnknown:                                     false,
		} {
			var m mutes
			m.asked("hung", oci.Ask{})
			time.Sleep(2 * time.Second)
			m.gaveUp("docker.io", "hung")
			began := m.asked("other", oci.Ask{})
			time.Sleep(time.Second)
			m.heard("docker.io", began, oci.Ask{}, err)
			if m.is("docker.io", "next") != stays {
				t.Errorf("%v: it is mute: %v, want %v", err, !stays, stays)
			}
		}
	})
}

// held is a cache of a registry that reserves for those who wait, with tags that all
// have to be checked again.
func held(t *testing.T, repos ...oci.Repository) (*Cache, *reserved) {
	t.Helper()
	s := newReserved()
	c := newCache(t, s, Config{TTL: time.Minute})
	for i, repo := range repos {
		s.pushImage(repo, "latest", pattern(i, 10))
		if _, err := pull(t.Context(), c, repo, "latest"); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Hour)
	return c, s
}

// wantResolve asks for a tag that is held.
func wantResolve(t *testing.T, c *Cache, repo oci.Repository, want oci.CacheStatus, wait time.Duration) {
	t.Helper()
	began := time.Now()
	_, out, err := c.Resolve(t.Context(), repo, "latest", oci.Ask{})
	if waited := time.Since(began); err != nil || out.Cache != want || waited != wait {
		t.Errorf("%s: %s after %v, %v, want %s after %v", repo, out.Cache, waited, err, want, wait)
	}
}

var alpine2, alpine3 = oci.Repository{Host: "docker.io", Path: "library/alpine2"}, oci.Repository{Host: "docker.io", Path: "library/alpine3"}

// TestUpstreamThatAnswersIsNotMute: though what an answer leads to hangs, however late
// they came who wait for that.
func TestUpstreamThatAnswersIsNotMute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2)
		defer closeCache(t, c)
		moved := s.pushImage(alpine, "latest", pattern(9, 10))
		s.set(func() { s.hangs, s.delay = "GET library/alpine manifest "+moved.Digest.String(), time.Millisecond })
		var asking sync.WaitGroup
		asking.Go(func() { wantResolve(t, c, alpine, oci.Stale, 2*time.Second) })
		time.Sleep(time.Second)
		wantResolve(t, c, alpine, oci.Stale, 2*time.Second)
		asking.Wait()
		s.set(func() { s.delay = time.Second })
		wantResolve(t, c, alpine2, oci.Hit, time.Second)
		wantResolve(t, c, alpine, oci.Stale, 0)
	})
}

// TestBackgroundEndsNoWait: a question that hangs is known to, though it was asked in
// the background as well, and that had to give way meanwhile.
func TestBackgroundEndsNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2)
		defer closeCache(t, c)
		s.set(func() { s.hangs = "HEAD library/alpine latest" })
		var asking sync.WaitGroup
		asking.Go(func() { _, _, _ = c.Resolve(t.Context(), alpine, "latest", background) })
		synctest.Wait()
		asking.Go(func() { wantResolve(t, c, alpine, oci.Stale, 2*time.Second) })
		time.Sleep(backgroundWait + time.Millisecond) // by when it is asked for who waits, too
		close(s.gave)
		wantResolve(t, c, alpine2, oci.Hit, 0) // the upstream itself is well
		asking.Wait()
		wantResolve(t, c, alpine, oci.Stale, 0)
	})
}

// TestBackgroundHidesNoMuteUpstream: what was answered since a question was asked in
// the background, and before it was asked for who waits, is no sign of life.
func TestBackgroundHidesNoMuteUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2, alpine3)
		defer closeCache(t, c)
		var asking sync.WaitGroup
		asking.Go(func() { _, _, _ = c.Resolve(t.Context(), alpine, "latest", background) })
		time.Sleep(time.Second)
		wantResolve(t, c, alpine2, oci.Hit, 0)
		s.set(func() { s.hangs = "HEAD" })
		wantResolve(t, c, alpine, oci.Stale, 2*time.Second)
		wantResolve(t, c, alpine3, oci.Stale, 0)
		close(s.gave)
		asking.Wait()
	})
}

// TestBackgroundMarksNoUpstream: who waits for a question in the background that does
// not get its turn, and leaves before it is asked for him, has learnt nothing of upstream.
func TestBackgroundMarksNoUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2)
		defer closeCache(t, c)
		c.cfg.CheckWait = backgroundWait / 2
		var asking sync.WaitGroup
		asking.Go(func() { _, _, _ = c.Resolve(t.Context(), alpine, "latest", background) })
		synctest.Wait()
		wantResolve(t, c, alpine, oci.Stale, backgroundWait/2)
		s.set(func() { s.delay = time.Millisecond })
		wantResolve(t, c, alpine2, oci.Hit, time.Millisecond)
		close(s.gave)
		asking.Wait()
	})
}

// TestMuteUpstreamIsLeftByItsOwnWord: or by a failure that its breaker knows of, and
// not by a question in the background that was not sent.
func TestMuteUpstreamIsLeftByItsOwnWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2, alpine3)
		defer closeCache(t, c)
		s.set(func() { s.hangs = "HEAD" })
		var asking sync.WaitGroup
		asking.Go(func() { wantResolve(t, c, alpine, oci.Stale, 2*time.Second) })
		time.Sleep(time.Second)
		asking.Go(func() { _, _, _ = c.Resolve(t.Context(), alpine2, "latest", background) })
		time.Sleep(time.Second + time.Millisecond)
		close(s.gave)
		asking.Wait()
		wantResolve(t, c, alpine3, oci.Stale, 0)
		synctest.Wait()
		s.set(func() { s.hangs, s.delay = "", time.Second })
		time.Sleep(19 * time.Second) // by when the first check has failed, and the last not yet
		wantResolve(t, c, alpine2, oci.Hit, time.Second)
	})
}

// TestLaterFailureLeavesAnUpstreamMute: what fails by itself is refused at once, and
// tells of nothing else.
func TestLaterFailureLeavesAnUpstreamMute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2, alpine3)
		defer closeCache(t, c)
		s.set(func() { s.hangs = "HEAD" })
		wantResolve(t, c, alpine, oci.Stale, 2*time.Second)
		s.set(func() { s.hangs, s.down = "", errDown })
		wantResolve(t, c, alpine2, oci.Stale, 0)
		synctest.Wait()
		s.set(func() { s.hangs, s.down = "HEAD", nil })
		wantResolve(t, c, alpine3, oci.Stale, 0)
	})
}

// TestBreakerThatDoesNotKnowIsTriedOnce: it let somebody wait in vain after a failure,
// and from there on an answer alone tells that upstream is not mute.
func TestBreakerThatDoesNotKnowIsTriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := held(t, alpine, alpine2, alpine3)
		defer closeCache(t, c)
		s.set(func() { s.hangs = "HEAD" })
		wantResolve(t, c, alpine, oci.Stale, 2*time.Second)
		time.Sleep(19 * time.Second)
		wantResolve(t, c, alpine2, oci.Stale, 2*time.Second)
		time.Sleep(19 * time.Second)
		wantResolve(t, c, alpine3, oci.Stale, 0)
		time.Sleep(time.Hour)
		s.set(func() { s.hangs, s.delay = "", time.Second })
		wantResolve(t, c, alpine3, oci.Stale, 0)
		time.Sleep(time.Hour)
		wantResolve(t, c, alpine3, oci.Hit, time.Second)
	})
}

// TestTagsAndListsShareOneWait: whatever is asked for first, at an upstream that says
// nothing; and any answer ends that.
func TestTagsAndListsShareOneWait(t *testing.T) {
	asks := map[string]func(*Cache) (oci.Outcome, error){
		"tag": func(c *Cache) (oci.Outcome, error) {
			_, out, err := c.Resolve(context.Background(), alpine, "latest", oci.Ask{})
			return out, err
		},
		"tags": func(c *Cache) (oci.Outcome, error) {
			_, out, err := c.Tags(context.Background(), alpine2, oci.Page{N: -1}, oci.Ask{})
			return out, err
		},
		"referrers": func(c *Cache) (oci.Outcome, error) {
			_, out, err := c.Referrers(context.Background(), alpine3, oci.Sum([]byte("subject")), "", oci.Ask{})
			return out, err
		},
	}
	for first, ask := range asks {
		for second, again := range asks {
			if first == second {
				continue
			}
			t.Run(first+", "+second, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, s := held(t, alpine, alpine2, alpine3)
					defer closeCache(t, c)
					if _, err := asks["referrers"](c); err != nil {
						t.Fatal(err)
					}
					wantStale := func(ask func(*Cache) (oci.Outcome, error), wait time.Duration) {
						t.Helper()
						began := time.Now()
						out, err := ask(c)
						if waited := time.Since(began); err != nil || out.Cache != oci.Stale || waited != wait {
							t.Errorf("%s after %v, %v, want stale after %v", out.Cache, waited, err, wait)
						}
						synctest.Wait()
					}
					s.set(func() { s.hangs = " " })
					wantStale(ask, 2*time.Second)
					s.set(func() { s.hangs, s.delay, s.noAPI = "", time.Second, true }) // which is an answer, too
					wantStale(again, 0)
					time.Sleep(time.Second)
					synctest.Wait()
					wantResolve(t, c, alpine3, oci.Hit, time.Second)
				})
			})
		}
	}
}

func TestOfflineServesWhatIsHeldAndSaysWhatIsNot(t *testing.T) {
	s := newSource()
	layer := pattern(1, 1000)
	s.pushImage(alpine, "latest", layer)
	dir := t.TempDir()
	online := openCache(t, dir, s, Config{})
	if _, err := pull(t.Context(), online, alpine, "latest"); err != nil {
		t.Fatal(err)
	}
	closeCache(t, online)
	s.set(func() { s.asked = nil })
	c := openCache(t, dir, s, Config{Offline: true})
	if cs, err := pull(t.Context(), c, alpine, "latest"); err != nil || cs != oci.Hit {
		t.Errorf("offline pull: %s %v", cs, err)
	}
	unheld := oci.Sum([]byte("unheld"))
	_, _, err := c.Resolve(t.Context(), alpine, "other", oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	_, _, err = c.Manifest(t.Context(), alpine, unheld, oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	_, _, err = read(t.Context(), c, alpine, unheld, 0, -1)
	wantCode(t, err, oci.Unavailable)
	if list, out, err := c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{}); err != nil || len(list.Tags) != 1 || out.Cache != oci.Stale {
		t.Errorf("offline tags: %v %v %v", list, out, err)
	}
	wantAsked(t, s)
}

// TestMarkersThatACrashLostAreFoundAgain: they are never synced.
func TestMarkersThatACrashLostAreFoundAgain(t *testing.T) {
	s := newSource()
	s.pushImage(alpine, "latest", pattern(1, 1000), pattern(2, 300_000))
	dir := t.TempDir()
	online := openCache(t, dir, s, Config{Prefetch: -1})
	if _, err := pull(t.Context(), online, alpine, "latest"); err != nil {
		t.Fatal(err)
	}
	closeCache(t, online)
	if err := os.RemoveAll(filepath.Join(dir, "repos", "docker.io", "library", "alpine", "_content")); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.asked = nil })
	if cs, err := pull(t.Context(), openCache(t, dir, s, Config{Offline: true}), alpine, "latest"); err != nil || cs != oci.Hit {
		t.Errorf("offline pull: %s %v", cs, err)
	}
	wantAsked(t, s)
}

var (
	mallory = oci.Repository{Host: "docker.io", Path: "mallory/public"}
	secret  = oci.Repository{Host: "docker.io", Path: "corp/secret"}
)

// TestManifestCannotClaimAnothersBlob: anybody may push a manifest that lists a
// layer of a private image.
func TestManifestCannotClaimAnothersBlob(t *testing.T) {
	s := newSource()
	layer := pattern(1, 1000)
	s.pushImage(secret, "latest", layer)
	claim := s.pushImage(mallory, "latest", layer)
	delete(s.blobs, mallory.String()+"@"+oci.Sum(layer).String()) // upstream would not serve it there
	c := newCache(t, s, Config{TTL: time.Hour, Private: true})
	if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Manifest(t.Context(), mallory, claim.Digest, oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.asked = nil })
	_, _, err := read(t.Context(), c, mallory, oci.Sum(layer), 0, -1)
	wantCode(t, err, oci.BlobUnknown)
	wantAsked(t, s, "HEAD mallory/public blob "+oci.Sum(layer).String())

	s.set(func() { s.down = errDown })
	c.Forget()
	_, _, err = read(t.Context(), c, mallory, oci.Sum(layer), 0, -1)
	wantCode(t, err, oci.Unavailable)
	if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
		t.Errorf("the rightful repository: %v", err)
	}
}

func TestSharedBlobCostsOneHeadWhereCredentialsAreUsed(t *testing.T) {
	for _, private := range []bool{false, true} {
		s := newSource()
		layer := pattern(1, 1000)
		s.pushImage(secret, "latest", layer)
		other := s.pushImage(mallory, "latest", layer)
		c := newCache(t, s, Config{TTL: time.Hour, Private: private})
		if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Manifest(t.Context(), mallory, other.Digest, oci.Ask{}); err != nil {
			t.Fatal(err)
		}
		s.set(func() { s.asked = nil })
		for range 3 {
			mustRead(t, c, mallory, oci.Sum(layer), layer)
		}
		var want []string
		if private {
			want = []string{"HEAD mallory/public blob " + oci.Sum(layer).String()}
		}
		wantAsked(t, s, want...)
	}
}

func TestManifestOfAnotherRepositoryIsConfirmedByHead(t *testing.T) {
	s := newSource()
	m := s.pushImage(secret, "latest", pattern(1, 10))
	c := newCache(t, s, Config{TTL: time.Hour})
	if _, err := pull(t.Context(), c, secret, "latest"); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.asked = nil })
	_, _, err := c.Manifest(t.Context(), mallory, m.Digest, oci.Ask{})
	wantCode(t, err, oci.ManifestUnknown)
	wantAsked(t, s, "HEAD mallory/public "+m.Digest.String())
}

func TestIndexDragsNoPlatformIn(t *testing.T) {
	s := newSource()
	amd := s.pushImage(alpine, "amd", pattern(1, 10))
	arm := s.pushImage(alpine, "arm", pattern(2, 10))
	index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
		`{"mediaType":"` + amd.MediaType + `","digest":"` + amd.Digest.String() + `","size":1},` +
		`{"mediaType":"` + arm.MediaType + `","digest":"` + arm.Digest.String() + `","size":1}]}`
	m := s.pushManifest(alpine, "latest", []byte(index), "application/vnd.oci.image.index.v1+json")
	c := newCache(t, s, Config{TTL: time.Hour})
	if _, _, err := c.Resolve(t.Context(), alpine, "latest", oci.Ask{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []oci.Digest{m.Digest, amd.Digest} {
		if _, _, err := c.Manifest(t.Context(), alpine, d, oci.Ask{}); err != nil {
			t.Fatal(err)
		}
	}
	wantAsked(t, s, "HEAD library/alpine latest",
		"GET library/alpine manifest "+m.Digest.String(),
		"GET library/alpine manifest "+amd.Digest.String())
}

// TestBlobAskedAsManifest: containerd asks for a digest at both places.
func TestBlobAskedAsManifest(t *testing.T) {
	s := newSource()
	layer := pattern(1, 1000)
	m := s.pushImage(alpine, "latest", layer)
	c := newCache(t, s, Config{TTL: time.Hour})
	if _, err := pull(t.Context(), c, alpine, "latest"); err != nil {
		t.Fatal(err)
	}
	awaitNoFills(c)
	s.set(func() { s.asked = nil })
	_, _, err := c.Manifest(t.Context(), alpine, oci.Sum(layer), oci.Ask{})
	wantCode(t, err, oci.ManifestUnknown)
	mustRead(t, c, alpine, m.Digest, m.Content)
	wantAsked(t, s)
}

func TestResolveByDigestMovesNoContent(t *testing.T) {
	s := newSource()
	m := s.pushImage(alpine, "latest", pattern(1, 10))
	c := newCache(t, s, Config{})
	for range 3 {
		res, _, err := c.Resolve(t.Context(), alpine, m.Digest.String(), oci.Ask{})
		if err != nil || res.Descriptor != m.Descriptor {
			t.Fatalf("got %v %v, want %v", res.Descriptor, err, m.Descriptor)
		}
	}
	wantAsked(t, s, "HEAD library/alpine "+m.Digest.String())
}

func TestReferrersFallBackToTheTagSchema(t *testing.T) {
	s := newSource()
	s.noAPI = true
	subject := s.pushImage(alpine, "latest", pattern(1, 10))
	sbom, sig := oci.Sum([]byte("sbom")), oci.Sum([]byte("sig"))
	index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
		`{"digest":"` + sbom.String() + `","artifactType":"sbom","annotations":{"a":"b"}},` +
		`{"digest":"` + sig.String() + `","artifactType":"sig"}]}`
	s.pushManifest(alpine, subject.Digest.FallbackTag(), []byte(index), "application/vnd.oci.image.index.v1+json")
	c := newCache(t, s, Config{TTL: time.Hour})
	for _, tc := range []struct {
		artifactType string
		want         int
	}{{"", 2}, {"sbom", 1}, {"none", 0}} {
		list, _, err := c.Referrers(t.Context(), alpine, subject.Digest, tc.artifactType, oci.Ask{})
		if err != nil || len(list.Manifests) != tc.want {
			t.Errorf("artifactType %q: %d entries, %v, want %d", tc.artifactType, len(list.Manifests), err, tc.want)
		}
	}
	wantAsked(t, s,
		"GET library/alpine referrers "+subject.Digest.String(), // asked once: there is no such API
		"HEAD library/alpine "+subject.Digest.FallbackTag(),
		"GET library/alpine manifest "+oci.Sum([]byte(index)).String())

	list, _, err := c.Referrers(t.Context(), alpine, sbom, "", oci.Ask{})
	if err != nil || len(list.Manifests) != 0 {
		t.Errorf("a digest without referrers: %v %v, want an empty list", list, err)
	}
}

func TestTrouble(t *testing.T) {
	s := newSource()
	s.down = errDown
	c := newCache(t, s, Config{})
	_, _, err := c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	_, _, err = c.Referrers(t.Context(), alpine, oci.Sum(nil), "", oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	_, _, err = c.Manifest(t.Context(), alpine, oci.Sum(nil), oci.Ask{})
	wantCode(t, err, oci.Unavailable)
	if errors.Is(err, oci.ErrManifestUnknown) {
		t.Error("trouble was told as 404")
	}
}

func TestCatalogListsWhatIsHeld(t *testing.T) {
	s := newSource()
	c := newCache(t, s, Config{TTL: time.Hour})
	for _, path := range []string{"b/c", "b", "a-b/c", "a/b"} {
		repo := oci.Repository{Host: "docker.io", Path: path}
		s.pushImage(repo, "latest", []byte(path))
		if _, err := pull(t.Context(), c, repo, "latest"); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	last := ""
	for more := true; more; {
		var page []string
		var err error
		if page, more, err = c.Repositories(t.Context(), oci.Page{N: 3, Last: last}); err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		last = page[len(page)-1]
	}
	if got, want := strings.Join(all, " "), "docker.io/a-b/c docker.io/a/b docker.io/b docker.io/b/c"; got != want {
		t.Errorf("catalog %q, want %q", got, want)
	}
}
