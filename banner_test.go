package main

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"

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
