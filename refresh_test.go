package main

import (
	"net/http"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// Whatever is remembered of a tag, a refresh asks, and says what came of it.
func TestRefreshChecksNow(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	first, second := ocitest.RandomImage(1, 1000), ocitest.RandomImage(2, 1000)
	hub.Push("library/alpine", "latest", first)
	hub.Push("library/alpine", "3.20", first)
	hub.Push("team/app", "1", first)
	dir := t.TempDir()
	p := startProgram(t, hub, "ENTREPOT_DATA="+dir, "ENTREPOT_NEGATIVE_TTL=1h")
	client := newClient(t)
	common := []string{"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_DATA=" + dir}
	server := operator{t, environ(append(common, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	for _, tag := range []string{"latest", "3.20"} {
		p.pull(t, client, "alpine", tag, first)
	}
	hub.Reset()
	name := func(d oci.Digest) string { return "sha256:" + d.Hex()[:12] }

	wantLines(t, server.must("refresh", "--table", "alpine"), "docker.io/library/alpine:latest unchanged, "+name(first.Digest))
	hub.Tag("library/alpine", "latest", second.Digest)
	hub.Push("library/alpine", "latest", second)
	wantLines(t, server.must("refresh", "--table", "alpine"), "docker.io/library/alpine:latest moved from "+name(first.Digest)+" to "+name(second.Digest))
	wantLines(t, server.must("refresh", "alpine"), `\{"repository":"docker.io/library/alpine","reference":"latest","outcome":"unchanged","before":"`+second.Digest.String()+`","after":"`+second.Digest.String()+`"\}`)
	if n, gets := hub.Count(ocitest.Match{Kind: ocitest.Manifest, Method: "HEAD"}), hub.Count(ocitest.Match{Kind: ocitest.Manifest, Method: "GET"}); n != 3 || gets != 1 {
		t.Errorf("%d HEADs and %d GETs of manifests, want three, and one for what has moved", n, gets)
	}

	// What did not exist a moment ago.
	if status, _, _ := get(t, client, p.registry+"/v2/alpine/manifests/edge"); status != http.StatusNotFound {
		t.Fatal(status)
	}
	hub.Push("library/alpine", "edge", second)
	if status, _, _ := get(t, client, p.registry+"/v2/alpine/manifests/edge"); status != http.StatusNotFound {
		t.Errorf("a 404 is not remembered: %d", status)
	}
	wantLines(t, server.must("refresh", "--table", "alpine:edge"), "docker.io/library/alpine:edge new, "+name(second.Digest))
	if status, _, _ := get(t, client, p.registry+"/v2/alpine/manifests/edge"); status != http.StatusOK {
		t.Errorf("after the refresh: %d", status)
	}

	// Patterns are over what is held, and one that fails does not keep the others back.
	hub.Untag("library/alpine", "3.20")
	out, err := server.run("refresh", "--table", "alpine:*", "docker.io/team/app:2")
	wantLines(t, out, "docker.io/library/alpine:edge unchanged, .*", "docker.io/library/alpine:latest unchanged, .*")
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "refresh docker.io/library/alpine:3.20: gone: upstream has deleted it") || !strings.Contains(err.Error(), "refresh docker.io/team/app:2: gone: ") {
		t.Errorf("what is gone: %v", err)
	}
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Answer(http.StatusBadGateway)})
	server.refused(1, []string{"refresh docker.io/library/alpine:edge: unconfirmed: upstream cannot confirm it"}, "refresh", "--all", "docker.io/library/*")

	server.refused(2, []string{"cannot change"}, "refresh", "alpine@"+first.Digest.String())
	server.refused(2, []string{"add --all"}, "refresh", "*")
	server.refused(1, []string{"refresh ghcr.io/x/y:latest: ", "is not an upstream of this server"}, "refresh", "ghcr.io/x/y")
	stopProgram(t, p)
	operator{t, environ(append(common, "ENTREPOT_ADMIN_LISTEN=")...)}.refused(1, []string{"only a running server can do that"}, "refresh", "alpine")
}

// A pause that a registry asked for is no refusal that a refresh forgets.
func TestRefreshKeepsPauses(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.Push("library/alpine", "latest", ocitest.RandomImage(1, 1000))
	dir := t.TempDir()
	p := startProgram(t, hub, "ENTREPOT_DATA="+dir)
	defer stopProgram(t, p)
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Manifest}, Effect: ocitest.RetryLater(http.StatusTooManyRequests, "3600")})
	if status, _, _ := get(t, newClient(t), p.registry+"/v2/alpine/manifests/latest"); status != http.StatusTooManyRequests {
		t.Fatal(status)
	}
	hub.Reset()
	server := operator{t, environ("ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_DATA="+dir, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))}
	server.refused(1, []string{"refresh docker.io/library/alpine:latest: unconfirmed: localhost:", "asked us to wait"}, "refresh", "alpine")
	if n := len(hub.Requests()); n > 0 {
		t.Errorf("%d requests while it asked us to wait: %v", n, hub.Requests())
	}
}

// What a tag has moved to is tried again, and where it cannot be had yet, a check says
// what clients get instead.
func TestRefreshTellsOfWhatCannotBeHad(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	old, next := ocitest.RandomImage(1, 1000), ocitest.RandomImage(2, 1000)
	hub.Push("library/alpine", "latest", old)
	p := startProgram(t, hub, "ENTREPOT_TAG_TTL=0s", "ENTREPOT_PREFETCH=off")
	client, server := newClient(t), operatorOf(t, p)
	p.pull(t, client, "alpine", "latest", old)
	hub.Push("library/alpine", "latest", next)
	lost := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Answer(404)})
	get(t, client, p.registry+"/v2/alpine/manifests/latest")
	get(t, client, p.registry+"/v2/alpine/blobs/"+next.Blobs[0].Digest.String())
	p.pull(t, client, "alpine", "latest", old)
	server.refused(1, []string{"refresh docker.io/library/alpine:latest: unconfirmed: it has moved to " + next.Digest.String(), "clients get it as it was"}, "refresh", "alpine")
	p.pull(t, client, "alpine", "latest", old)
	lost.Remove()
	wantLines(t, server.must("refresh", "--table", "alpine"), "docker.io/library/alpine:latest unchanged, .*")
	p.pull(t, client, "alpine", "latest", next)
}
