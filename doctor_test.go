package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// examination is one run of doctor over a hub.
type examination struct {
	hub     ocitest.Config
	fault   *ocitest.Fault
	prepare func(*ocitest.Hub)
	environ []string
	args    []string
	code    int
	want    []string // lines begin so
}

// TestDoctor: for each thing that can be wrong, a word and an exit code.
func TestDoctor(t *testing.T) {
	ping := ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Ping}
	taken := httptest.NewServer(http.NotFoundHandler())
	defer taken.Close()
	occupied := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(occupied, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	none := oci.Sum(nil).String()
	anonymous := ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}}
	for name, x := range map[string]examination{
		"well": {
			hub: ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}}, environ: []string{"ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=right"},
			args: []string{"app:1"},
			want: []string{"ok    settings", "ok    data directory", "ok    ENTREPOT_LISTEN", "ok    upstream docker.io: answers", "ok    image docker.io/library/app:1: sha256:", "ok    quota of me"},
		},
		"anonymous":      {hub: anonymous, want: []string{"ok    upstream docker.io: answers within"}},
		"wrong settings": {environ: []string{"ENTREPOT_TAG_TTL=soon", "ENTREPOT_LSITEN=:1"}, code: 10, want: []string{"FAIL  ENTREPOT_LSITEN: there is no such setting", "FAIL  ENTREPOT_TAG_TTL"}},
		"wrong rights":   {environ: []string{"ENTREPOT_USERS_FILE=" + writeFile(t, "a:b\n"), "ENTREPOT_ACCESS_FILE=" + writeFile(t, "rule: x")}, code: 10, want: []string{"FAIL  ENTREPOT_ACCESS_FILE", "      -> docs/operations.md, Rights, has all that such a file may hold\n"}},
		"two mistakes":   {environ: []string{"ENTREPOT_TAG_TTL=soon", "ENTREPOT_LSITEN=:1"}, code: 10, want: []string{"      -> entrepot help config lists what can be set\nFAIL  ENTREPOT_TAG_TTL", "      -> as above\n"}},
		"no directory":   {hub: anonymous, environ: []string{"ENTREPOT_DATA=" + filepath.Join(occupied, "data")}, code: 11, want: []string{"FAIL  data directory"}},
		"no room":        {hub: anonymous, environ: []string{"ENTREPOT_MIN_FREE=1000TiB"}, code: 11, want: []string{"FAIL  data directory"}},
		"address taken":  {hub: anonymous, environ: []string{"ENTREPOT_LISTEN=" + taken.Listener.Addr().String()}, code: 12, want: []string{"FAIL  ENTREPOT_LISTEN"}},
		"no connection":  {hub: anonymous, prepare: (*ocitest.Hub).Close, code: 14, want: []string{"FAIL  upstream docker.io: localhost:"}},
		"server error":   {hub: anonymous, fault: &ocitest.Fault{Match: ping, Effect: ocitest.HTML(http.StatusBadGateway)}, code: 14, want: []string{"FAIL  upstream docker.io"}},
		"unknown CA":     {hub: ocitest.Config{TLS: true}, code: 15, want: []string{"FAIL  upstream docker.io: localhost:"}},
		"wrong password": {environ: []string{"ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=wrong"}, code: 16, want: []string{"FAIL  upstream docker.io: the password of me is refused", "      -> look at the user name and the password, which ENTREPOT_DOCKERHUB_PASSWORD sets"}},
		"wrong password for a path": {
			environ: []string{
				"ENTREPOT_UPSTREAM_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_PASSWORD=right",
				"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=bot", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=wrong",
			},
			code: 16, want: []string{"ok    upstream docker.io: answers", "FAIL  login bot for docker.io/team/*: the password of bot is refused", "      -> look at the user name and the password, which ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD, for team/* sets"},
		},
		"well for a path": {
			environ: []string{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team/app", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=right"},
			want:    []string{"ok    upstream docker.io: answers", "ok    login me for docker.io/team/app/*: signed in"},
		},
		"a login for a path that is not asked for": {
			hub:     anonymous,
			environ: []string{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team/app", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=right"},
			want:    []string{"warn  login me for docker.io/team/app/*: it is not known whether it is good"},
		},
		"too many":        {hub: anonymous, fault: &ocitest.Fault{Match: ping, Effect: ocitest.AbuseLimit()}, code: 17, want: []string{"FAIL  upstream docker.io", "      -> wait; what is held is served meanwhile. An account there has limits of its own: ENTREPOT_UPSTREAM_0_USERNAME\n"}},
		"quota spent":     {hub: ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, PullLimit: 1}}, prepare: spendOne(t), code: 17, want: []string{"ok    upstream", "FAIL  quota of this address at localhost:", "      -> wait; what is held is served meanwhile. An account there has limits of its own: ENTREPOT_UPSTREAM_0_USERNAME\n"}},
		"clock far away":  {hub: anonymous, fault: &ocitest.Fault{Match: ping, Effect: ocitest.Effect{Do: "answer", Status: 200, Header: http.Header{"Date": {time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}}}}, code: 18, want: []string{"FAIL  clock: it and localhost:"}},
		"no such image":   {hub: anonymous, args: []string{"app:2"}, code: 19, want: []string{"ok    upstream docker.io", "FAIL  image docker.io/library/app:2"}},
		"no image's name": {hub: anonymous, args: []string{"unknown.example/app"}, code: 19, want: []string{`FAIL  image "unknown.example/app"`}},
		"offline":         {hub: anonymous, environ: []string{"ENTREPOT_OFFLINE=true"}, prepare: (*ocitest.Hub).Close, args: []string{"app:1"}, want: []string{"ok    upstream docker.io: offline", "warn  image docker.io/library/app:1: not looked up"}},
		"image by digest": {hub: anonymous, args: []string{"app@" + none}, code: 19, want: []string{"FAIL  image docker.io/library/app@" + none}},
	} {
		t.Run(name, func(t *testing.T) { x.run(t) })
	}
}

// spendOne pulls past us.
func spendOne(t *testing.T) func(*ocitest.Hub) {
	t.Helper()
	return func(hub *ocitest.Hub) {
		resp, err := newClient(t).Get(hub.URL() + "/v2/library/app/manifests/1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
}

func (x examination) run(t *testing.T) {
	t.Helper()
	hub := ocitest.NewHub(t, x.hub)
	hub.AddUser("me", "right")
	hub.Push("library/app", "1", ocitest.RandomImage(1, 100))
	hub.Push("ratelimitpreview/test", "latest", ocitest.RandomImage(2, 100))
	if x.prepare != nil {
		x.prepare(hub)
	}
	if x.fault != nil {
		hub.Inject(x.fault)
	}
	hub.Reset()
	var stdout, stderr bytes.Buffer
	env := environ(append([]string{
		"ENTREPOT_LISTEN=127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN=127.0.0.1:0", "ENTREPOT_DATA=" + filepath.Join(t.TempDir(), "data"), "ENTREPOT_MIN_FREE=0",
		"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_URL=" + hub.URL(),
	}, x.environ...)...)
	err := run(t.Context(), append([]string{"doctor"}, x.args...), env, &stdout, &stderr)
	if got := exitCode(err); got != x.code {
		t.Errorf("exit code %d, want %d: %v", got, x.code, err)
	}
	for _, want := range x.want {
		if !strings.Contains("\n"+stdout.String(), "\n"+want) {
			t.Errorf("no line %q in\n%s", want, &stdout)
		}
	}
	if strings.Contains(stdout.String()+stderr.String(), "wrong\n") || strings.Contains(stdout.String(), "right") {
		t.Errorf("a password is told:\n%s", &stdout)
	}
	for _, r := range hub.Requests() {
		if r.Counted || r.Kind == ocitest.BlobKind {
			t.Errorf("doctor spent %s", r)
		}
	}
}

// A running server is what the doctor finds, and it is not disturbed.
func TestDoctorBesideAServer(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	data := filepath.Join(t.TempDir(), "data")
	p := startProgram(t, hub, "ENTREPOT_DATA="+data)
	address := func(url string) string { return strings.TrimPrefix(url, "http://") }
	var stdout, stderr bytes.Buffer
	err := run(t.Context(), []string{"doctor", "--json"}, environ(
		"ENTREPOT_LISTEN="+address(p.registry), "ENTREPOT_ADMIN_LISTEN="+address(p.admin), "ENTREPOT_DATA="+data, "ENTREPOT_MIN_FREE=0",
		"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_URL="+hub.URL(),
	), &stdout, &stderr)
	if err != nil {
		t.Errorf("doctor: %v\n%s", err, &stdout)
	}
	found := map[string]string{}
	for d := json.NewDecoder(&stdout); d.More(); {
		var f finding
		if err := d.Decode(&f); err != nil {
			t.Fatal(err)
		}
		if f.State == "failed" {
			t.Errorf("%+v", f)
		}
		found[f.Subject] = f.Detail
	}
	for subject, want := range map[string]string{
		"data directory " + data:                    "the server at " + p.admin + " has it",
		"ENTREPOT_LISTEN=" + address(p.registry):    "a server answers there",
		"ENTREPOT_ADMIN_LISTEN=" + address(p.admin): "a server answers there",
	} {
		if !strings.Contains(found[subject], want) {
			t.Errorf("of %s it says %q, want %q", subject, found[subject], want)
		}
	}
}

func TestDisksThatAreTooSmallAreToldOf(t *testing.T) {
	const total = 100 << 30
	for _, row := range []struct {
		cap, free int64
		want      string
	}{
		{0, 50 << 30, ""},
		{95 << 30, 50 << 30, ""},
		{96 << 30, 50 << 30, "ENTREPOT_CACHE_SIZE=96GiB is more than there is"},
		{0, 5 << 30, "only in the place of what is held"},
	} {
		cfg := mustLoad(t, fmt.Sprintf("ENTREPOT_CACHE_SIZE=%dB", row.cap))
		if text, remedy := roomTrouble(cfg, total, row.free); row.want == "" && text != "" || !strings.Contains(text, row.want) || (text == "") != (remedy == "") {
			t.Errorf("%d of %d free, at most %d: %q, %q, want %q", row.free, total, row.cap, text, remedy, row.want)
		}
	}
}
