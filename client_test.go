package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"entrepot/internal/ocitest"

	"github.com/google/go-cmp/cmp"
)

// What each client gets is in testdata/script/client.txtar, and real clients
// pull with it in e2e; here are the addresses.
func TestClientsAreTold(t *testing.T) {
	chain, key := pairFiles(t, t.TempDir(), "tls", ocitest.NewCA().Certificate())
	dir := t.TempDir()
	file := func(name, content string) string {
		replaceFile(t, filepath.Join(dir, name), []byte(content))
		return filepath.Join(dir, name)
	}
	users := []string{"ENTREPOT_LISTEN=192.0.2.1:443", "ENTREPOT_USERS_FILE=" + file("users", "alice:$2y$05$POuYrOeNaRvLmm/Ovavwl.YHycgcKOV02kZbw4BP2e5iIvg7GzYJu\n")}
	rights := append(slices.Clip(users), "ENTREPOT_ACCESS_FILE="+file("access.yaml", `rules: [{who: [anonymous], repositories: ["docker.io/library/*"]}]`))
	private := append(slices.Clip(users), "ENTREPOT_ACCESS_FILE="+file("private.yaml", `rules: [{who: [anonymous], repositories: ["ghcr.io/**"]}]`))
	password := file("password", "wonderland\n")
	rule := []string{"ENTREPOT_RULE_0_TARGET=k8s.gcr.io/*", "ENTREPOT_RULE_0_SOURCE=registry.k8s.io/*", "ENTREPOT_RULE_1_TARGET=ours/*", "ENTREPOT_RULE_1_SOURCE=ghcr.io/acme/*"}
	named, namedKey := pairFiles(t, dir, "named", ocitest.NewCA().Certificate("cache.example"))
	withTLS := []string{"ENTREPOT_LISTEN=192.0.2.1:443", "ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key}
	for _, row := range []struct {
		name    string
		environ []string
		args    []string
		want    string // of what is printed
		refused string // of the error
	}{
		{"a name of this machine", []string{"ENTREPOT_LISTEN=192.0.2.1:80"}, []string{"containerd"}, `[host."http://192.0.2.1:80"]`, ""},
		{"this machine alone", []string{"ENTREPOT_LISTEN=127.0.0.1:80"}, []string{"docker"}, `["http://localhost:80"]`, ""},
		{"an address of IPv6", []string{"ENTREPOT_LISTEN=[2001:db8::1]:5000"}, []string{"podman"}, `"[2001:db8::1]:5000/ghcr.io"`, ""},
		{"what somebody says", nil, []string{"k3s", "--address", "cache.example:5000"}, `"http://cache.example:5000"`, ""},
		{"with TLS before it", nil, []string{"--address", "https://cache.example/", "buildkit"}, "http = false", ""},
		{"with TLS of its own", withTLS, []string{"docker", "--ca", "/etc/ca.pem"}, "{\n  \"registry-mirrors\": [\"https://192.0.2.1:443\"]\n}", ""},
		{"with TLS of its own, by another name", withTLS, []string{"k3s", "--address", "cache.example"}, `"https://cache.example"`, ""},
		{"with TLS of its own, beside it", withTLS, []string{"k3s", "--address", "http://cache.example:5000"}, `"http://cache.example:5000"`, ""},
		{"with a CA", nil, []string{"containerd", "--ca", "/etc/ca.pem", "--address", "https://cache.example"}, `ca = "/etc/ca.pem"`, ""},
		{"where containerd goes without us", nil, []string{"containerd", "index.docker.io"}, `server = "https://registry-1.docker.io"`, ""},
		{
			"where containerd goes to a registry of one's own",
			[]string{"ENTREPOT_UPSTREAM_0_NAME=own.example:5000", "ENTREPOT_UPSTREAM_0_URL=http://own.example:5000"},
			[]string{"containerd", "own.example:5000"},
			`server = "http://own.example:5000"`, "",
		},
		{"as a setting says", []string{"ENTREPOT_URL=https://cache.example"}, []string{"docker"}, `["https://cache.example"]`, ""},
		{"as the certificate says", []string{"ENTREPOT_LISTEN=:443", "ENTREPOT_TLS_CERT_FILE=" + named, "ENTREPOT_TLS_KEY_FILE=" + namedKey}, []string{"docker"}, `["https://cache.example:443"]`, ""},
		{"a registry that a rule alone names", rule, []string{"podman", "--address", "c:1"}, `location = "c:1/k8s.gcr.io"`, ""},
		{"a registry that a rule alone names, by itself", rule, []string{"containerd", "k8s.gcr.io"}, `server = "https://k8s.gcr.io"`, ""},
		{"the cache's own name", rule, []string{"containerd", "--ca", "/ca", "--address", "https://c:1", "c:1"}, "server = \"https://c:1\"\nca = \"/ca\"\n\n[host.", ""},
		{"a login, to be filled in", users, []string{"containerd"}, "[host.\"http://192.0.2.1:443\".header]\nAuthorization = \"Basic NAME:", ""},
		{"a login", users, []string{"containerd", "--user", "alice", "--password-file", password}, `"Basic YWxpY2U6d29uZGVybGFuZA=="`, ""},
		{"a login of k3s", users, []string{"k3s", "--user", "alice", "--password-file", password}, "    auth:\n      username: \"alice\"\n      password: \"wonderland\"\n", ""},
		{"a mirror that has something for Docker", rights, []string{"docker"}, `["http://192.0.2.1:443"]`, ""},
		{"a mirror that has nothing for Docker", users, []string{"docker"}, "", "docker login 192.0.2.1:443"},
		{"a mirror that has nothing of Docker Hub for Docker", private, []string{"docker"}, "", "docker pull 192.0.2.1:443/docker.io/library/alpine"},
		{"a certificate that is required", append(slices.Clip(withTLS), "ENTREPOT_TLS_CLIENT_CA_FILE="+chain, "ENTREPOT_TLS_CLIENT_AUTH=required"), []string{"containerd"}, `client = [["/etc/entrepot/client.crt", "/etc/entrepot/client.key"]]`, ""},
		{"a certificate for k3s", withTLS, []string{"k3s", "--cert", "/c", "--key", "/k"}, "    tls:\n      cert_file: \"/c\"\n      key_file: \"/k\"\n", ""},
		{"a certificate for BuildKit", withTLS, []string{"buildkit", "--cert", "/c", "--key", "/k"}, "keypair]]\n    key = \"/k\"\n    cert = \"/c\"\n", ""},
		{"half a certificate", withTLS, []string{"k3s", "--cert", "/c"}, "", "both --cert and --key"},
		{"half a login", users, []string{"k3s", "--user", "alice"}, "", "both --user and --password-file"},
		{"a login for a file without one", users, []string{"podman", "--user", "alice", "--password-file", password}, "", "no login in the file of podman"},
		{"a certificate without TLS", users, []string{"k3s", "--cert", "/c", "--key", "/k"}, "", "--cert is for a server with TLS"},
		{"no client", nil, nil, "", "want one of docker, containerd"},
		{"an unknown client", nil, []string{"dokcer"}, "", `"dokcer" is none of docker`},
		{"an unknown flag", nil, []string{"docker", "--host", "x"}, "", "entrepot help client"},
		{"no address", nil, []string{"docker", "--address", "cache.example:5000/path"}, "", `"cache.example:5000/path" is no address`},
		{"another scheme", nil, []string{"docker", "--address", "ftp://cache.example"}, "", "is no address"},
		{"a CA without TLS", nil, []string{"podman", "--ca", "/etc/ca.pem"}, "", "--ca is for a server with TLS"},
		{"an open port", []string{"ENTREPOT_LISTEN=:0"}, []string{"docker"}, "", "leaves the port open"},
		{"one registry for a client that has one file", nil, []string{"docker", "ghcr.io"}, "", "is for all registries"},
		{"a registry that is not pulled from", nil, []string{"containerd", "evil.example"}, "", `"evil.example" is not among the registries`},
		{"Docker would ask for other images", []string{"ENTREPOT_DEFAULT_UPSTREAM=ghcr.io"}, []string{"docker"}, "", "those of ghcr.io"},
	} {
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), append([]string{"client"}, row.args...), row.environ, &stdout, &stderr)
		switch {
		case row.refused != "":
			if err == nil || !strings.Contains(err.Error(), row.refused) || stdout.Len() > 0 {
				t.Errorf("%s: error %v, printed %q, want an error with %q and no file", row.name, err, &stdout, row.refused)
			}
		case err != nil:
			t.Errorf("%s: %v", row.name, err)
		case !strings.Contains(stdout.String(), row.want):
			t.Errorf("%s: no %q in (-want +got):\n%s", row.name, row.want, cmp.Diff(row.want, stdout.String()))
		}
	}
}
