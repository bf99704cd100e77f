package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"entrepot/internal/ocitest"
)

// An image whose pulls Docker Hub does not count is had though the quota is spent, by a
// check and a GET; and what is known of the quota outlives it.
func TestWhatCostsNoPullIsHadThoughTheQuotaIsSpent(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 2, Uncounted: "library/free"}})
	free := ocitest.Index(ocitest.RandomImage(1, 1000), ocitest.RandomImage(2, 1000))
	hub.Push("library/free", "1", free)
	for i, tag := range []string{"1", "2", "3", "4"} {
		hub.Push("library/app", tag, ocitest.RandomImage(uint64(10+i), 1000))
	}
	p := startProgram(t, hub, "ENTREPOT_PREFETCH=off", "ENTREPOT_QUEUE_WAIT=0s")
	client, o := newClient(t), operatorOf(t, p)
	want := func(path string, status int) {
		t.Helper()
		if got, body, _ := get(t, client, p.registry+path); got != status {
			t.Errorf("%s: %d %s, want %d", path, got, body, status)
		}
	}
	for _, tag := range []string{"1", "2"} {
		want("/v2/library/app/manifests/"+tag, http.StatusOK)
	}
	want("/v2/library/app/manifests/3", http.StatusTooManyRequests)
	want("/v2/library/free/manifests/1", http.StatusOK)
	for _, m := range free.Children {
		want("/v2/library/free/manifests/"+m.Digest.String(), http.StatusOK)
	}
	if n := hub.Count(ocitest.Match{Kind: ocitest.Manifest, Method: http.MethodGet, Repo: "library/free"}); n != 3 {
		t.Errorf("%d GETs of an index and its two manifests", n)
	}
	want("/v2/library/app/manifests/4", http.StatusTooManyRequests)
	s := o.statusAfter(int64(2 + 1 + 1 + len(free.Children) + 1))
	if q := s.Quotas; len(q) != 1 || q[0].Left != 0 || q[0].Limit != 2 {
		t.Errorf("quotas %+v, want one of 2 that is spent", q)
	}
	if got := s.Spent.Total; got.Failed != 2 || got.Limited != 2 || got.Denied != 0 {
		t.Errorf("failed: %+v, want two for want of quota", got)
	}
}

// What upstreams said of their limits is known again after a restart, to the account
// that it was said to: nothing is asked for in vain, and a list leaves the reserve alone.
func TestWhatUpstreamsSaidOutlivesARestart(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 5}})
	hub.AddUser("me", "hunter2")
	hub.AddUser("other", "hunter3")
	for i := range 5 {
		hub.Push("library/app", strconv.Itoa(i), ocitest.RandomImage(uint64(i), 1000))
	}
	data := t.TempDir()
	as := func(user, password string) []string {
		return []string{
			"ENTREPOT_DATA=" + data, "ENTREPOT_UPSTREAM_0_USERNAME=" + user, "ENTREPOT_UPSTREAM_0_PASSWORD=" + password,
			"ENTREPOT_QUOTA_RESERVE=60%", "ENTREPOT_QUEUE_WAIT=0s", "ENTREPOT_PREFETCH=off",
		}
	}
	client, spends := newClient(t), ocitest.Match{Kind: ocitest.Manifest, Method: http.MethodGet}
	pull := func(p *program, image string, want int) {
		t.Helper()
		if got, body, _ := get(t, client, p.registry+"/v2/library/app/manifests/"+image); got != want {
			t.Errorf("app:%s: %d %s, want %d", image, got, body, want)
		}
	}
	p := startProgram(t, hub, as("me", "hunter2")...)
	pull(p, "0", http.StatusOK)
	pull(p, "1", http.StatusOK)
	before := operatorOf(t, p).status().Quotas
	stopProgram(t, p)
	state := filepath.Join(data, "state", "quotas")
	content, err := os.ReadFile(state)
	if info, statErr := os.Stat(state); err != nil || statErr != nil || info.Mode().Perm() != 0o600 || bytes.Contains(content, []byte("hunter")) {
		t.Errorf("%v, %v: %s", err, info, content)
	}

	p = startProgram(t, hub, as("me", "hunter2")...)
	if diff := cmp.Diff(before, operatorOf(t, p).status().Quotas); diff != "" || len(before) != 1 || before[0].Account != "me" || before[0].Left != 3 {
		t.Errorf("quotas (-before +after):\n%s", diff)
	}
	stopProgram(t, p)

	hub.Reset()
	p = startProgram(t, hub, append(as("me", "hunter2"), "ENTREPOT_WARM=app@"+ocitest.RandomImage(2, 1000).Digest.String())...)
	o := operatorOf(t, p)
	for strings.Contains(o.must("warm"), `"status":"pending"`) || strings.Contains(o.must("warm"), `"status":"fetching"`) {
		if t.Context().Err() != nil {
			t.Fatal(o.must("warm"))
		}
	}
	if n := hub.CountedPulls(); n > 0 {
		t.Errorf("a list spends %d pulls of the reserve", n)
	}
	pull(p, "2", http.StatusOK)
	hub.Inject(&ocitest.Fault{Match: spends, Effect: ocitest.AbuseLimit()})
	pull(p, "3", http.StatusTooManyRequests)
	stopProgram(t, p)

	hub.Reset()
	p = startProgram(t, hub, as("me", "hunter2")...)
	pull(p, "4", http.StatusTooManyRequests)
	if lines := hub.Lines(); len(lines) > 0 {
		t.Errorf("who asked to be left alone is asked %q", lines)
	}
	stopProgram(t, p)

	p = startProgram(t, hub, as("other", "hunter3")...)
	if q := operatorOf(t, p).status().Quotas; len(q) > 0 {
		t.Errorf("another login has the quotas %+v", q)
	}
	pull(p, "4", http.StatusTooManyRequests)
	if n := hub.Count(spends); n != 1 {
		t.Errorf("another login keeps to another's pause: %q", hub.Lines())
	}
	stopProgram(t, p)

	if err := os.WriteFile(state, []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p = startProgram(t, hub, as("me", "hunter2")...)
	if q := operatorOf(t, p).status().Quotas; len(q) > 0 || !strings.Contains(p.log.String(), "version 99") {
		t.Errorf("from a foreign file: %+v\n%s", q, p.log)
	}
}

// A manifest that comes in pieces, or is another, is a pull to the registry all the same:
// who wants it is told what came of it, and nobody's quota goes there.
func TestABrokenManifestIsNotPaidForAgainAndAgain(t *testing.T) {
	for _, effect := range []ocitest.Effect{ocitest.Corrupt(100), ocitest.Cut(100), ocitest.Short(100), ocitest.Surplus(100)} {
		t.Run(effect.Do, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, PullLimit: 10}})
			hub.Push("library/broken", "latest", ocitest.RandomImage(1, 1000))
			hub.Push("library/well", "latest", ocitest.RandomImage(2, 1000))
			gets := ocitest.Match{Repo: "library/broken", Kind: ocitest.Manifest, Method: http.MethodGet}
			hub.Inject(&ocitest.Fault{Match: gets, Effect: effect})
			p, client := startProgram(t, hub), newClient(t)
			for range 20 {
				if status, body, _ := get(t, client, p.registry+"/v2/broken/manifests/latest"); status != http.StatusBadGateway {
					t.Errorf("got %d %s, want 502", status, body)
				}
			}
			if n := hub.Count(gets); n > 2 { // after 10 s, if the machine is so slow
				t.Errorf("it was asked for %d times", n)
			}
			if status, body, _ := get(t, client, p.registry+"/v2/well/manifests/latest"); status != http.StatusOK {
				t.Errorf("another image: %d %s", status, body)
			}
		})
	}
}
