package main

import (
	"net/http"
	"testing"

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
	if q := o.status().Quotas; len(q) != 1 || q[0].Left != 0 || q[0].Limit != 2 {
		t.Errorf("quotas %+v, want one of 2 that is spent", q)
	}
}
