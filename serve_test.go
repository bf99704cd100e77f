package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/proxy"

	"github.com/google/go-cmp/cmp"
)

// program is the whole program in this process.
type program struct {
	registry string // URL
	plain    string // likewise, without TLS beside it; empty for none
	admin    string // likewise
	log      *programLog
	stop     func() error // by the signal's way; what run returns
}

// startProgram runs serve over hub as Docker Hub until the test ends.
func startProgram(t *testing.T, hub *ocitest.Hub, pairs ...string) *program {
	t.Helper()
	p := &program{log: &programLog{serving: make(chan struct{})}}
	pairs = append([]string{
		"ENTREPOT_LISTEN=127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN=127.0.0.1:0", "ENTREPOT_LOG_LEVEL=debug", "ENTREPOT_DATA=" + filepath.Join(t.TempDir(), "data"),
		"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_URL=" + hub.URL(),
	}, pairs...)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, nil, environ(pairs...), io.Discard, p.log) }()
	p.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case <-p.log.serving:
	case err := <-ended:
		ended <- nil
		t.Fatalf("serve ended before it served: %v\n%s", err, p.log)
	}
	for _, line := range p.log.lines(t) {
		if line["message"] == "serving" {
			p.registry, p.admin = "http://"+line["listen"].(string), "http://"+line["admin_listen"].(string)
			if line["tls"] == true {
				p.registry = "https://" + line["listen"].(string)
			}
			if plain, ok := line["plain_listen"].(string); ok {
				p.plain = "http://" + plain
			}
		}
	}
	return p
}

// await waits until text is in the log.
func (l *programLog) await(t *testing.T, text string) {
	t.Helper()
	l.awaitTimes(t, text, 1)
}

// awaitTimes waits until the log has said text so often.
func (l *programLog) awaitTimes(t *testing.T, text string, times int) {
	t.Helper()
	for strings.Count(l.String(), text) < times {
		select {
		case <-t.Context().Done():
			t.Fatalf("the log never said %s", text)
		default:
			runtime.Gosched()
		}
	}
}

// programLog is a log that tells when the server serves.
type programLog struct {
	syncBuffer
	once    sync.Once
	serving chan struct{}
}

func (l *programLog) Write(p []byte) (int, error) {
	n, err := l.syncBuffer.Write(p)
	if bytes.Contains(p, []byte(`"message":"serving"`)) {
		l.once.Do(func() { close(l.serving) })
	}
	return n, err
}

func (l *programLog) lines(t *testing.T) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(l.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		all = append(all, fields)
	}
	return all
}

// pull gets a manifest by tag, and all that it leads to.
func (p *program) pull(t *testing.T, client *http.Client, name, tag string, image ocitest.Image) {
	t.Helper()
	status, body, header := get(t, client, p.registry+"/v2/"+name+"/manifests/"+tag)
	if status != http.StatusOK || body != string(image.Bytes()) {
		t.Fatalf("manifest %s:%s: %d %s", name, tag, status, body)
	}
	if got := header.Get("Docker-Content-Digest"); got != image.Digest.String() {
		t.Errorf("manifest %s:%s has digest %s, want %s", name, tag, got, image.Digest)
	}
	for _, blob := range image.Blobs {
		status, body, _ := get(t, client, p.registry+"/v2/"+name+"/blobs/"+blob.Digest.String())
		if status != http.StatusOK || oci.Sum([]byte(body)) != blob.Digest {
			t.Fatalf("blob %s: %d, %d bytes", blob.Digest, status, len(body))
		}
	}
}

func TestPullThroughTheWholeStack(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}})
	hub.AddUser("robot", "hunter2")
	image := ocitest.RandomImage(1, 100_000, 300)
	hub.Push("library/app", "1", image)
	hub.Private("library/app", "robot")
	data := "ENTREPOT_DATA=" + t.TempDir()
	login := []string{data, "ENTREPOT_DOCKERHUB_USERNAME=robot", "ENTREPOT_DOCKERHUB_PASSWORD_FILE=" + writeFile(t, "hunter2\n")}
	p := startProgram(t, hub, login...)
	client := newClient(t)

	p.pull(t, client, "library/app", "1", image)
	if got := hub.Count(ocitest.Match{Kind: ocitest.Manifest, Method: "GET"}); got != 1 {
		t.Errorf("a cold pull cost %d manifest GETs, want 1", got)
	}
	for { // a client has its last byte before the cache has put everything away
		if _, scrape, _ := get(t, client, p.admin+"/metrics"); strings.Contains(scrape, "\nentrepot_fills_running 0\n") {
			break
		}
	}
	hub.Reset()
	p.pull(t, client, "app", "1", image)
	p.pull(t, client, "docker.io/app", "1", image)
	if got := hub.Lines(); len(got) > 0 {
		t.Errorf("warm pulls cost %v", got)
	}

	_, scrape, _ := get(t, client, p.admin+"/metrics")
	for _, want := range []string{
		`entrepot_requests_total{kind="manifest",outcome="miss",status="2xx",upstream="docker.io"} 1`,
		`entrepot_requests_total{kind="manifest",outcome="hit",status="2xx",upstream="docker.io"} 2`,
		`entrepot_requests_total{kind="blob",outcome="hit",status="2xx",upstream="docker.io"}`,
		`entrepot_upstream_requests_total{kind="manifest",status="200",upstream="docker.io"} 2`,
		`entrepot_quota_limit{account="robot",host="` + hub.Host() + `",upstream="docker.io"} 100`,
		`entrepot_quota_left{account="robot",host="` + hub.Host() + `",upstream="docker.io"} 99`,
		`entrepot_quota_window_seconds{account="robot",host="` + hub.Host() + `",upstream="docker.io"} 21600`,
		"entrepot_fills_running 0",
		`entrepot_upstream_received_bytes_total{kind="blob",upstream="docker.io"} 100`,
	} {
		if !strings.Contains(scrape, want) {
			t.Errorf("no %q in the metrics:\n%s", want, scrape)
		}
	}
	if strings.Contains(p.log.String(), "hunter2") {
		t.Errorf("the log tells a secret:\n%s", p.log)
	}
	p.expectRequestLine(t)

	if err := p.stop(); err != nil {
		t.Fatalf("serve: %v", err)
	}
	hub.Close()
	again := startProgram(t, hub, append(login, "ENTREPOT_TAG_TTL=0s")...)
	again.pull(t, client, "library/app", "1", image) // held, so it is served, though upstream is gone
}

func (p *program) expectRequestLine(t *testing.T) {
	t.Helper()
	for _, line := range p.log.lines(t) {
		if line["message"] == "request" && line["kind"] == "manifest" && line["outcome"] == "miss" {
			got := map[string]any{}
			for _, key := range []string{"level", "method", "upstream", "repository", "reference", "status", "client", "user_agent"} {
				got[key] = line[key]
			}
			want := map[string]any{
				"level": "debug", "method": "GET", "upstream": "docker.io", "repository": "library/app", "reference": "1",
				"status": 200.0, "client": "127.0.0.1", "user_agent": "Go-http-client/1.1",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("request line (-want +got):\n%s", diff)
			}
			if spent, _ := line["spent"].(float64); spent < 2 {
				t.Errorf("a miss says that it cost %v requests: %v", spent, line)
			}
			return
		}
	}
	t.Errorf("no line for the first manifest in the log:\n%s", p.log)
}

// held is a GET whose answer the hub holds in its middle.
type held struct {
	gate   *ocitest.Gate
	result chan error // nil for a whole and right body
}

func holdBlob(t *testing.T, p *program, hub *ocitest.Hub) held {
	t.Helper()
	image := ocitest.RandomImage(7, 400_000)
	hub.Push("library/slow", "1", image)
	blob := image.Blobs[1]
	client := newClient(t)
	h := held{hub.Gate(ocitest.Match{Kind: ocitest.BlobKind}), make(chan error, 1)}
	h.gate.To(200_000)
	status, _, _ := get(t, client, p.registry+"/v2/library/slow/manifests/1")
	if status != http.StatusOK {
		t.Fatalf("manifest: %d", status)
	}
	resp, err := client.Get(p.registry + "/v2/library/slow/blobs/" + blob.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1000)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer resp.Body.Close()
		rest, err := io.ReadAll(resp.Body)
		if err == nil {
			err = blob.Digest.Verify(append(first, rest...))
		}
		h.result <- err
	}()
	return h
}

func TestRunningAnswersFinishBeforeTheEnd(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	p := startProgram(t, hub, "ENTREPOT_SHUTDOWN_TIMEOUT=1m")
	h := holdBlob(t, p, hub)
	ended := make(chan error, 1)
	go func() { ended <- p.stop() }()
	client := newClient(t)
	for { // until the signal has arrived; then probes hear of it while answers run
		if status, _, _ := get(t, client, p.admin+"/readyz"); status == http.StatusServiceUnavailable {
			break
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended (%v) while an answer was running", err)
	default:
	}
	h.gate.Open()
	if err := <-h.result; err != nil {
		t.Errorf("the running answer: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestAnswersThatTakeTooLongAreCut(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	p := startProgram(t, hub, "ENTREPOT_SHUTDOWN_TIMEOUT=0s")
	h := holdBlob(t, p, hub)
	if err := p.stop(); err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := <-h.result; err == nil {
		t.Error("the client saw a whole body, of which half was never sent")
	}
	if log := p.log.String(); !strings.Contains(log, "were cut") || !strings.Contains(log, proxy.ErrStopping.Error()) || strings.Contains(log, proxy.ErrClientGone.Error()) {
		t.Errorf("the log does not tell that it was us:\n%s", p.log)
	}
}

// The process itself: a signal starts the end, another one is the end, although
// an answer is running that may take a minute more.
func TestASecondSignalEndsAtOnce(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	manifests := ocitest.Match{Kind: ocitest.Manifest}
	hub.Inject(&ocitest.Fault{Match: manifests, Effect: ocitest.Hang()})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = []string{"entrepot"}
	cmd.Dir = t.TempDir()
	cmd.Env = []string{
		"GORACE=" + raceOptions, "ENTREPOT_LISTEN=127.0.0.1:0", "ENTREPOT_ADMIN_LISTEN=", "ENTREPOT_SHUTDOWN_TIMEOUT=1m",
		"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_URL=" + hub.URL(),
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go readLines(stderr, lines)
	listening := regexp.MustCompile(`"listen":"([^"]+)"`).FindStringSubmatch(awaitLine(t, lines, `"message":"serving"`))
	client := newClient(t)
	go func() {
		if resp, err := client.Get("http://" + listening[1] + "/v2/app/manifests/1"); err == nil {
			resp.Body.Close()
		}
	}()
	if err := hub.Await(t.Context(), manifests, 1); err != nil {
		t.Fatal(err)
	}
	for _, answer := range []string{`"message":"stopping`, "a second signal"} {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		awaitLine(t, lines, answer)
	}
	for range lines { // to its end
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Errorf("the process ended with %v, want exit code 1", err)
	}
}

func awaitLine(t *testing.T, lines <-chan string, part string) string {
	t.Helper()
	for line := range lines {
		if strings.Contains(line, part) {
			return line
		}
	}
	t.Fatalf("the process ended before it said %s", part)
	return ""
}

func TestAChangedSecretIsUsed(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.AddUser("robot", "first")
	one, two := ocitest.RandomImage(1, 10), ocitest.RandomImage(2, 10)
	for tag, image := range map[string]ocitest.Image{"1": one, "2": two} {
		hub.Push("team/"+tag, tag, image)
		hub.Private("team/"+tag, "robot")
	}
	secret := writeFile(t, "first")
	p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_USERNAME=robot", "ENTREPOT_UPSTREAM_0_PASSWORD_FILE="+secret)
	client := newClient(t)
	p.pull(t, client, "team/1", "1", one)
	hub.AddUser("robot", "second, and longer")
	if err := os.WriteFile(secret, []byte("second, and longer\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.pull(t, client, "team/2", "2", two)
}

// What is set reaches the store: more is pulled than may be held, every pull
// succeeds, and what is held stays below the cap.
// TestADiskThatFailsCostsNoPull: what cannot be kept is passed through, and
// operators hear of it once.
func TestADiskThatFailsCostsNoPull(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(3, 100_000, 200_000, 300_000)
	hub.Push("library/app", "1", image)
	data := t.TempDir()
	p := startProgram(t, hub, "ENTREPOT_DATA="+data, "ENTREPOT_PREFETCH=off")
	fills := filepath.Join(data, "fills")
	if err := errors.Join(os.RemoveAll(fills), os.WriteFile(fills, nil, 0o644)); err != nil { // where a directory should be
		t.Fatal(err)
	}
	client := newClient(t)
	for range 2 {
		p.pull(t, client, "library/app", "1", image)
	}
	_, _, header := get(t, client, p.registry+"/v2/library/app/blobs/"+image.Blobs[1].Digest.String())
	if got := header.Get("X-Entrepot-Cache"); got != "bypass" {
		t.Errorf("a blob that cannot be kept is %q, want bypass", got)
	}
	if _, scrape, _ := get(t, client, p.admin+"/metrics"); !regexp.MustCompile(`\nentrepot_disk_trouble_total\{reason="disk"\} [1-9]`).MatchString(scrape) {
		t.Errorf("the metrics do not tell of it:\n%s", scrape)
	}
	warned := 0
	for _, line := range p.log.lines(t) {
		if line["level"] == "warn" || line["level"] == "error" {
			warned++
			if text, _ := line["error"].(string); !strings.Contains(text, "the disk failed") {
				t.Errorf("a line that does not say why: %v", line)
			}
		}
	}
	if warned != 1 {
		t.Errorf("%d lines of warning within a minute, want 1", warned)
	}

	// And once the disk is well again, it is used.
	if err := os.Remove(fills); err != nil {
		t.Fatal(err)
	}
	other := ocitest.RandomImage(4, 100_000)
	hub.Push("library/app", "2", other)
	p.pull(t, client, "library/app", "2", other)
	awaitNoFills(t, client, p.admin)
	hub.Close()
	p.pull(t, client, "library/app", "2", other)
}

func TestTheCapIsKept(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(3, 3<<20, 3<<20, 3<<20, 3<<20, 20<<20)
	hub.Push("library/app", "1", image)
	data := t.TempDir()
	p := startProgram(t, hub, "ENTREPOT_DATA="+data, "ENTREPOT_CACHE_SIZE=8MiB", "ENTREPOT_MIN_FREE=0", "ENTREPOT_UPSTREAM_0_SHARE=100%")
	client := newClient(t)
	p.pull(t, client, "library/app", "1", image)
	awaitNoFills(t, client, p.admin)
	_, scrape, _ := get(t, client, p.admin+"/metrics")
	for _, want := range []string{`\nentrepot_disk_cap_bytes 8.388608e\+06\n`, `\nentrepot_evicted_total [1-9]`, `\nentrepot_disk_trouble_total\{reason="too_large"\} [1-9]`} {
		if !regexp.MustCompile(want).MatchString(scrape) {
			t.Errorf("no %q in the metrics:\n%s", want, scrape)
		}
	}
	var held int64
	for _, name := range filesBelow(t, data) {
		if info, err := os.Stat(name); err == nil {
			held += info.Size()
		}
	}
	if held > 8<<20 {
		t.Errorf("%d bytes are held", held)
	}
}
