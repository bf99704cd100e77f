package main

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

	"entrepot/internal/ocitest"

	"github.com/google/go-cmp/cmp"
)

func TestHintsFitTheAddress(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Skip("this machine has no name")
	}
	for _, row := range []struct {
		name, listen, reached string
		mirror                bool
		want                  []string
	}{
		{"everywhere", "[::]:5000", "", true, []string{
			`{"registry-mirrors":["http://localhost:5000"]}`,
			`{"registry-mirrors":["http://` + host + `:5000"],"insecure-registries":["` + host + `:5000"]}`,
		}},
		{"this machine", "127.0.0.1:80", "", true, []string{`{"registry-mirrors":["http://localhost:80"]}`}},
		{"one interface", "192.0.2.1:5000", "", true, []string{`{"registry-mirrors":["http://192.0.2.1:5000"],"insecure-registries":["192.0.2.1:5000"]}`}},
		{"one interface, IPv6", "[2001:db8::1]:5000", "", true, []string{`{"registry-mirrors":["http://[2001:db8::1]:5000"],"insecure-registries":["[2001:db8::1]:5000"]}`}},
		{"behind something that ends TLS", "[::]:5000", "https://cache.example", true, []string{`{"registry-mirrors":["https://cache.example"]}`}},
		{"by another name", "[::]:5000", "http://cache.example", true, []string{`{"registry-mirrors":["http://cache.example"],"insecure-registries":["cache.example"]}`}},
		{"Docker gets nothing", "[::]:5000", "", false, nil},
	} {
		addr, err := net.ResolveTCPAddr("tcp", row.listen)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, hint := range (welcome{registry: addr, mirror: row.mirror, reached: row.reached}).hints() {
			got = append(got, hint.line)
		}
		if diff := cmp.Diff(row.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}

// Over TLS the certificate says by which name clients may come.
func TestHintsOverTLS(t *testing.T) {
	w := welcome{registry: &net.TCPAddr{IP: net.IPv6zero, Port: 5000}, mirror: true, secure: true, names: []string{"localhost", "*.example", "cache.example"}}
	if got := w.hints(); len(got) != 1 || got[0].line != `{"registry-mirrors":["https://cache.example:5000"]}` || !strings.Contains(got[0].what, "certs.d/cache.example:5000/ca.crt") {
		t.Errorf("the hints are %q", got)
	}
}

// Where clients have to log in a newcomer is told what says how, in the log, too,
// and that command works.
func TestLoginsAreTold(t *testing.T) {
	chain, key := pairFiles(t, t.TempDir(), "tls", ocitest.NewCA().Certificate("cache.example"))
	users := "ENTREPOT_USERS_FILE=" + writeFile(t, string(usersFile(t, map[string]string{"alice": "wonderland"})))
	rights := func(who string) string {
		return "ENTREPOT_ACCESS_FILE=" + writeFile(t, "rules: [{who: ["+who+"], repositories: [docker.io/library/*]}]")
	}
	for name, row := range map[string]struct {
		pairs []string
		want  string
	}{
		"nobody logs in":     {nil, ""},
		"users":              {[]string{users}, "entrepot client --address http://localhost:%s containerd"},
		"rights of users":    {[]string{users, rights("alice")}, "entrepot client --address http://localhost:%s containerd"},
		"rights of everyone": {[]string{users, rights("anonymous")}, "entrepot client --address http://localhost:%s docker"},
		"a name":             {[]string{users, "ENTREPOT_URL=https://cache.test"}, "entrepot client --address https://cache.test containerd"},
		"TLS":                {[]string{users, "ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key}, "entrepot client --address https://cache.example:%s containerd"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProgram(t, ocitest.NewHub(t, ocitest.Config{}), row.pairs...)
			_, port, _ := net.SplitHostPort(p.registry[strings.Index(p.registry, "//")+2:])
			want := strings.ReplaceAll(row.want, "%s", port)
			got := ""
			for _, line := range p.log.lines(t) {
				if line["message"] == "serving" {
					got, _ = line["login"].(string)
				}
			}
			if got != want {
				t.Fatalf("the log tells %q, want %q", got, want)
			}
			if want == "" {
				return
			}
			var out, notes bytes.Buffer
			if err := run(t.Context(), strings.Fields(want)[1:], environ(row.pairs...), &out, &notes); err != nil || !strings.Contains(out.String()+notes.String(), "login") && !strings.Contains(out.String(), "Basic") {
				t.Errorf("%s: %v\n%s%s", want, err, &notes, &out)
			}
		})
	}
	var out bytes.Buffer
	w := welcome{registry: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000}, mirror: true, login: true}
	if w.print(&out); !strings.Contains(out.String(), "\n  entrepot client --address http://localhost:5000 docker\n") {
		t.Errorf("a person is told\n%s", &out)
	}
}

func TestPeopleAreTold(t *testing.T) {
	var out bytes.Buffer
	welcome{
		version: "v1", registry: &net.TCPAddr{IP: net.IPv6zero, Port: 5000}, admin: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5001},
		upstreams: []string{"docker.io", "ghcr.io"}, mirror: true, data: "/srv/data", capacity: 200 << 30, offline: true,
	}.print(&out)
	for _, want := range []string{
		"v1 serves docker.io, ghcr.io and keeps it in /srv/data, at most 200GiB.", "http://localhost:5000/v2/, on every interface", "http://127.0.0.1:5001/metrics",
		"only what is held", `{"registry-mirrors":["http://localhost:5000"]}`, "daemon.json",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}
