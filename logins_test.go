package main

import (
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

// Explain tells what a pull would be asked as, and how much of whose quota it has.
func TestExplainKnowsARefusedLogin(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}})
	hub.AddUser("bot", "right")
	image := ocitest.RandomImage(1, 1000)
	hub.Push("team/app", "1", image)
	settings := []string{
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=bot", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=wrong",
		"ENTREPOT_DATA=" + t.TempDir(),
	}
	p := startProgram(t, hub, settings...)
	o := operator{t, environ(append(settings, "ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	wantLines(t, o.must("explain", "--table", "team/app:2"), `asked as +bot`)
	p.pull(t, newClient(t), "team/app", "1", image)
	out := o.must("explain", "--table", "team/app:2")
	wantLines(t, out, `asked as +nobody: bot is refused by localhost:\d+ for \d+s, tried again in \d+s: ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD, for team/\*`, `quota +99 left of 100.*`)
	if strings.Contains(out, "bot: ") {
		t.Errorf("a quota that does not count is told:\n%s", out)
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
