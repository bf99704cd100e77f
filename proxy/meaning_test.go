package proxy

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestWordsThatAreKnown: that the same words were asked for before changes no
// answer.
func TestWordsThatAreKnown(t *testing.T) {
	g := newRegistry()
	hello := g.repo("docker.io/library/hello")
	body := `{"a":1}`
	want := hello.addManifest(manifestType, []byte(body), "latest")
	d := newDoor(t, g, Config{})
	const words = "/v2/hello/manifests/latest"
	for _, step := range []struct {
		method string
		status int
		move   bool // the tag, before
	}{
		{method: "GET", status: 200},
		{method: "GET", status: 200},
		{method: "HEAD", status: 200},
		{method: "PUT", status: 405},
		{method: "DELETE", status: 405},
		{method: "GET", status: 200, move: true},
		{method: "HEAD", status: 200},
	} {
		if step.move {
			body = `{"b":"moved"}`
			want = hello.addManifest(imageIndex, []byte(body), "latest")
		}
		got := d.do(step.method, words)
		rec := d.record()
		if got.StatusCode != step.status {
			t.Errorf("%s: %s, want %d", step.method, got.Status, step.status)
		}
		if step.status != 200 {
			continue
		}
		expectHeaders(t, got.Header, "Docker-Content-Digest", want.String(), "Etag", `"`+want.String()+`"`, "Content-Length", fmt.Sprint(len(body)), "Content-Type", hello.manifests[want].MediaType)
		if step.method == "GET" && got.body != body || rec.Reference != "latest" || rec.Kind != "manifest" {
			t.Errorf("%s: %q, %+v", step.method, got.body, rec)
		}
	}
}

// TestMoreWordsThanPlaces: words that lead to the same place are told apart.
func TestMoreWordsThanPlaces(t *testing.T) {
	h := New(newRegistry(), Config{Names: testNames()}).(*handler)
	for range 2 {
		for i := range 2 * meaningPlaces {
			name := fmt.Sprintf("org/app-%d", i)
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/"+name+"/manifests/latest?ns=ghcr.io", nil)
			at := h.meanings.find(r)
			if at == nil {
				var err error
				if at, err = newMeaning(h.cfg.Names, r); err != nil {
					t.Fatal(err)
				}
				h.meanings.keep(at)
				if h.meanings.find(r) != at {
					t.Fatalf("%s is not known", name)
				}
			}
			if at.repo.String() != "ghcr.io/"+name || at.req.Name != name {
				t.Fatalf("%s leads to %s", name, at.repo)
			}
		}
	}
}

// TestLongWordsAreNotKept: a stranger cannot fill memory with them.
func TestLongWordsAreNotKept(t *testing.T) {
	h := New(newRegistry(), Config{Names: testNames()}).(*handler)
	for _, target := range []string{
		"/v2/hello/manifests/latest?x=" + strings.Repeat("y", maxWords),
		"/v2/hello/manifests/latest?ns=docker.io&" + strings.Repeat("&", maxWords),
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", target, nil)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if h.meanings.find(r) != nil {
			t.Errorf("%.60s... is kept", target)
		}
	}
}
