package main

import (
	"net/http"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// TestCacheRules asks through the front door: what is pulled by a rule comes from
// its source, with the rule's account, and is held as what it is there.
func TestCacheRules(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.AddUser("robot", "secret")
	hub.AddUser("other", "secret")
	open, private, other := ocitest.RandomImage(1, 100), ocitest.RandomImage(2, 100), ocitest.RandomImage(3, 100)
	hub.Push("library/alpine", "latest", open)
	hub.Push("team/app", "1", private)
	hub.Push("team/special", "1", other)
	hub.Private("team/app", "robot")
	hub.Private("team/special", "other")
	p := startProgram(t, hub,
		"ENTREPOT_RULE_0_TARGET=ours/*", "ENTREPOT_RULE_0_SOURCE=docker.io/team/*", "ENTREPOT_RULE_0_USERNAME=robot", "ENTREPOT_RULE_0_PASSWORD=secret",
		"ENTREPOT_RULE_1_TARGET=ours/special", "ENTREPOT_RULE_1_SOURCE=docker.io/team/special", "ENTREPOT_RULE_1_USERNAME=other", "ENTREPOT_RULE_1_PASSWORD_FILE="+writeFile(t, "secret\n"),
		"ENTREPOT_RULE_2_TARGET=hub/*", "ENTREPOT_RULE_2_SOURCE=docker.io/*",
		"ENTREPOT_RULE_3_TARGET=old.example/*", "ENTREPOT_RULE_3_SOURCE=docker.io/library/*",
	)
	client := newClient(t)
	p.pull(t, client, "ours/app", "1", private)
	p.pull(t, client, "ours/special", "1", other)
	p.pull(t, client, "hub/alpine", "latest", open)
	hub.Reset()
	// The same repositories by other names: all of it is held.
	for _, name := range []string{"alpine", "hub/library/alpine", "docker.io/library/alpine", "old.example/alpine"} {
		p.pull(t, client, name, "latest", open)
	}
	for _, name := range []string{"hub/team/app", "team/app", "docker.io/team/app"} {
		p.pull(t, client, name, "1", private)
	}
	status, body, header := get(t, client, p.registry+"/v2/alpine/manifests/latest?ns=old.example")
	if status != http.StatusOK || body != string(open.Bytes()) || header.Get("OCI-Namespace") != "old.example" {
		t.Errorf("by ns: %d, namespace %q", status, header.Get("OCI-Namespace"))
	}
	wantRequests(t, hub)
	// Who names an upstream means that upstream, whatever the rules are.
	if status, body, _ := get(t, client, p.registry+"/v2/ours/app/manifests/1?ns=docker.io"); status != http.StatusNotFound && status != http.StatusForbidden {
		t.Errorf("docker.io/ours/app, which there is not: %d %s", status, body)
	}
	// A repository that may not have somebody else's private layer does not get it.
	status, body, _ = get(t, client, p.registry+"/v2/hub/alpine/blobs/"+private.Blobs[1].Digest.String())
	if status != http.StatusNotFound {
		t.Errorf("a private layer under a public name: %d %.80s", status, body)
	}
	if _, body, _ := get(t, client, p.registry+"/v2/_catalog"); !strings.Contains(body, "docker.io/library/alpine") || strings.Contains(body, "ours/") {
		t.Errorf("the catalogue is not in path form: %s", body)
	}
}

// TestRulesAreShown, by a server as at rest.
func TestRulesAreShown(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 100_000)
	hub.Push("team/app", "1", image)
	hub.Push("library/alpine", "latest", ocitest.Index(image, ocitest.ImageSpec{Platform: oci.Platform{OS: "linux", Architecture: "arm64"}, Layers: []ocitest.Content{ocitest.Blob(2, 1000)}}.Build()))
	dir := t.TempDir()
	common := []string{
		"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_DATA=" + dir, "ENTREPOT_OWN_NAMES=cache.example",
		"ENTREPOT_RULE_0_TARGET=ours/*", "ENTREPOT_RULE_0_SOURCE=docker.io/team/*", "ENTREPOT_RULE_0_USERNAME=robot", "ENTREPOT_RULE_0_PASSWORD=secret",
		"ENTREPOT_RULE_1_TARGET=app", "ENTREPOT_RULE_1_SOURCE=docker.io/team/app",
	}
	hub.AddUser("robot", "secret")
	p := startProgram(t, hub, common...)
	client := newClient(t)
	p.pull(t, client, "ours/app", "1", image)
	if status, body, _ := get(t, client, p.registry+"/v2/alpine/manifests/latest"); status != http.StatusOK {
		t.Fatal(status, body)
	}
	awaitNoFills(t, client, p.admin)
	hub.Reset()
	server := operator{t, environ(append(common, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	rest := operator{t, environ(append(common, "ENTREPOT_ADMIN_LISTEN=")...)}
	for _, o := range []operator{server, rest} {
		wantLines(t, o.must("rules", "--table"), `app +docker.io/team/app +-`, `ours/\* +docker.io/team/\* +robot`)
		wantLines(t, o.must("rules", "--json"), `{"target":"app","source":"docker.io/team/app"}`, `{"target":"ours/\*","source":"docker.io/team/\*","account":"robot"}`)
		wantLines(t, o.must("explain", "--table", "cache.example/ours/app:1"),
			`repository +docker.io/team/app`, `rule +ours/\* => docker.io/team/\*`, `asked as +robot`, `who may +everybody who reaches the port`,
			`held +true`, `fresh +yes: upstream is not asked \(checked AGO, believed for 5m\)`, `this image +0 +0 +0 +0B`)
		wantLines(t, o.must("explain", "--table", "app:2"), `rule +app => docker.io/team/app`,
			`held +false`, `fresh +not held: upstream is asked`, `this image +1 +1 +0 +0B +and what only upstream can tell`)
		// An index of which nothing else is held: what its manifests list is not known,
		// unless another repository has brought it.
		wantLines(t, o.must("explain", "--table", "--ns", "docker.io", "library/alpine"),
			`rule +none: the name means what it says`, `linux/amd64 +3 +0 +0 +0B`, `linux/arm64 +0 +1 +0 +0B +and what only upstream can tell`)
		wantLines(t, o.must("explain", "--table", "team/app@"+image.Digest.String()), `fresh +a digest is for ever`, `reference +sha256:.*`)
		out := o.must("explain", "--json", "ours/app:1")
		if !strings.Contains(out, `"rule":{"target":"ours/*","source":"docker.io/team/*","account":"robot"}`) || !strings.Contains(out, `"pulls":[{"heads":0,"manifests":0,"blobs":0,"bytes":0,"atLeast":false}]`) {
			t.Errorf("explained as %s", out)
		}
		o.refused(1, []string{"explain \"a\": evil.example is not an upstream of this server"}, "explain", "--ns", "evil.example", "a")
		o.refused(1, []string{"explain", "not a tag"}, "explain", "a:::")
		if o.environ[len(o.environ)-1] != rest.environ[len(rest.environ)-1] {
			stopProgram(t, p)
		}
	}
	wantRequests(t, hub)
}

// TestExplainTellsWhatAPullWouldMeet: an upstream that is down, what is left of
// the quota, and a rule that refuses it, which costs nothing.
func TestExplainTellsWhatAPullWouldMeet(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}})
	image := ocitest.RandomImage(1, 1000)
	hub.Push("library/alpine", "1", image)
	settings := []string{"ENTREPOT_DATA=" + t.TempDir(), "ENTREPOT_POLICY_0_MATCH=docker.io/evil/*", "ENTREPOT_POLICY_0_ACTION=deny"}
	p := startProgram(t, hub, settings...)
	client := newClient(t)
	p.pull(t, client, "alpine", "1", image)
	o := operator{t, environ(append(settings, "ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	out := o.must("explain", "--table", "alpine:2")
	wantLines(t, out, `quota +99 left of 100, the last 10 for what is not held, resets in ≤ .*`, `this image +1 +1 +0 +0B +and what only upstream can tell`)
	if strings.Contains(out, "upstream now") {
		t.Errorf("nothing is wrong:\n%s", out)
	}
	wantLines(t, o.must("explain", "--table", "evil/app:1"), `policy +denied by rule 0 \(docker.io/evil/\*\)`, `a pull is refused, and costs nothing`)
	if out := o.must("explain", "--table", "evil/app:1"); strings.Contains(out, "MANIFESTS") {
		t.Errorf("a refused pull has a price:\n%s", out)
	}
	hub.Close()
	for range 20 {
		get(t, client, p.registry+"/v2/alpine/manifests/3")
	}
	wantLines(t, o.must("explain", "--table", "alpine:2"), `upstream now +localhost:\d+ down for .*`)
}

// TestExplainForeseesWhatUpstreamIsNotAskedFor: what it says of a pull is what one
// then gets.
func TestExplainForeseesWhatUpstreamIsNotAskedFor(t *testing.T) {
	spent := ocitest.QuotaSpent()
	spent.Header.Set("Retry-After", "3600")
	const (
		asked   = `no: upstream is asked, by HEAD, whether it has moved`
		outcome = `this image +\d +\d +\d +\S+`
	)
	type fate struct {
		fresh, pull string // as explained
		status      int    // of the manifest, or of a layer where that is held
		cache       string
	}
	tests := []struct {
		name                  string
		trouble               *ocitest.Fault // in what is asked next; nil: none
		closed                bool           // the hub is
		old, missing, partial fate
	}{
		{
			"all is well", nil, false,
			fate{asked, outcome, 200, "hit"},
			fate{`not held: upstream is asked`, outcome + ` +and what only upstream can tell`, 200, "miss"},
			fate{`yes: upstream is not asked`, outcome, 200, "miss"},
		},
		{
			"the quota is spent", &ocitest.Fault{Match: ocitest.Match{Method: http.MethodGet}, Effect: spent, Times: 1}, false,
			fate{asked + `; if so, it is served as it is held, since the pulls of our address are spent: there are more in \S+`, outcome, 200, "hit"},
			fate{`not held: upstream is asked`, outcome + ` +but now 429: the pulls of our address are spent: there are more in (1h0m0s|59m\S+)`, 429, ""},
			fate{`yes: upstream is not asked`, outcome, 200, "miss"},
		},
		{
			"the host wants to be left alone", &ocitest.Fault{Effect: ocitest.AbuseLimit(), Times: 1}, false,
			fate{`no, but upstream is not asked now: it is served as it is held, since localhost:\d+ asked us to wait: the next request is in \S+`, outcome, 200, "stale"},
			fate{`not held, and upstream is not asked now`, outcome + ` +but now 429: localhost:\d+ asked us to wait: the next request is in (1m0s|5\ds)`, 429, ""},
			fate{`yes: upstream is not asked`, outcome + ` +but now 429: localhost:\d+ asked us to wait: .*`, 429, ""},
		},
		{
			"it does not answer", nil, true,
			fate{`no, but upstream is not asked now: it is served as it is held, since localhost:\d+: .*; it is tried again in \S+`, outcome, 200, "stale"},
			fate{`not held, and upstream is not asked now`, outcome + ` +but now 503: localhost:\d+: .*; it is tried again in \S+`, 503, ""},
			fate{`yes: upstream is not asked`, outcome + ` +but now 503: localhost:\d+: .*; it is tried again in \S+`, 503, ""},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
			images := map[string]ocitest.Image{}
			for i, tag := range []string{"old", "missing", "partial", "other"} {
				images[tag] = ocitest.RandomImage(uint64(i), 1000)
				hub.Push("library/alpine", tag, images[tag])
			}
			p := startProgram(t, hub, "ENTREPOT_PREFETCH=off", "ENTREPOT_TAG_TTL_0_MATCH=docker.io/library/alpine:old", "ENTREPOT_TAG_TTL_0_TTL=1ns")
			client := newClient(t)
			p.pull(t, client, "alpine", "old", images["old"])
			awaitNoFills(t, client, p.admin)
			manifests := p.registry + "/v2/alpine/manifests/"
			if status, body, _ := get(t, client, manifests+"partial"); status != http.StatusOK {
				t.Fatal(body)
			}
			if tt.trouble != nil {
				hub.Inject(tt.trouble)
			}
			if tt.closed {
				hub.Close()
			}
			if tt.closed || tt.trouble != nil {
				for range 5 {
					get(t, client, manifests+"other")
				}
			}
			layer := p.registry + "/v2/alpine/blobs/" + images["partial"].Blobs[0].Digest.String()
			for tag, pull := range map[string]struct {
				url string
				fate
			}{"old": {manifests + "old", tt.old}, "missing": {manifests + "missing", tt.missing}, "partial": {layer, tt.partial}} {
				wantLines(t, operatorOf(t, p).must("explain", "--table", "alpine:"+tag), `fresh +`+pull.fresh+`( \(checked.*\))?`, pull.pull)
				status, body, header := get(t, client, pull.url)
				if got := header.Get("X-Entrepot-Cache"); status != pull.status || got != pull.cache {
					t.Errorf("%s: %d %q, want %d %q: %.200s", tag, status, got, pull.status, pull.cache, body)
				}
			}
		})
	}
}

// TestExplainForeseesWhatAClientIsTold where upstream is asked in vain, or not at all: by
// where its blobs are, by what it said last of its quota, by what it refused a moment ago.
func TestExplainForeseesWhatAClientIsTold(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, PullLimit: 2}})
	for i, tag := range []string{"1", "2", "3"} {
		hub.Push("library/alpine", tag, ocitest.RandomImage(uint64(i), 1000))
	}
	p := startProgram(t, hub, "ENTREPOT_PREFETCH=off", "ENTREPOT_QUOTA_RESERVE=0%", "ENTREPOT_TAG_TTL_0_MATCH=docker.io/library/alpine:2", "ENTREPOT_TAG_TTL_0_TTL=1ns")
	client, o := newClient(t), operatorOf(t, p)
	wantAnswer := func(path string, want int) {
		t.Helper()
		if status, body, _ := get(t, client, p.registry+"/v2/alpine/"+path); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
	wantAnswer("manifests/1", http.StatusOK)
	wantAnswer("manifests/2", http.StatusOK)
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Reset()})
	layer := "blobs/" + ocitest.RandomImage(0, 1000).Blobs[0].Digest.String()
	for range 3 {
		get(t, client, p.registry+"/v2/alpine/"+layer)
	}
	wantLines(t, o.must("explain", "--table", "alpine:1"), `fresh +yes: upstream is not asked .*`, `upstream now +localhost:\d+ down for .*`, `this image +0 +0 +2 +\S+ +but now 503: localhost:\d+: .*; it is tried again in \S+`)
	wantAnswer(layer, http.StatusServiceUnavailable)
	wantLines(t, o.must("explain", "--table", "alpine:3"), `quota +0 left of 2, .*`, `this image +1 +1 +0 +0B +but now, unless upstream says otherwise, 429: it said last that none of the pulls of our address is left`)
	wantAnswer("manifests/3", http.StatusTooManyRequests)

	wantAnswer("manifests/none", http.StatusNotFound)
	wantLines(t, o.must("explain", "--table", "alpine:none"), `fresh +not held, and upstream refused it a moment ago: that is repeated`, `asked again +in \d+s, after a failure.*`, `this image +0 +0 +0 +0B +but now 404: .*`)
	hub.Reset()
	wantAnswer("manifests/none", http.StatusNotFound)
	wantRequests(t, hub)

	hub.Close()
	for range 3 {
		wantAnswer("manifests/2", http.StatusOK) // as it was
	}
	wantLines(t, o.must("explain", "--table", "alpine:2"), `asked again +in \d+s, after a failure, and not before, whatever a probe of the host tells until then`, `upstream now +localhost:\d+ down for .*`)
}

// TestExplainTellsWhoMay, in the words of the access file, of what a rule leads to.
func TestExplainTellsWhoMay(t *testing.T) {
	users := writeFile(t, "alice:$2a$04$WQGSb2bUdBNOXgbLVlL2ZeGs0tNRdV0fPJbXwWTmWEXGzJDkHhcJi\n")
	rights := writeFile(t, "groups: {builders: [alice]}\nrules:\n- {who: [anonymous], repositories: [docker.io/library/*]}\n- {who: [\"group:builders\", carol], repositories: [docker.io/team/**]}\n- {who: [bob], repositories: [docker.io/team/app], actions: [metadata/read]}\n")
	dir := t.TempDir()
	hub := ocitest.NewHub(t, ocitest.Config{})
	stopProgram(t, startProgram(t, hub, "ENTREPOT_DATA="+dir)) // makes the data directory
	at := func(pairs ...string) operator {
		return operator{t, environ(append(pairs, "ENTREPOT_DATA="+dir, "ENTREPOT_ADMIN_LISTEN=", "ENTREPOT_RULE_0_TARGET=ours/*", "ENTREPOT_RULE_0_SOURCE=docker.io/team/*")...)}
	}
	wantLines(t, at("ENTREPOT_USERS_FILE="+users).must("explain", "--table", "alpine"), `who may +every user of ENTREPOT_USERS_FILE`)
	o := at("ENTREPOT_USERS_FILE="+users, "ENTREPOT_ACCESS_FILE="+rights)
	wantLines(t, o.must("explain", "--table", "alpine"), `who may +anonymous`)
	wantLines(t, o.must("explain", "--table", "ours/app"), `who may +group:builders, carol`)
	wantLines(t, o.must("explain", "--table", "grafana/grafana"), `who may +nobody`)
}
