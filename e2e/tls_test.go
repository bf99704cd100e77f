//go:build e2e

package e2e

import (
	"net"
	"os"
	"path/filepath"
	"slices"
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
	certs string // directory with that file for this cache, and with her certificate, as clients want it
	image hello
	login []string // flags of entrepot client, for those that have a login in their file
}

// The ways that a secure site knows its clients by.
const (
	byUsers        = "users"        // everybody logs in, and may read all
	byRights       = "rights"       // tlsRules say who may read what
	byCertificates = "certificates" // nobody gets in without one
	byGuide        = "guide"        // as docs/operations.md has it
)

func newSecureSite(t *testing.T, by string, settings ...string) *secureSite {
	t.Helper()
	ca, files := ocitest.NewCA(), tempDir(t)
	file := func(name string, content []byte) string {
		path := filepath.Join(files, name)
		write(t, path, string(content))
		return path
	}
	chain, key := ocitest.KeyPair(ca.Certificate())
	s := &secureSite{ca: file("ca.crt", ca.PEM), image: newHello(t, "hello over TLS, by "+by, false, 64<<10)}
	settings = append(settings, "ENTREPOT_TLS_CERT_FILE="+file("tls.crt", chain), "ENTREPOT_TLS_KEY_FILE="+file("tls.key", key))
	users := []string{"ENTREPOT_USERS_FILE=" + file("users", []byte(run(t, nil, "htpasswd", "-nbB", tlsUser, tlsPassword)))}
	rights := []string{"ENTREPOT_ACCESS_FILE=" + file("access.yaml", []byte(tlsRules))}
	trusted := []string{"--ca", s.ca}
	ownChain, ownKey := ocitest.KeyPair(ca.Client(tlsUser))
	switch by {
	case byUsers:
		settings = append(settings, users...)
	case byRights:
		settings = slices.Concat(settings, users, rights)
	case byGuide:
		settings = append(append(settings, users...), "ENTREPOT_ACCESS_FILE=../deploy/access.yaml")
	case byCertificates:
		settings = slices.Concat(settings, rights, []string{"ENTREPOT_TLS_CLIENT_CA_FILE=" + s.ca, "ENTREPOT_TLS_CLIENT_AUTH=required"})
		trusted = append(trusted, "--cert", file("own.crt", ownChain), "--key", file("own.key", ownKey))
	}
	s.login = []string{"--user", tlsUser, "--password-file", file("password", []byte(tlsPassword+"\n"))}
	s.site = newSite(t, settings...)
	s.trusted = trusted
	s.certs = filepath.Join(files, "certs.d", s.addr)
	write(t, filepath.Join(s.certs, "ca.crt"), string(ca.PEM))
	if by == byCertificates {
		write(t, filepath.Join(s.certs, "client.cert"), string(ownChain))
		write(t, filepath.Join(s.certs, "client.key"), string(ownKey))
	}
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
	s := newSecureSite(t, byRights)
	dir := tempDir(t)
	d := newDocker(t, s.site, dir, s.clientFile(t, "docker"))
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

// A mirror gets no login: where all is for users, Docker is not told of one, and
// the way that it is told of instead is one.
func TestTLSDockerOfUsersAlone(t *testing.T) {
	s := newSecureSite(t, byUsers)
	told := refused(t, s.env, entrepotBin, "client", "--address", s.addr, "docker")
	for _, want := range []string{"docker login " + s.addr, "docker pull " + s.ref("docker.io/library/alpine")} {
		if !strings.Contains(told, want) {
			t.Errorf("entrepot client docker does not tell of %q:\n%s", want, told)
		}
	}
	d := newDocker(t, s.site, tempDir(t), "{}")
	d.run(t, "login", "-u", tlsUser, "-p", tlsPassword, s.addr)
	name := s.ref("docker.io/library/e2e-tls:1")
	d.run(t, "pull", name)
	d.greets(t, name, s.image.greeting)
}

// Where the guides end: official images by the mirror, and all others by name.
func TestTLSDockerOfTheGuides(t *testing.T) {
	s := newSecureSite(t, byGuide)
	d := newDocker(t, s.site, tempDir(t), s.clientFile(t, "docker"))
	d.run(t, "pull", "e2e-public:1")
	d.greets(t, "e2e-public:1", s.image.greeting)
	d.run(t, "login", "-u", tlsUser, "-p", tlsPassword, s.addr)
	d.run(t, "pull", s.ref("ghcr.io/octo/e2e-tls:1"))
	d.greets(t, s.ref("ghcr.io/octo/e2e-tls:1"), s.image.greeting)
}

// To a mirror dockerd shows the certificate that it has for it, and is known by
// it: it gets what is for her alone. It looks for one for no address in 127/8.
func TestTLSDockerMirrorByCertificate(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no other address of its own: %v", err)
	}
	l.Close()
	s := newSecureSite(t, byCertificates, "ENTREPOT_LISTEN=[::1]:0")
	inDocker := filepath.Join("/etc/docker/certs.d", s.addr)
	t.Cleanup(func() {
		if err := os.RemoveAll(inDocker); err != nil {
			t.Error(err)
		}
	})
	if err := os.CopyFS(inDocker, os.DirFS(s.certs)); err != nil {
		t.Fatal(err)
	}
	d := newDocker(t, s.site, tempDir(t), s.clientFile(t, "docker"))
	d.run(t, "pull", "e2e-tls:1")
	d.greets(t, "e2e-tls:1", s.image.greeting)
}

func TestTLSContainerd(t *testing.T) {
	for _, by := range []string{byUsers, byRights, byCertificates} {
		t.Run(by, func(t *testing.T) {
			s := newSecureSite(t, by)
			c := newContainerd(t, s.site, tempDir(t))
			hosts := func(registry string, flags ...string) {
				write(t, filepath.Join(c.hosts, registry, "hosts.toml"), s.clientFile(t, append(flags, "containerd", registry)...))
			}
			login := s.login
			if by == byCertificates {
				login = nil
			}
			hosts("docker.io", login...)
			hosts("ghcr.io", login...)
			c.greets(t, "docker.io/library/e2e-tls:1", s.image.greeting, "--hosts-dir", c.hosts)
			c.greets(t, "ghcr.io/octo/e2e-tls:1", s.image.greeting, "--hosts-dir", c.hosts)
			hosts(s.addr, login...)
			c.greets(t, s.ref("ghcr.io/octo/e2e-tls:1"), s.image.greeting, "--hosts-dir", c.hosts)
			if by != byRights {
				return
			}
			pull := []string{"ctr", "--address", c.socket, "images", "pull", "--snapshotter", "native", "--hosts-dir", c.hosts}
			refused(t, c.env, append(pull, s.ref("docker.io/library/e2e-secret:1"))...)
			anonymous, _, _ := strings.Cut(s.clientFile(t, "containerd", "docker.io"), "[host.\"https://"+s.addr+"\".header]") // without the header
			write(t, filepath.Join(c.hosts, "docker.io", "hosts.toml"), anonymous)
			c.greets(t, "docker.io/library/e2e-public:1", s.image.greeting, "--hosts-dir", c.hosts)
		})
	}
}

// BuildKit asks who builds for the login to its mirror.
func TestTLSBuildKit(t *testing.T) {
	for _, by := range []string{byUsers, byRights, byCertificates} {
		t.Run(by, func(t *testing.T) {
			s, dir := newSecureSite(t, by), tempDir(t)
			if by != byCertificates {
				run(t, append(s.client(dir), "DOCKER_CONFIG="+filepath.Join(dir, "docker")), craneBin, "auth", "login", s.addr, "-u", tlsUser, "-p", tlsPassword)
			}
			buildOn(t, s.site, dir, "e2e-tls:1", "--registry-auth-tlscontext", "host="+s.addr+",ca="+s.ca) // who fetches its tokens
		})
	}
}

// Podman gives a mirror the login that it has for its address.
func TestTLSPodmanWithMirror(t *testing.T) {
	for _, by := range []string{byUsers, byCertificates} {
		t.Run(by, func(t *testing.T) {
			s, dir := newSecureSite(t, by), tempDir(t)
			env := containers(t, s.site, dir)
			if by == byUsers {
				env = append(env, "REGISTRY_AUTH_FILE="+filepath.Join(dir, "auth.json"))
				run(t, env, "podman", "login", "--cert-dir", s.certs, "-u", tlsUser, "-p", tlsPassword, s.addr)
			}
			run(t, env, "podman", "pull", "--cert-dir", s.certs, "e2e-tls:1")
			if got := run(t, env, "podman", "run", "--rm", "--network", "none", "--pull", "never", "e2e-tls:1"); got != s.image.greeting {
				t.Errorf("podman run printed %q, want %q", got, s.image.greeting)
			}
		})
	}
}

func TestTLSPodman(t *testing.T) {
	s := newSecureSite(t, byRights)
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
	s := newSecureSite(t, byRights)
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
