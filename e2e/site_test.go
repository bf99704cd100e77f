//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"entrepot/internal/ocitest"
)

// site is a cache between two upstreams and the clients of one test.
type site struct {
	hub    upstream // docker.io, with its tokens and its CDN
	ghcr   upstream // ghcr.io, which serves blobs itself
	cache  *process
	addr   string // of the cache: "127.0.0.1:4321"
	data   string // its data directory
	around *trap
	env    []string // of the cache

	trusted []string // flags of entrepot client: what clients of TLS have
}

var ghcrHabits = ocitest.Habits{InlineBlobs: true, TokenField: "token", NoExpiresIn: true}

// newSite starts both upstreams and the cache. More settings may add upstreams,
// numbered from 2.
func newSite(t *testing.T, settings ...string) *site {
	t.Helper()
	s := &site{
		hub:    upstream{ocitest.NewHub(t, ocitest.Config{}), true},
		ghcr:   upstream{ocitest.NewHub(t, ocitest.Config{Habits: ghcrHabits}), false},
		data:   filepath.Join(tempDir(t), "data"),
		around: newTrap(t),
	}
	s.env = append([]string{
		"GORACE=atexit_sleep_ms=0", // the binary is built with the race detector
		"ENTREPOT_LISTEN=127.0.0.1:0",
		"ENTREPOT_ADMIN_LISTEN=",
		"ENTREPOT_DATA=" + s.data,
		"ENTREPOT_MIN_FREE=0",
		"ENTREPOT_LOG_LEVEL=debug",
		"ENTREPOT_LOG_FORMAT=console",
		"ENTREPOT_UPSTREAMS=docker.io,ghcr.io",
		"ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_URL=" + s.hub.URL(),
		"ENTREPOT_UPSTREAM_1_NAME=ghcr.io", "ENTREPOT_UPSTREAM_1_URL=" + s.ghcr.URL(),
	}, settings...)
	s.startCache(t)
	t.Cleanup(func() { s.stopCache(t) })
	return s
}

// listening finds the address in the line that the cache prints when it serves.
var listening = regexp.MustCompile(`((?:127\.0\.0\.1|\[::1\]):\d+)\b`)

func (s *site) startCache(t *testing.T, settings ...string) {
	t.Helper()
	s.cache = start(t, "entrepot", append(slices.Clone(s.env), settings...), listening, entrepotBin)
	s.addr = listening.FindStringSubmatch(s.cache.output.String())[1]
}

// restartCache ends the cache as an operator does, and starts it on what it
// kept. Its address is another one.
func (s *site) restartCache(t *testing.T, settings ...string) {
	t.Helper()
	s.stopCache(t)
	s.startCache(t, settings...)
}

// stopCache ends the cache, which must take SIGTERM as a wish and exit with 0.
func (s *site) stopCache(t *testing.T) {
	t.Helper()
	if err := s.cache.stop(); err != nil {
		t.Errorf("stop the cache: %v", err)
	}
	if code := s.cache.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the cache ended with %s on SIGTERM, want exit code 0", s.cache.cmd.ProcessState)
	}
}

func (s *site) stopUpstreams() {
	s.hub.Close()
	s.ghcr.Close()
}

// clientFile is what `entrepot client` prints for the cache.
func (s *site) clientFile(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, s.env, append(append([]string{entrepotBin, "client", "--address", s.addr}, s.trusted...), args...)...)
}

// ref is an image's name in path form: "127.0.0.1:4321/docker.io/library/hello:1".
func (s *site) ref(name string) string { return s.addr + "/" + name }

// client is the environment of a client whose home and storage are dir: nothing
// of the host's configuration, and all that does not go to loopback ends in the
// trap.
func (s *site) client(dir string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"HOME=" + dir,
		"TMPDIR=" + dir,
		"XDG_RUNTIME_DIR=" + dir,
		"HTTP_PROXY=" + s.around.url, "HTTPS_PROXY=" + s.around.url,
		"http_proxy=" + s.around.url, "https_proxy=" + s.around.url,
		"NO_PROXY=127.0.0.1,localhost,::1", "no_proxy=127.0.0.1,localhost,::1",
	}
}

// trap is a forward proxy that refuses everybody. It finds out who goes around
// the cache: clients with a mirror do that without a word.
type trap struct {
	url string

	mu   sync.Mutex // guards seen
	seen []string
}

func newTrap(t *testing.T) *trap {
	t.Helper()
	tr := &trap{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.mu.Lock()
		tr.seen = append(tr.seen, fmt.Sprintf("%s %s (%s)", r.Method, r.RequestURI, r.UserAgent()))
		tr.mu.Unlock()
		http.Error(w, "there is no way around the cache", http.StatusForbidden)
	}))
	t.Cleanup(func() {
		server.Close()
		if seen := tr.take(); len(seen) > 0 {
			t.Errorf("a client went around the cache:\n%s", strings.Join(seen, "\n"))
		}
	})
	tr.url = server.URL
	return tr
}

// take is for a test that knows who goes around.
func (tr *trap) take() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	seen := tr.seen
	tr.seen = nil
	return seen
}
