package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"entrepot/admin"
	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// What is set reaches what it is about: a running program over fake registries,
// and what they saw.

func TestAccountsByPrefix(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	for user, repo := range map[string]string{"base": "corp/app", "team": "team/app", "deep": "team/deep/app"} {
		hub.AddUser(user, "pw-"+user)
		hub.Push(repo, "1", ocitest.RandomImage(1, 1000))
		hub.Private(repo, user)
	}
	hub.Push("teams/app", "1", ocitest.RandomImage(2, 1000))
	hub.Private("teams/app", "base")
	p := startProgram(t, hub,
		"ENTREPOT_DOCKERHUB_USERNAME=base", "ENTREPOT_DOCKERHUB_PASSWORD=pw-base",
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=team", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD_FILE="+writeFile(t, "pw-team\n"),
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX=team/deep", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_USERNAME=deep", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PASSWORD=pw-deep",
	)
	client := newClient(t)
	for repo, image := range map[string]ocitest.Image{
		"corp/app": ocitest.RandomImage(1, 1000), "team/app": ocitest.RandomImage(1, 1000),
		"team/deep/app": ocitest.RandomImage(1, 1000), "teams/app": ocitest.RandomImage(2, 1000),
	} {
		p.pull(t, client, repo, "1", image)
	}
}

// A changed password is tried at once, though the refusal of the one before is
// still remembered.
func TestAChangedPasswordForgetsRefusals(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(10, 1000)
	hub.AddUser("me", "right")
	hub.Push("library/app", "1", image)
	hub.Private("library/app", "me")
	file := writeFile(t, "wrong password\n")
	p := startProgram(t, hub, "ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD_FILE="+file, "ENTREPOT_NEGATIVE_TTL=1h")
	client := newClient(t)
	for range 2 {
		if status, body, _ := get(t, client, p.registry+"/v2/library/app/manifests/1"); status != http.StatusForbidden {
			t.Fatalf("with a wrong password: %d %s", status, body)
		}
	}
	if err := os.WriteFile(file, []byte("right\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.pull(t, client, "app", "1", image)
}

func TestMirrorsAreAskedInTheirOrder(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	mirror := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	image := ocitest.RandomImage(3, 100_000)
	hub.Push("library/app", "1", image)
	mirror.Push("library/app", "1", image)
	other := ocitest.RandomImage(4, 1000)
	hub.Push("library/other", "1", other)
	p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_URL_0="+mirror.URL(), "ENTREPOT_UPSTREAM_0_URL_0_FIRST=true")
	client := newClient(t)
	p.pull(t, client, "app", "1", image)
	if lines := hub.Lines(); len(lines) > 0 {
		t.Errorf("the registry was asked for what the first address has: %q", lines)
	}
	p.pull(t, client, "other", "1", other) // only the registry has it
	mirror.Inject(&ocitest.Fault{Effect: ocitest.Answer(503)})
	third := ocitest.RandomImage(5, 1000)
	hub.Push("library/third", "1", third)
	p.pull(t, client, "third", "1", third)
}

// A mirror that says nothing leaves time for the registry, also of the shorter time
// that is set.
func TestAMuteMirrorLeavesTimeForTheRegistry(t *testing.T) {
	hub, mirror := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(3, 1000)
	hub.Push("library/app", "1", image)
	mirror.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
	p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_URL_0="+mirror.URL(), "ENTREPOT_UPSTREAM_0_URL_0_FIRST=true", "ENTREPOT_HEADER_TIMEOUT=3s")
	if status, body, _ := get(t, newClient(t), p.registry+"/v2/library/app/manifests/"+image.Digest.String()); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
}

// A mirror that gave wrong bytes costs no second image, and operators can see which
// it is.
func TestAMirrorThatLiesIsAskedLast(t *testing.T) {
	hub, mirror := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewHub(t, ocitest.Config{})
	first, second := ocitest.RandomImage(3, 1000), ocitest.RandomImage(4, 1000)
	for _, h := range []*ocitest.Hub{hub, mirror} {
		h.Push("library/first", "1", first)
		h.Push("library/second", "1", second)
	}
	mirror.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Corrupt(10)})
	p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_URL_0="+mirror.URL(), "ENTREPOT_UPSTREAM_0_URL_0_FIRST=true")
	client := newClient(t)
	p.pull(t, client, "first", "1", first) // small blobs go out when they are proven
	mirror.Reset()
	p.pull(t, client, "second", "1", second)
	if lines := mirror.Lines(); len(lines) > 0 {
		t.Errorf("the mirror that had lied was asked %q", lines)
	}
	host := strings.TrimPrefix(mirror.URL(), "http://")
	p.log.await(t, `"host":"`+host+`"`)
	p.log.await(t, "upstream: wrong bytes")
	o := operatorOf(t, p)
	if b := o.status().Breakers; !slices.ContainsFunc(b, func(b admin.Breaker) bool { return b.Host == host && b.Why == "wrong bytes" && !b.Behind.IsZero() }) {
		t.Errorf("status says %+v", b)
	}
	wantLines(t, o.must("status", "--table"), `HOSTS  1 of 2 in trouble`, `  `+host+` +wrong bytes: others are asked before it for 9m\d\ds`)
	if _, scrape, _ := get(t, client, p.admin+"/metrics"); !strings.Contains(scrape, "\nentrepot_hosts_behind{upstream=\"docker.io\"} 1\n") {
		t.Error("the metrics know of no address that is asked last")
	}
}

// Where bytes that came from two addresses are wrong, as one breaks off and one lies, they
// are fetched from one alone: a pull more, at most, is lost to find out which.
func TestABlobThatTwoAddressesSpoilComesFromOne(t *testing.T) {
	right, wrong := ocitest.RandomImage(3, 60_000), ocitest.Blob(9, 60_000)
	layer := right.Blobs[1]
	wrong.Digest = layer.Digest
	for name, row := range map[string]struct {
		first bool // the mirror is asked first; who is asked first breaks off
		want  []int
		lied  bool // the mirror is known to have
	}{
		"the registry breaks off, the mirror lies": {false, []int{200}, false},
		"the mirror breaks off, and lies":          {true, []int{502, 200}, true},
	} {
		t.Run(name, func(t *testing.T) {
			hub, mirror := ocitest.NewHub(t, ocitest.Config{}), ocitest.NewHub(t, ocitest.Config{})
			hub.Push("library/app", "1", right)
			mirror.Push("library/app", "1", right)
			mirror.PushBlob("library/app", wrong)
			cuts := hub
			if row.first {
				cuts = mirror
			}
			cuts.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN, Reference: layer.Digest.String()}, Effect: ocitest.Cut(40_000)})
			p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_URL_0="+mirror.URL(), fmt.Sprint("ENTREPOT_UPSTREAM_0_URL_0_FIRST=", row.first), "ENTREPOT_PREFETCH=off")
			client := newClient(t)
			get(t, client, p.registry+"/v2/library/app/manifests/1")
			for n, want := range row.want {
				status, body, _ := get(t, client, p.registry+"/v2/library/app/blobs/"+layer.Digest.String())
				if status != want || status == http.StatusOK && body != string(layer.Bytes()) {
					t.Errorf("pull %d: %d, %d bytes", n, status, len(body))
				}
			}
			host := strings.TrimPrefix(mirror.URL(), "http://")
			b := operatorOf(t, p).status().Breakers
			if lied := slices.ContainsFunc(b, func(b admin.Breaker) bool { return b.Host == host && b.Why == "wrong bytes" }); lied != row.lied {
				t.Errorf("that the mirror lies is known: %v, %+v", lied, b)
			}
		})
	}
}

func TestOneUpstreamIsSetOffline(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(6, 1000)
	hub.Push("library/app", "1", image)
	data := "ENTREPOT_DATA=" + t.TempDir()
	p := startProgram(t, hub, data)
	client := newClient(t)
	p.pull(t, client, "app", "1", image)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	hub.Reset()
	p = startProgram(t, hub, data, "ENTREPOT_UPSTREAM_0_OFFLINE=true", "ENTREPOT_TAG_TTL=0s")
	p.pull(t, client, "app", "1", image)
	if status, body, _ := get(t, client, p.registry+"/v2/library/app/manifests/2"); status != http.StatusServiceUnavailable || !strings.Contains(body, "offline") {
		t.Errorf("what is not held: %d %s", status, body)
	}
	if lines := hub.Lines(); len(lines) > 0 {
		t.Errorf("an upstream that is offline was asked %q", lines)
	}
	if s := operatorOf(t, p).status(); !slices.Equal(s.Offline, []string{"docker.io"}) {
		t.Errorf("status says that %q are offline", s.Offline)
	}
}

// TestDeletedTags: by default what is held outlives its deletion; where that is
// set otherwise, it does not.
func TestDeletedTags(t *testing.T) {
	for _, keep := range []bool{true, false} {
		hub := ocitest.NewHub(t, ocitest.Config{})
		image := ocitest.RandomImage(7, 1000)
		hub.Push("library/app", "1", image)
		setting := "ENTREPOT_UPSTREAM_0_KEEP_DELETED=true"
		if !keep {
			setting = "ENTREPOT_UPSTREAM_0_KEEP_DELETED=false"
		}
		p := startProgram(t, hub, setting, "ENTREPOT_TAG_TTL=0s")
		client := newClient(t)
		p.pull(t, client, "app", "1", image)
		hub.Untag("library/app", "1")
		status, _, header := get(t, client, p.registry+"/v2/library/app/manifests/1")
		switch {
		case keep && (status != http.StatusOK || header.Get("X-Entrepot-Cache") != "stale" || !strings.Contains(header.Get("Warning"), "deleted")):
			t.Errorf("kept: %d %s %s", status, header.Get("X-Entrepot-Cache"), header.Get("Warning"))
		case !keep && (status != http.StatusNotFound || header.Get("X-Entrepot-Cache") != ""):
			t.Errorf("not kept: %d %s", status, header.Get("X-Entrepot-Cache"))
		}
	}
}

// TestWhoMayForceACheck: who comes from where that is allowed, by no proxy, and has
// a name where there are users.
func TestWhoMayForceACheck(t *testing.T) {
	const local = "127.0.0.0/8,::1/128"
	alice := base64.StdEncoding.EncodeToString([]byte("alice:wonderland"))
	for _, row := range []struct {
		from   string
		users  bool
		header []string
		want   bool
	}{
		{local, false, nil, true},
		{"192.0.2.0/24", false, nil, false},
		{"", false, nil, false},
		{local, false, []string{"X-Forwarded-For", "198.51.100.7"}, false},
		{local, false, []string{"Forwarded", "for=198.51.100.7"}, false},
		{local, false, []string{"X-Real-IP", "127.0.0.1"}, false},
		{local, true, nil, false},
		{local, true, []string{"Authorization", "Basic " + alice}, true},
		{local, true, []string{"Authorization", "Basic " + alice, "X-Forwarded-For", "198.51.100.7"}, false},
		{"192.0.2.0/24", true, []string{"Authorization", "Basic " + alice}, false},
	} {
		hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
		hub.Push("library/app", "1", ocitest.RandomImage(8, 1000))
		settings := []string{"ENTREPOT_REFRESH_FROM=" + row.from}
		if row.users {
			users := writeFile(t, string(usersFile(t, map[string]string{"alice": "wonderland"})))
			rules := writeFile(t, "rules:\n  - who: [alice, anonymous]\n    repositories: [\"**\"]\n")
			settings = append(settings, "ENTREPOT_USERS_FILE="+users, "ENTREPOT_ACCESS_FILE="+rules, "ENTREPOT_TOKEN_KEY="+testTokenKey)
		}
		p := startProgram(t, hub, settings...)
		client := newClient(t)
		for range 2 {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.registry+"/v2/library/app/manifests/1", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Cache-Control", "no-cache")
			for i := 0; i < len(row.header); i += 2 {
				req.Header.Set(row.header[i], row.header[i+1])
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%+v: status %d", row, resp.StatusCode)
			}
		}
		want := 1
		if row.want {
			want = 2
		}
		if heads, gets := hub.Count(ocitest.Match{Kind: ocitest.Manifest, Method: "HEAD"}), hub.Count(ocitest.Match{Kind: ocitest.Manifest, Method: "GET"}); heads != want || gets != 1 {
			t.Errorf("%+v: %d HEADs and %d GETs, want %d and 1", row, heads, gets, want)
		}
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestForeignLayersComeFromHostsThatAreAllowed(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	place := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	layer := ocitest.Blob(9, 50_000)
	layer.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	place.PushBlob("windows/servercore", layer)
	at := place.URL() + "/v2/windows/servercore/blobs/" + layer.Digest.String()
	image := ocitest.ImageSpec{Docker: true, Layers: []ocitest.Content{layer}, URLs: map[oci.Digest][]string{layer.Digest: {"https://elsewhere.example/x", at}}}.Build()
	hub.Push("library/windows", "1", image)
	hub.DeleteDigest("library/windows", layer.Digest)
	client := newClient(t)

	p := startProgram(t, hub)
	get(t, client, p.registry+"/v2/library/windows/manifests/1")
	status, body, _ := get(t, client, p.registry+"/v2/library/windows/blobs/"+layer.Digest.String())
	if status != http.StatusForbidden || !strings.Contains(body, "DENIED") || !strings.Contains(body, "ENTREPOT_FOREIGN_HOSTS") || !strings.Contains(body, "elsewhere.example") {
		t.Errorf("a host that nobody allowed: %d %s", status, body)
	}
	if lines := place.Lines(); len(lines) > 0 {
		t.Errorf("it was asked %q", lines)
	}

	// It redirects to where its content is, which has to be allowed, too.
	p = startProgram(t, hub, "ENTREPOT_FOREIGN_HOSTS="+place.URL())
	get(t, client, p.registry+"/v2/library/windows/manifests/1")
	status, body, _ = get(t, client, p.registry+"/v2/library/windows/blobs/"+layer.Digest.String())
	if status != http.StatusForbidden || !strings.Contains(body, "ENTREPOT_FOREIGN_HOSTS") || !strings.Contains(body, place.CDNURL()) {
		t.Errorf("redirected to a host that nobody allowed: %d %s", status, body)
	}
	if n := place.Count(ocitest.Match{Role: ocitest.CDN}); n > 0 {
		t.Errorf("that host was asked %d times", n)
	}

	p = startProgram(t, hub, "ENTREPOT_FOREIGN_HOSTS="+place.URL()+","+place.CDNURL())
	p.pull(t, client, "windows", "1", image)
	place.Reset()
	p.pull(t, client, "windows", "1", image)
	if lines := place.Lines(); len(lines) > 0 {
		t.Errorf("what is held cost %q", lines)
	}
}

// What cannot be had of a foreign place is not asked for by each client again, nor
// where the bytes are here for another repository; the log is for what fails.
func TestForeignPlacesAreNotAskedAgainAndAgain(t *testing.T) {
	layer := ocitest.Blob(9, 50_000)
	layer.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	path := "/v2/windows/servercore/blobs/" + layer.Digest.String()
	for _, row := range []struct {
		name   string
		place  ocitest.Habits
		fault  ocitest.Effect
		pushed bool
		status int
		costs  int // requests to the place, and where it redirects
		past   int // likewise where the bytes are here for another repository
		warned int
	}{
		{"it has the layer", ocitest.Habits{InlineBlobs: true}, ocitest.Effect{}, true, 200, 1, 1, 0},
		{"it has no such layer", ocitest.Habits{InlineBlobs: true}, ocitest.Effect{}, false, 404, 1, 1, 1},
		{"it has other bytes", ocitest.Habits{InlineBlobs: true}, ocitest.Corrupt(7), true, 502, 2, 1, 1},
		{"it redirects to a private network", ocitest.Habits{RedirectTo: "http://169.254.169.254"}, ocitest.Effect{}, true, 502, 1, 1, 1},
	} {
		for _, held := range []bool{false, true} {
			t.Run(row.name+map[bool]string{true: ", and it is held for another"}[held], func(t *testing.T) {
				hub := ocitest.NewHub(t, ocitest.Config{})
				row.place.Auth = ocitest.NoAuth
				place := ocitest.NewHub(t, ocitest.Config{Habits: row.place})
				if row.pushed {
					place.PushBlob("windows/servercore", layer)
				}
				if row.fault.Do != "" {
					place.Inject(&ocitest.Fault{Effect: row.fault})
				}
				image := ocitest.ImageSpec{Docker: true, Layers: []ocitest.Content{layer}, URLs: map[oci.Digest][]string{layer.Digest: {place.URL() + path}}}.Build()
				hub.Push("library/windows", "1", image)
				hub.DeleteDigest("library/windows", layer.Digest)
				settings := []string{"ENTREPOT_FOREIGN_HOSTS=" + place.URL() + ",http://169.254.169.254"}
				costs, warned := row.costs, row.warned
				client := newClient(t)
				if held {
					hub.AddUser("me", "secret")
					owned := ocitest.ImageSpec{Layers: []ocitest.Content{layer}}.Build()
					hub.Push("corp/owner", "1", owned)
					settings = append(settings, "ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=secret")
					costs, warned = row.past, 0
				}
				p := startProgram(t, hub, settings...)
				if held {
					get(t, client, p.registry+"/v2/corp/owner/manifests/1")
					get(t, client, p.registry+"/v2/corp/owner/blobs/"+layer.Digest.String())
					awaitNoFills(t, client, p.admin)
				}
				get(t, client, p.registry+"/v2/library/windows/manifests/1")
				for range 2 {
					for _, ask := range []struct{ method, rang string }{{"GET", ""}, {"GET", "bytes=0-99"}, {"HEAD", ""}} {
						req, err := http.NewRequestWithContext(t.Context(), ask.method, p.registry+"/v2/library/windows/blobs/"+layer.Digest.String(), http.NoBody)
						if err != nil {
							t.Fatal(err)
						}
						if ask.rang != "" {
							req.Header.Set("Range", ask.rang)
						}
						resp, err := client.Do(req)
						if err != nil {
							t.Fatal(err)
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if status := resp.StatusCode; status != row.status && !(row.status == http.StatusOK && status == http.StatusPartialContent) && err == nil {
							t.Errorf("%+v: %d %.200q", ask, status, body)
						}
					}
				}
				if n := place.Count(ocitest.Match{}); n != costs {
					t.Errorf("the place was asked %d times, want %d: %q", n, costs, place.Lines())
				}
				if err := p.stop(); err != nil {
					t.Fatal(err)
				}
				if n := strings.Count(p.log.String(), "a fill failed"); n != warned {
					t.Errorf("%d failed fills in the log, want %d:\n%s", n, warned, p.log)
				}
			})
		}
	}
}
