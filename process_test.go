package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"entrepot/internal/ocitest"
)

// seedFlag repeats a run whose random choices were printed.
var seedFlag = flag.Uint64("seed", 0, "seed of random schedules; 0: another each time")

// schedule is the randomness of one test, which says how to have it again.
func schedule(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("go test -run '^%s$' -seed %d", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// process is the product in a process of its own: it can be killed, and its
// memory is nobody else's.
type process struct {
	cmd      *exec.Cmd
	began    time.Time
	log      syncBuffer
	serving  chan struct{} // closed when it says that it serves
	ended    chan struct{} // closed when it has
	err      error         // how it ended; set before ended is closed
	took     time.Duration // from its start until it served; set before serving is closed
	registry string        // URL; set before serving is closed
	admin    string        // likewise
}

// self is the product as a command.
func self(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Args = append([]string{"entrepot"}, args...)
	return cmd
}

// startProcess runs serve with these variables on free ports.
func startProcess(t *testing.T, pairs ...string) *process {
	t.Helper()
	return startBy(t, self(t), pairs...)
}

// startBy is startProcess by a command that becomes the product.
func startBy(t *testing.T, cmd *exec.Cmd, pairs ...string) *process {
	t.Helper()
	p := &process{cmd: cmd, began: time.Now(), serving: make(chan struct{}), ended: make(chan struct{})}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it started can be ended with it
	p.cmd.Env = append([]string{"GORACE=" + raceOptions, "ENTREPOT_LISTEN=127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN=127.0.0.1:0"}, pairs...)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.follow(stderr)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the log of process %d:\n%s", p.cmd.Process.Pid, &p.log)
		}
	})
	return p
}

// follow reads the log to its end, and then how the process ended.
func (p *process) follow(stderr io.Reader) {
	lines := make(chan string)
	go readLines(stderr, lines)
	for line := range lines {
		fmt.Fprintln(&p.log, line)
		var said struct {
			Message, Listen string
			Admin           string `json:"admin_listen"`
		}
		if json.Unmarshal([]byte(line), &said) == nil && said.Message == "serving" {
			p.registry, p.admin = "http://"+said.Listen, "http://"+said.Admin
			p.took = time.Since(p.began)
			close(p.serving)
		}
	}
	p.err = p.cmd.Wait()
	close(p.ended)
}

// await waits until the process serves.
func (p *process) await(t *testing.T) {
	t.Helper()
	select {
	case <-p.serving:
	case <-p.ended:
		t.Fatalf("the process ended before it served: %v\n%s", p.err, &p.log)
	}
}

// isOver reports whether a channel is closed.
func isOver(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// kill ends the process as the kernel does when memory is short, and what it
// started: while that holds the log open, the log has no end.
func (p *process) kill() {
	if !isOver(p.ended) {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-p.ended
}

// terminate ends it as an operator does: it exits with 0.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if <-p.ended; p.err != nil {
		t.Errorf("after SIGTERM the process ended with %v", p.err)
	}
}

// anonymous is the memory of the process that no file stands behind, in bytes.
func (p *process) anonymous() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no RssAnon in /proc")
}

// upstreamName is what tests call the fake hub where Docker Hub's rate limit
// would only slow them down.
const upstreamName = "registry.test"

// over are the variables of a process over a hub.
func over(hub *ocitest.Hub, dir string) []string {
	return []string{
		"ENTREPOT_DATA=" + dir, "ENTREPOT_UPSTREAMS=" + upstreamName, "ENTREPOT_DEFAULT_UPSTREAM=" + upstreamName,
		"ENTREPOT_UPSTREAM_0_NAME=" + upstreamName, "ENTREPOT_UPSTREAM_0_URL=" + hub.URL(), "ENTREPOT_MIN_FREE=0",
	}
}

// errStatus is an answer that is no success.
var errStatus = errors.New("status")

// errWrong is an answer whose bytes are not those that were pushed: whatever
// else happens, this must not.
var errWrong = errors.New("wrong bytes")

// puller is a client that knows what it should get.
type puller struct {
	client   *http.Client
	registry string
	sample   int // bytes of each read that are compared; 0: all
}

// wants asks for a path, and expects a status.
func (p puller) wants(ctx context.Context, path, rang string, status int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.registry+"/v2/app/"+path, nil)
	if err != nil {
		return nil, err
	}
	if rang != "" {
		req.Header.Set("Range", rang)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != status {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		resp.Body.Close()
		return nil, fmt.Errorf("%w %d: %s", errStatus, resp.StatusCode, body)
	}
	return resp, nil
}

// manifest gets an image's manifest by tag.
func (p puller) manifest(ctx context.Context, tag string, image ocitest.Image) error {
	resp, err := p.wants(ctx, "manifests/"+tag, "", http.StatusOK)
	if err != nil {
		return err
	}
	return p.compare(resp, image.Content, 0, image.Size)
}

// blob reads a blob from offset, to its end if length is negative. What comes is
// compared, also where the answer is cut.
func (p puller) blob(ctx context.Context, blob ocitest.Content, offset, length int64) error {
	rang, status, end := "", http.StatusOK, blob.Size
	switch {
	case length >= 0:
		end = offset + length
		rang, status = fmt.Sprintf("bytes=%d-%d", offset, end-1), http.StatusPartialContent
	case offset > 0:
		rang, status = fmt.Sprintf("bytes=%d-", offset), http.StatusPartialContent
	}
	resp, err := p.wants(ctx, "blobs/"+blob.Digest.String(), rang, status)
	if err != nil {
		return err
	}
	return p.compare(resp, blob, offset, end)
}

// compare reads a body to its end, which must be what content has from offset
// to end.
func (p puller) compare(resp *http.Response, content ocitest.Content, offset, end int64) error {
	defer resp.Body.Close()
	if resp.ContentLength != end-offset {
		return fmt.Errorf("%w: %d are announced, not %d", errWrong, resp.ContentLength, end-offset)
	}
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(got)
		if int64(n) > end-offset {
			return fmt.Errorf("%w: some behind %d", errWrong, end)
		}
		some := n
		if p.sample > 0 {
			some = min(n, p.sample)
		}
		_, _ = content.ReadAt(want[:some], offset)
		if !bytes.Equal(got[:some], want[:some]) {
			return fmt.Errorf("%w between %d and %d of %s", errWrong, offset, offset+int64(n), content.Digest)
		}
		offset += int64(n)
		switch {
		case errors.Is(err, io.EOF) && offset < end:
			return fmt.Errorf("%w: a clean end at %d of %d", errWrong, offset, end)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// awaitNoFills waits until every blob that was on its way is kept or given up.
func awaitNoFills(t *testing.T, client *http.Client, admin string) {
	t.Helper()
	for t.Context().Err() == nil {
		if _, scrape, _ := get(t, client, admin+"/metrics"); strings.Contains(scrape, "\nentrepot_fills_running 0\n") {
			return
		}
	}
}
