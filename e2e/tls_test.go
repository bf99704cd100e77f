//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
)

// The users of a site with TLS: anonymous may read one repository of Docker Hub,
// she one of each registry, and nobody the rest.
const (
	tlsUser     = "alice"
	tlsPassword = "correct-horse"
	tlsRules    = `
rules:
  - {who: [anonymous], repositories: [docker.io/library/e2e-public]}
  - {who: [alice], repositories: [docker.io/library/e2e-tls, "ghcr.io/octo/**"]}
`
)

// secureSite is a cache with a certificate by an authority of the test's own.
type secureSite struct {
	*site
	ca    string // file
	certs string // directory with that file for this cache, as clients want it
	image hello
}

func newSecureSite(t *testing.T) *secureSite {
	t.Helper()
	ca, files := ocitest.NewCA(), tempDir(t)
	chain, key := ocitest.KeyPair(ca.Certificate())
	file := func(name, content string) string {
		path := filepath.Join(files, name)
		write(t, path, content)
		return path
	}
	s := &secureSite{ca: file("ca.crt", string(ca.PEM)), image: newHello(t, "hello over TLS", false, 64<<10)}
	s.site = newSite(t,
		"ENTREPOT_TLS_CERT_FILE="+file("tls.crt", string(chain)), "ENTREPOT_TLS_KEY_FILE="+file("tls.key", string(key)),
		"ENTREPOT_USERS_FILE="+file("users", run(t, nil, "htpasswd", "-nbB", tlsUser, tlsPassword)),
		"ENTREPOT_ACCESS_FILE="+file("access.yaml", tlsRules))
	s.certs = filepath.Join(files, "certs.d", s.addr)
	write(t, filepath.Join(s.certs, "ca.crt"), string(ca.PEM))
	for _, repo := range []string{"library/e2e-public", "library/e2e-tls", "library/e2e-secret"} {
		s.hub.Push(repo, "1", s.image.Image)
	}
	s.ghcr.Push("octo/e2e-tls", "1", s.image.Image)
	return s
}

// refused runs a command that must not succeed, and gives what it said.
func refused(t *testing.T, env []string, command ...string) string {
	t.Helper()
	out, err := try(t.Context(), commandTimeout, env, command...)
	if err == nil {
		t.Errorf("%s succeeded:\n%s", strings.Join(command, " "), out)
		return ""
	}
	if strings.Contains(err.Error(), "x509") {
		t.Errorf("%s does not trust the authority: %v", strings.Join(command, " "), err)
	}
	return err.Error()
}

// Docker skips the check of certificates for loopback, whatever certs.d has: this
// is about its login. A mirror gets none, so what it is to serve must be public.
func TestTLSDocker(t *testing.T) {
	s := newSecureSite(t)
	dir := tempDir(t)
	d := newDocker(t, s.site, dir, `{"registry-mirrors": ["https://`+s.addr+`"]}`)
	refused(t, d.env, "docker", "pull", s.ref("docker.io/library/e2e-tls:1"))
	refused(t, d.env, "docker", "login", "-u", tlsUser, "-p", "wrong", s.addr)
	d.run(t, "pull", "e2e-public:1")
	d.greets(t, "e2e-public:1", s.image.greeting)
	d.run(t, "pull", s.ref("docker.io/library/e2e-public:1"))

	d.run(t, "login", "-u", tlsUser, "-p", tlsPassword, s.addr)
	for _, name := range []string{"docker.io/library/e2e-tls:1", "ghcr.io/octo/e2e-tls:1"} {
		d.run(t, "pull", s.ref(name))
		d.greets(t, s.ref(name), s.image.greeting)
	}
	secret := refused(t, d.env, "docker", "pull", s.ref("docker.io/library/e2e-secret:1"))
	nothing := refused(t, d.env, "docker", "pull", s.ref("docker.io/library/e2e-nothing:1"))
	if strings.ReplaceAll(secret, "e2e-secret", "X") != strings.ReplaceAll(nothing, "e2e-nothing", "X") {
		t.Errorf("what may not be seen is told from what does not exist:\n%s\n%s", secret, nothing)
	}
}

func TestTLSContainerd(t *testing.T) {
	s := newSecureSite(t)
	dir := tempDir(t)
	c := newContainerd(t, s.site, dir)
	hosts := func(login string) {
		text := fmt.Sprintf("server = \"https://SERVER\"\n\n[host.\"https://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n", s.addr, s.ca)
		if login != "" {
			text += fmt.Sprintf("[host.\"https://%s\".header]\n  Authorization = %q\n", s.addr, "Basic "+base64.StdEncoding.EncodeToString([]byte(login)))
		}
		for registry, server := range map[string]string{"docker.io": "registry-1.docker.io", "ghcr.io": "ghcr.io"} {
			write(t, filepath.Join(c.hosts, registry, "hosts.toml"), strings.ReplaceAll(text, "SERVER", server))
		}
	}
	hosts("")
	c.greets(t, "docker.io/library/e2e-public:1", s.image.greeting, "--hosts-dir", c.hosts) // an anonymous token
	hosts(tlsUser + ":" + tlsPassword)
	c.greets(t, "docker.io/library/e2e-tls:1", s.image.greeting, "--hosts-dir", c.hosts)
	c.greets(t, "ghcr.io/octo/e2e-tls:1", s.image.greeting, "--hosts-dir", c.hosts)

	// By path: of loopback ctr believes that it speaks plain HTTP, unless told.
	write(t, filepath.Join(c.hosts, s.addr, "hosts.toml"), fmt.Sprintf("server = \"https://%s\"\nca = %q\n\n[host.\"https://%[1]s\"]\n  ca = %[2]q\n", s.addr, s.ca))
	login := []string{"--hosts-dir", c.hosts, "--user", tlsUser + ":" + tlsPassword}
	c.greets(t, s.ref("ghcr.io/octo/e2e-tls:1"), s.image.greeting, login...)
	refused(t, c.env, append(append([]string{"ctr", "--address", c.socket, "images", "pull", "--snapshotter", "native"}, login...), s.ref("docker.io/library/e2e-secret:1"))...)
}

func TestTLSPodman(t *testing.T) {
	s := newSecureSite(t)
	dir := tempDir(t)
	env := append(containers(t, s.site, dir), "REGISTRY_AUTH_FILE="+filepath.Join(dir, "auth.json"))
	name := s.ref("ghcr.io/octo/e2e-tls:1")
	refused(t, env, "podman", "pull", "--cert-dir", s.certs, name)
	refused(t, env, "podman", "login", "--cert-dir", s.certs, "-u", tlsUser, "-p", "wrong", s.addr)
	run(t, env, "podman", "login", "--cert-dir", s.certs, "-u", tlsUser, "-p", tlsPassword, s.addr)
	run(t, env, "podman", "pull", "--cert-dir", s.certs, name)
	if got := run(t, env, "podman", "run", "--rm", "--network", "none", "--pull", "never", name); got != s.image.greeting {
		t.Errorf("podman run printed %q, want %q", got, s.image.greeting)
	}
	run(t, env, "buildah", "pull", "--cert-dir", s.certs, s.ref("docker.io/library/e2e-tls:1"))
	run(t, env, "skopeo", "copy", "--src-cert-dir", s.certs, "docker://"+name, "oci:"+filepath.Join(dir, "copy")+":1")
	run(t, env, "skopeo", "list-tags", "--cert-dir", s.certs, "docker://"+s.ref("docker.io/library/e2e-tls"))
	refused(t, env, "skopeo", "inspect", "--cert-dir", s.certs, "docker://"+s.ref("docker.io/library/e2e-secret:1"))
}

func TestTLSCraneAndHelm(t *testing.T) {
	s := newSecureSite(t)
	chart := ocitest.Chart("greeting", "0.1.0")
	s.ghcr.Push("octo/greeting", "0.1.0", chart)
	dir := tempDir(t)
	env := append(s.client(dir), "SSL_CERT_FILE="+s.ca, "DOCKER_CONFIG="+filepath.Join(dir, "docker"))
	name := s.ref("docker.io/library/e2e-tls:1")
	if got := refused(t, env, craneBin, "digest", name); !strings.Contains(got, "UNAUTHORIZED") && !strings.Contains(got, "401") {
		t.Errorf("without a login: %s", got)
	}
	run(t, env, craneBin, "digest", s.ref("docker.io/library/e2e-public:1"))
	run(t, env, craneBin, "auth", "login", s.addr, "-u", tlsUser, "-p", tlsPassword)
	run(t, env, craneBin, "validate", "--remote", name)
	if got := run(t, env, craneBin, "catalog", s.addr); strings.Contains(got, "secret") || !strings.Contains(got, "docker.io/library/e2e-tls") {
		t.Errorf("the catalog is\n%s", got)
	}
	refused(t, env, craneBin, "digest", s.ref("docker.io/library/e2e-secret:1"))

	chartRef := "oci://" + s.ref("ghcr.io/octo/greeting")
	pull := []string{helmBin, "pull", "--ca-file", s.ca, "--version", "0.1.0", "--destination", dir, chartRef}
	bare := append(s.client(filepath.Join(dir, "bare")), "DOCKER_CONFIG="+filepath.Join(dir, "none"))
	refused(t, bare, pull...)
	run(t, env, helmBin, "registry", "login", s.addr, "--ca-file", s.ca, "-u", tlsUser, "-p", tlsPassword)
	run(t, env, pull...)
	if _, err := os.Stat(filepath.Join(dir, "greeting-0.1.0.tgz")); err != nil {
		t.Error(err)
	}
}
