package main

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
)

// Of two accounts the one that is refused is named wherever an operator looks, with
// where it is set, until its password is accepted. Clients hear whose fault it is.
func TestARefusedLoginIsNamed(t *testing.T) {
	for name, auth := range map[string]ocitest.Auth{"by a token service": ocitest.TokenAuth, "by the registry": ocitest.BasicAuth} {
		t.Run(name, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: auth, PullLimit: 100}})
			hub.AddUser("me", "mine")
			hub.AddUser("bot", "its own")
			app := ocitest.RandomImage(1, 1000)
			hub.Push("library/alpine", "1", app)
			hub.Push("team/app", "1", app)
			hub.Private("team/app", "bot")
			hub.Private("library/alpine", "me")
			secret := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(secret, []byte("wrong"), 0o600); err != nil {
				t.Fatal(err)
			}
			p := startProgram(t, hub,
				"ENTREPOT_UPSTREAM_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_PASSWORD=mine", "ENTREPOT_NEGATIVE_TTL=0s",
				"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=bot", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD_FILE="+secret,
			)
			client, o := newClient(t), operatorOf(t, p)
			p.pull(t, client, "library/alpine", "1", app)
			status, body, _ := get(t, client, p.registry+"/v2/team/app/manifests/1")
			if status < 400 || !strings.Contains(body, "asked anonymously, since the password that this cache has for it was refused") || strings.Contains(body, "bot") {
				t.Errorf("the client is told %d %s", status, body)
			}
			setting := "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD_FILE=" + secret + ", for team/*"
			told := false
			for _, line := range p.log.lines(t) {
				if line["message"] == "upstream: credentials refused" {
					told = line["account"] == "bot" && line["setting"] == setting
				}
			}
			if !told {
				t.Errorf("the log does not say which login is refused:\n%s", p.log)
			}
			wantLines(t, o.must("status", "--table"), `HOSTS  0 of \d in trouble, 1 login refused`, `  localhost:\d+ +refuses bot for \d+s, tried again in \d+s`, `    docker.io: `+setting[:60]+`.*`)
			if logins := o.status().Logins; len(logins) != 1 || logins[0].Account != "bot" || logins[0].Setting != setting {
				t.Errorf("logins: %+v", logins)
			}
			wantLines(t, o.must("explain", "--table", "docker.io/library/alpine:2"), `asked as +me`)
			_, scrape, _ := get(t, client, p.admin+"/metrics")
			if !strings.Contains(scrape, "\nentrepot_logins_refused{upstream=\"docker.io\"} 1\n") {
				t.Error("the metrics know of no refused login")
			}

			replaceFile(t, secret, []byte("its own"))
			p.pull(t, client, "team/app", "1", app)
			if logins := o.status().Logins; len(logins) > 0 {
				t.Errorf("after the password was put right: %+v", logins)
			}
			if out := o.must("status", "--table"); strings.Contains(out, "refused") {
				t.Errorf("nothing is refused any more:\n%s", out)
			}
		})
	}
}

// What a registry hides from strangers is 404 for nobody. Where our login is refused that
// deletes nothing, and a client is told why; with the right one all is as it was.
func TestWhatIsHiddenFromARefusedLoginIsNotDeleted(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{HidePrivate: true}})
	hub.AddUser("me", "right")
	image := ocitest.RandomImage(1, 1000)
	hub.Push("team/app", "1", image)
	hub.Push("team/app", "2", image)
	hub.Private("team/app", "me")
	secret := filepath.Join(t.TempDir(), "secret")
	replaceFile(t, secret, []byte("right"))
	p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_KEEP_DELETED=false", "ENTREPOT_TAG_TTL=0s", "ENTREPOT_NEGATIVE_TTL=1h",
		"ENTREPOT_UPSTREAM_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_PASSWORD_FILE="+secret)
	client := newClient(t)
	p.pull(t, client, "team/app", "1", image)
	replaceFile(t, secret, []byte("wrong"))
	for range 2 {
		if status, _, header := get(t, client, p.registry+"/v2/team/app/manifests/1"); status != http.StatusOK || header.Get("X-Entrepot-Cache") != "stale" {
			t.Errorf("what is held: %d %s, want it as stale", status, header.Get("X-Entrepot-Cache"))
		}
		if status, body, _ := get(t, client, p.registry+"/v2/team/app/manifests/2"); status != http.StatusForbidden || !strings.Contains(body, "the password that this cache has for it was refused") {
			t.Errorf("what is not held: %d %s", status, body)
		}
	}
	replaceFile(t, secret, []byte("right"))
	p.pull(t, client, "team/app", "2", image)
	hub.Untag("team/app", "2")
	if status, body, _ := get(t, client, p.registry+"/v2/team/app/manifests/2"); status != http.StatusNotFound {
		t.Errorf("what is deleted: %d %s", status, body)
	}
}

// dockerLogin has a login for Docker Hub in Docker's configuration, and is the setting
// that says where that is.
func dockerLogin(t *testing.T, login string) (setting string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir) // where go-containerregistry looks
	config := `{"auths":{"https://index.docker.io/v1/":{"auth":"` + base64.StdEncoding.EncodeToString([]byte(login)) + `"}}}`
	replaceFile(t, filepath.Join(dir, "config.json"), []byte(config))
	return "DOCKER_CONFIG=" + dir
}

// Explain tells what a pull would be asked as, and how much of whose quota it has: by
// the login that the repository's registry has for it, and no other of its name.
func TestExplainKnowsARefusedLogin(t *testing.T) {
	const (
		mirrorLogin = "ENTREPOT_UPSTREAM_0_URL_0_"
		teamLogin   = "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_"
		otherLogin  = "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_"
	)
	const refused = `asked as +nobody: bot is refused by localhost:\d+ for \d+s, tried again in \d+s: `
	for name, row := range map[string]struct {
		settings []string
		docker   string // in DOCKER_CONFIG
		want     string // asked as
		quota    string
	}{
		"of a prefix": {
			settings: []string{teamLogin + "PREFIX=team", teamLogin + "USERNAME=bot", teamLogin + "PASSWORD=wrong"},
			want:     refused + teamLogin + `PASSWORD, for team/\*`, quota: "99 left of 100.*",
		},
		"of Docker's configuration": {docker: "bot:wrong", want: refused + "DOCKER_CONFIG", quota: "99 left of 100.*"},
		"a good one of that":        {docker: "bot:right", want: "asked as +bot", quota: "bot: 99 left of 100.*"},
		"another prefix's": {
			settings: []string{
				teamLogin + "PREFIX=team", teamLogin + "USERNAME=bot", teamLogin + "PASSWORD=right",
				otherLogin + "PREFIX=other", otherLogin + "USERNAME=bot", otherLogin + "PASSWORD=wrong",
			},
			want: "asked as +bot", quota: "bot: 99 left of 100.*",
		},
		"a mirror's": {
			settings: []string{
				"ENTREPOT_UPSTREAM_0_USERNAME=bot", "ENTREPOT_UPSTREAM_0_PASSWORD=right",
				mirrorLogin + "USERNAME=bot", mirrorLogin + "PASSWORD=wrong", mirrorLogin + "FIRST=true",
			},
			want: "asked as +bot", quota: "bot: 99 left of 100.*",
		},
	} {
		t.Run(name, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}})
			hub.AddUser("bot", "right")
			image := ocitest.RandomImage(1, 1000)
			hub.Push("team/app", "1", image)
			settings := append(row.settings, "ENTREPOT_DATA="+t.TempDir())
			if strings.Contains(strings.Join(settings, " "), mirrorLogin) {
				mirror := ocitest.NewHub(t, ocitest.Config{})
				settings = append(settings, strings.TrimSuffix(mirrorLogin, "_")+"="+mirror.URL())
			}
			if row.docker != "" {
				settings = append(settings, dockerLogin(t, row.docker))
			}
			p := startProgram(t, hub, settings...)
			client, o := newClient(t), operatorOf(t, p)
			wantLines(t, o.must("explain", "--table", "team/app:2"), `asked as +bot`)
			get(t, client, p.registry+"/v2/other/app/manifests/1")
			p.pull(t, client, "team/app", "1", image)
			out := o.must("explain", "--table", "team/app:2")
			wantLines(t, out, row.want, `quota +`+row.quota)
			if strings.Contains(row.want, "nobody") && strings.Contains(out, "bot: ") {
				t.Errorf("a quota that does not count is told:\n%s", out)
			}
		})
	}
}

// A host that asks to be left alone is told of in the log and the metrics, and that a
// login would help where there is none.
func TestALimitIsTold(t *testing.T) {
	const remedy = "an account there has limits of its own: ENTREPOT_UPSTREAM_0_USERNAME"
	manifests := ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}
	login := []string{"ENTREPOT_UPSTREAM_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_PASSWORD=right"}
	spent := []string{`docker.io \(our address\) +.* 0 of 1 .*`, "    " + remedy}
	limited := []string{`  localhost:\d+ +limits us for .*`, "    " + remedy}
	for name, row := range map[string]struct {
		effect   ocitest.Effect // of a second request; none: its quota is spent
		settings []string
		docker   string // in DOCKER_CONFIG
		status   []string
		explain  string
		helps    bool // to sign in
	}{
		"by its quota":            {status: spent, explain: `quota +0 left of 1, .*; ` + remedy, helps: true},
		"for abuse":               {effect: ocitest.AbuseLimit(), status: limited, explain: `upstream now +localhost:\d+ limits us for .*; ` + remedy, helps: true},
		"abuse by a login":        {effect: ocitest.AbuseLimit(), settings: login, status: limited[:1], explain: `upstream now +localhost:\d+ limits us for \S+`},
		"abuse by Docker's login": {effect: ocitest.AbuseLimit(), docker: "me:right", status: limited[:1], explain: `upstream now +localhost:\d+ limits us for \S+`},
		"quota of a login":        {settings: login, status: []string{`docker.io me +.* 0 of 1 .*`}, explain: `quota +me: 0 left of 1, resets in ≤ \S+, upstream refused a pull: the next is asked for in \S+`},
	} {
		t.Run(name, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 1}})
			hub.AddUser("me", "right")
			hub.Push("library/app", "1", ocitest.RandomImage(1, 1000))
			hub.Push("library/app", "2", ocitest.RandomImage(2, 1000))
			settings := append(row.settings, "ENTREPOT_QUOTA_RESERVE=0%")
			if row.docker != "" {
				settings = append(settings, dockerLogin(t, row.docker))
			}
			p := startProgram(t, hub, settings...)
			client, o := newClient(t), operatorOf(t, p)
			get(t, client, p.registry+"/v2/library/app/manifests/1")
			if row.effect.Do != "" {
				hub.Inject(&ocitest.Fault{Match: manifests, Effect: row.effect})
			}
			if status, body, _ := get(t, client, p.registry+"/v2/library/app/manifests/2"); status != http.StatusTooManyRequests || strings.Contains(body, "ENTREPOT_") {
				t.Errorf("the client is told %d %s", status, body)
			}
			wantLines(t, o.must("status", "--table"), row.status...)
			out := o.must("explain", "--table", "app:3")
			wantLines(t, out, row.explain)
			if told := o.must("status", "--table") + out; strings.Contains(told, remedy) != row.helps {
				t.Errorf("that signing in helps is told: %v, want %v:\n%s", !row.helps, row.helps, told)
			}
			if row.effect.Do == "" {
				return // no host asked to be left alone
			}
			p.log.await(t, "upstream: host limits us")
			if !strings.Contains(p.log.String(), "it answers 429: requests like this one wait for 1m0s") {
				t.Errorf("the log does not say for how long:\n%s", p.log)
			}
			if strings.Contains(p.log.String(), `"remedy":"`+remedy) != row.helps {
				t.Errorf("the log tells that signing in helps: %v, want %v:\n%s", !row.helps, row.helps, p.log)
			}
			if _, scrape, _ := get(t, client, p.admin+"/metrics"); !strings.Contains(scrape, "\nentrepot_hosts_paused{upstream=\"docker.io\"} 1\n") {
				t.Error("the metrics know of no host that limits us")
			}
		})
	}
}

// Where redirects lead nobody signs in, so that nothing is told to help there. A token
// service is asked by a login, if there is one.
func TestWhereALoginWouldHelp(t *testing.T) {
	const remedy = "an account there has limits of its own"
	for role, helps := range map[ocitest.Role]bool{ocitest.CDN: false, ocitest.Token: true} {
		t.Run(string(role), func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{})
			image := ocitest.RandomImage(1, 1000)
			hub.Push("library/app", "1", image)
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: role}, Effect: ocitest.AbuseLimit()})
			p := startProgram(t, hub)
			client, o := newClient(t), operatorOf(t, p)
			get(t, client, p.registry+"/v2/library/app/manifests/1")
			get(t, client, p.registry+"/v2/library/app/blobs/"+image.Blobs[0].Digest.String())
			p.log.await(t, "upstream: host limits us")
			told := o.must("status", "--table") + o.must("explain", "--table", "app:1")
			if !strings.Contains(told, "limits us for") || strings.Contains(told, remedy) != helps || strings.Contains(p.log.String(), remedy) != helps {
				t.Errorf("want told that a login helps: %v\n%s\n%s", helps, told, p.log)
			}
		})
	}
}

// Whoever has no login is told where one is set: for the address that limits him.
func TestWhereALoginIsSet(t *testing.T) {
	c := mustLoad(t,
		"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://a.test", "ENTREPOT_UPSTREAM_0_URL_0=https://mirror.test/a",
		"ENTREPOT_UPSTREAM_0_URL_1=https://other.test", "ENTREPOT_UPSTREAM_0_URL_1_USERNAME=me", "ENTREPOT_UPSTREAM_0_URL_1_PASSWORD=hunter2",
		"ENTREPOT_UPSTREAM_1_NAME=b.test", "ENTREPOT_UPSTREAM_1_USERNAME=me", "ENTREPOT_UPSTREAM_1_PASSWORD=hunter2",
	)
	for at, want := range map[[2]string]string{
		{"docker.io", "registry-1.docker.io"}:      "ENTREPOT_DOCKERHUB_USERNAME",
		{"quay.io", "quay.io"}:                     "ENTREPOT_UPSTREAM_<n>_USERNAME",
		{"a.test", "a.test"}:                       "ENTREPOT_UPSTREAM_0_USERNAME",
		{"a.test", "mirror.test"}:                  "ENTREPOT_UPSTREAM_0_URL_0_USERNAME",
		{"a.test", "other.test"}:                   "",
		{"b.test", "b.test"}:                       "",
		{"mcr.microsoft.com", "mcr.microsoft.com"}: "",
	} {
		got := c.signInRemedy(at[0], at[1])
		if (want == "") != (got == "") || !strings.HasSuffix(got, want) {
			t.Errorf("%s at %s: %q, want %q", at[0], at[1], got, want)
		}
	}
}
