package main

import (
	"encoding/base64"
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
				dir := t.TempDir()
				t.Setenv("DOCKER_CONFIG", dir) // where go-containerregistry looks
				config := `{"auths":{"https://index.docker.io/v1/":{"auth":"` + base64.StdEncoding.EncodeToString([]byte(row.docker)) + `"}}}`
				replaceFile(t, filepath.Join(dir, "config.json"), []byte(config))
				settings = append(settings, "DOCKER_CONFIG="+dir)
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

// A host that asks to be left alone is told of in the log and the metrics.
func TestALimitIsTold(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}, Effect: ocitest.AbuseLimit()})
	p := startProgram(t, hub)
	client := newClient(t)
	get(t, client, p.registry+"/v2/library/app/manifests/1")
	p.log.await(t, "upstream: host limits us")
	if !strings.Contains(p.log.String(), "it answers 429: requests like this one wait for 1m0s") {
		t.Errorf("the log does not say for how long:\n%s", p.log)
	}
	if _, scrape, _ := get(t, client, p.admin+"/metrics"); !strings.Contains(scrape, "\nentrepot_hosts_paused{upstream=\"docker.io\"} 1\n") {
		t.Error("the metrics know of no host that limits us")
	}
}
