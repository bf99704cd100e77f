package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// role is what a rival can be asked to do.
type role int

const (
	caches  role = 1 << iota // pulls through from upstream, and keeps it
	files                    // serves bytes that were laid out for it beforehand
	direct                   // is upstream itself
	bounded                  // keeps to a bound of its disk use
)

// rival is a server in the comparison.
type rival struct {
	name    string
	about   string // for the report
	roles   role
	prefix  string // of every repository's path, with a slash at its end
	version func(b *bench) string
	start   func(b *bench, s site) (*process, error) // nil: it is running already
	age     func(s *server, d time.Duration) error   // lets time pass by for what is held; nil: it goes by order alone
}

// site is what a rival is started with. Command lines of -rival find it in
// their environment: LISTEN, PORT, UPSTREAM, DATA, TTL, CACHE_SIZE.
type site struct {
	Listen    string // host:port
	Upstream  string // URL of the hub's registry
	Data      string // an empty directory; after it has ended all of it is removed
	Files     string // what was laid out for those who serve files
	TTL       int    // seconds for which a tag may be served without asking
	CacheSize int64  // bound of what is kept, in bytes; 0: none
	Admin     string // host:port of our own admin listener; empty: none
	Root      bool   // we are root: nginx would change its user
	link      *link  // to clients that are far away; nil: they are here
	ownDisk   bool   // Data is a file system of its own, so that what it takes can be told
}

// The product, and those that it is compared with.
const (
	ours       = "entrepot"
	hubItself  = "direct"
	nginxFiles = "nginx-files"
	bareGo     = "bare"
	nginxCache = "nginx-cache"
	dist2      = "distribution-2"
	dist3      = "distribution-3"
)

func allRivals() []rival {
	return []rival{
		{
			name: ours, roles: caches | bounded, version: oursVersion, start: startOurs, age: ageOurs,
			about: fmt.Sprintf("this program, with its defaults but for addresses, `ENTREPOT_TAG_TTL` (a day, and %d s in the trace) and, in the trace, `ENTREPOT_CACHE_SIZE`; its upstream is called `%s`, since at Docker Hub's name it would keep to Docker Hub's pace", traceTTL, upstreamName),
		},
		{
			name: hubItself, roles: direct,
			about: "no cache: the client goes to the fake registry, and where that redirects to",
		},
		{
			name: dist2, roles: caches, start: startDistribution("docker-registry"), version: firstLine("docker-registry", "--version"),
			about: "Debian's docker-registry in proxy mode, else set up as the package does (bench/rivals/distribution.yml) but for its log and its password file",
		},
		{
			name: dist3, roles: caches, start: startDistribution("bin/registry"), version: moduleVersion("github.com/distribution/distribution/v3"),
			about: "distribution 3 in proxy mode, built from its module, set up alike",
		},
		{
			name: nginxCache, roles: caches | bounded, start: startNginx("nginx-cache.conf"), version: firstLine("nginx", "-v"),
			about: "nginx with `proxy_cache`, set up as bench/rivals/nginx-cache.conf says",
		},
		{
			name: nginxFiles, roles: files, start: startNginx("nginx-files.conf"), version: firstLine("nginx", "-v"),
			about: "nginx serving the same bytes as plain files: a ceiling",
		},
		{
			name: bareGo, roles: files, start: startBare,
			about: "a Go handler that knows one image, and answers for manifests with the headers that ours have and for blobs by `http.ServeContent`; the timeouts that every server on a network needs, and nothing else: the floor of our stack",
		},
	}
}

// customRival is another one, from name=command or name/prefix=command. The
// command is a shell's; it should end in exec, so that what is watched is the
// server.
func customRival(flag string) (rival, error) {
	name, command, ok := strings.Cut(flag, "=")
	name, prefix, _ := strings.Cut(name, "/")
	if !ok || name == "" || command == "" {
		return rival{}, fmt.Errorf("-rival %s: want name=command or name/prefix=command", flag)
	}
	if prefix != "" {
		prefix = strings.TrimSuffix(prefix, "/") + "/"
	}
	return rival{
		name: name, roles: caches, prefix: prefix, about: "added by `-rival`: `" + command + "`",
		start: func(_ *bench, s site) (*process, error) {
			_, port, _ := strings.Cut(s.Listen, ":")
			return s.launch([]string{
				"LISTEN=" + s.Listen, "PORT=" + port, "UPSTREAM=" + s.Upstream, "DATA=" + s.Data,
				"TTL=" + strconv.Itoa(s.TTL), "CACHE_SIZE=" + strconv.FormatInt(s.CacheSize, 10),
			}, "sh", "-c", command)
		},
	}, nil
}

// launch starts a rival's program.
func (s site) launch(env []string, command ...string) (*process, error) {
	return startProcess(s.link.near(), filepath.Join(s.Data, "log"), env, command...)
}

//go:embed rivals
var configs embed.FS

// render writes a rival's configuration into its directory.
func (s site) render(name string) (string, error) {
	t, err := template.ParseFS(configs, "rivals/"+name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.Data, name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(t.Execute(f, s), f.Close())
}

// upstreamName is what our own cache calls the hub: by Docker Hub's name it
// would keep to Docker Hub's pace.
const upstreamName = "registry.test"

func startOurs(b *bench, s site) (*process, error) {
	env := []string{
		"ENTREPOT_LISTEN=" + s.Listen, "ENTREPOT_ADMIN_LISTEN=" + s.Admin, "ENTREPOT_DATA=" + filepath.Join(s.Data, "data"),
		"ENTREPOT_UPSTREAMS=" + upstreamName, "ENTREPOT_DEFAULT_UPSTREAM=" + upstreamName,
		"ENTREPOT_UPSTREAM_0_NAME=" + upstreamName, "ENTREPOT_UPSTREAM_0_URL=" + s.Upstream,
		"ENTREPOT_TAG_TTL=" + strconv.Itoa(s.TTL) + "s",
	}
	if s.CacheSize > 0 {
		env = append(env, "ENTREPOT_CACHE_SIZE="+strconv.FormatInt(s.CacheSize, 10)+"B")
	}
	return s.launch(env, b.binary)
}

// ageOurs moves the times of blobs back. What goes first is decided by them, to
// ten minutes: without this a trace of a minute would be one moment.
func ageOurs(s *server, d time.Duration) error {
	err := filepath.WalkDir(filepath.Join(s.data, "data", "blobs"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return os.Chtimes(path, time.Time{}, info.ModTime().Add(-d)) // in whole seconds: nanoseconds say other things
	})
	if errors.Is(err, os.ErrNotExist) { // evicted meanwhile; the others are next time's
		return nil
	}
	return err
}

// startDistribution starts a program, or one below the harness's directory.
func startDistribution(program string) func(*bench, site) (*process, error) {
	return func(b *bench, s site) (*process, error) {
		path := program
		if strings.Contains(program, "/") {
			path = filepath.Join(b.root, "bench", program)
		}
		if _, err := exec.LookPath(path); err != nil {
			return nil, err
		}
		s.Data = filepath.Join(s.Data, "registry")
		if err := os.MkdirAll(s.Data, 0o755); err != nil {
			return nil, err
		}
		config, err := s.render("distribution.yml")
		if err != nil {
			return nil, err
		}
		return s.launch(nil, path, "serve", config)
	}
}

func startNginx(name string) func(*bench, site) (*process, error) {
	return func(_ *bench, s site) (*process, error) {
		program, err := exec.LookPath("nginx")
		if err != nil {
			return nil, err
		}
		config, err := s.render(name)
		if err != nil {
			return nil, err
		}
		return s.launch(nil, program, "-p", s.Data, "-c", config, "-e", filepath.Join(s.Data, "error.log"))
	}
}

func startBare(_ *bench, s site) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return s.launch(nil, self, "bare", s.Listen, s.Files)
}

// runBare serves the files below a directory, known by their paths: manifests
// from memory, with the headers that ours have, blobs by http.ServeContent.
func runBare(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("bare: want an address and a directory")
	}
	addr, root := args[0], args[1]
	manifests, blobs := map[string]*manifestFile{}, map[string]string{}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		urlPath := strings.TrimPrefix(path, root)
		if !strings.Contains(urlPath, "/manifests/") {
			blobs[urlPath] = path
			return nil
		}
		body, err := os.ReadFile(path)
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(body))
		manifests[urlPath] = &manifestFile{body: body, length: []string{strconv.Itoa(len(body))}, digest: []string{digest}, tag: []string{`"` + digest + `"`}}
		return err
	})
	if err != nil {
		return err
	}
	kind, from := []string{"application/vnd.oci.image.manifest.v1+json"}, []string{"hit"}
	return serveUntil(ctx, addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if m := manifests[r.URL.Path]; m != nil {
			h["Content-Type"], h["Content-Length"], h["Docker-Content-Digest"], h["Etag"], h["X-Cache"] = kind, m.length, m.digest, m.tag, from
			_, _ = w.Write(m.body)
			return
		}
		f, err := os.Open(blobs[r.URL.Path])
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		h.Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, f)
	}))
}

type manifestFile struct {
	body                []byte
	length, digest, tag []string // the header's values
}

func firstLine(command ...string) func(*bench) string {
	return func(b *bench) string { return b.firstLine(command...) }
}

// moduleVersion is what bench/tools.mod says of a module.
func moduleVersion(module string) func(*bench) string {
	return func(b *bench) string {
		return b.firstLine("go", "list", "-modfile=bench/tools.mod", "-m", module)
	}
}

func oursVersion(b *bench) string {
	version := b.firstLine("git", "describe", "--always", "--dirty", "--exclude=*")
	if version == "" {
		return "devel"
	}
	return "commit " + version
}

// firstLine is the first line that a command prints, run in the project's
// directory; empty if it cannot be had.
func (b *bench) firstLine(command ...string) string {
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // at once
	cmd.Dir = b.root
	out, err := cmd.CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
