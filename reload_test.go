package main

import (
	"bytes"
	"errors"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/store"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// hangUp sends SIGHUP to the process, a thousand a second, so many times or until
// its end.
func (p *process) hangUp(t *testing.T, times int) {
	t.Helper()
	beats := time.NewTicker(time.Millisecond)
	defer beats.Stop()
	for range times {
		select {
		case <-p.ended:
			return
		case <-beats.C:
			if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Error(err)
				return
			}
		}
	}
}

// awaitLog waits until the process has logged text.
func (p *process) awaitLog(t *testing.T, text string) {
	t.Helper()
	looks := time.NewTicker(time.Millisecond)
	defer looks.Stop()
	for !strings.Contains(p.log.String(), text) {
		select {
		case <-p.ended:
			t.Fatalf("the process ended without %q: %v", text, p.err)
		case <-looks.C:
		}
	}
}

// A service manager sends SIGHUP when it likes. One that comes before the stack
// is up is done when it is, and none ends the process, while it stops neither.
func TestHangupsAtAnyTime(t *testing.T) {
	t.Parallel()
	hub, dir := ocitest.NewHub(t, ocitest.Config{}), t.TempDir()
	holder, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, append(over(hub, dir), "DOCKER_CONFIG="+filepath.Join(dir, "none"))...)
	p.awaitLog(t, "there is no login to read") // its first words: the stack waits for the directory
	p.hangUp(t, 50)
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	p.await(t)
	p.awaitLog(t, "SIGHUP: reading files again")

	stormed := make(chan struct{})
	go func() {
		defer close(stormed)
		p.hangUp(t, math.MaxInt)
	}()
	p.terminate(t)
	<-stormed
}

// Whoever may send one before the program itself runs starts it with SIGHUP
// ignored: it catches it all the same once it can.
func TestHangupsFromTheFirstInstant(t *testing.T) {
	t.Parallel()
	hub, dir := ocitest.NewHub(t, ocitest.Config{}), t.TempDir()
	link := filepath.Join(dir, "entrepot")
	if err := os.Symlink(self(t).Path, link); err != nil {
		t.Fatal(err)
	}
	p := startBy(t, exec.Command("sh", "-c", `trap "" HUP; kill -HUP $$; echo ignored >&2; exec "$0"`, link), over(hub, filepath.Join(dir, "data"))...)
	p.awaitLog(t, "ignored") // before that it would end the shell
	for !isOver(p.serving) && !isOver(p.ended) {
		p.hangUp(t, 1)
	}
	p.await(t)
	p.awaitLog(t, "SIGHUP: reading files again")
	p.terminate(t)
}

// Other commands have nothing to read again: SIGHUP, as a terminal sends it that is
// closed, ends them.
func TestHangupEndsOtherCommands(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := self(t, "healthcheck")
	cmd.Env = []string{"ENTREPOT_LISTEN=" + l.Addr().String()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept() // and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGHUP {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

// systemd hears that the server serves.
func TestReadyIsTold(t *testing.T) {
	t.Parallel()
	hub, dir := ocitest.NewHub(t, ocitest.Config{}), t.TempDir()
	socket := filepath.Join(dir, "s")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	p := startProcess(t, append(over(hub, filepath.Join(dir, "data")), "NOTIFY_SOCKET="+socket)...)
	p.await(t)
	if err := manager.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	heard := make([]byte, 100)
	n, err := manager.Read(heard)
	if err != nil || string(heard[:n]) != "READY=1" {
		t.Fatalf("the manager hears %q: %v", heard[:n], err)
	}
	if status, body, _ := get(t, newClient(t), p.admin+"/readyz"); status != http.StatusOK {
		t.Errorf("/readyz answers %d %s", status, body)
	}
	p.terminate(t)
}

// Authorities of upstreams are read again, as all files are: for what is asked
// from then on, without a restart.
func TestAuthoritiesOfUpstreamsAreReadAgain(t *testing.T) {
	t.Parallel()
	hub, path := ocitest.NewHub(t, ocitest.Config{TLS: true}), writeFile(t, string(ocitest.NewCA().PEM))
	hub.Push("library/app", "1", ocitest.RandomImage(1, 3000))
	p := startProgram(t, hub, "ENTREPOT_UPSTREAM_0_CA_FILE="+path, "ENTREPOT_LOG_LEVEL=info")
	client := newClient(t)
	const tag = "/v2/library/app/manifests/1"
	if status, body, _ := get(t, client, p.registry+tag); status < 500 {
		t.Fatalf("from an upstream that nobody vouches for: %d %s", status, body)
	}
	replaceFile(t, path, hub.CA())
	p.log.await(t, `"what":"authorities of docker.io"`)
	for status := 0; status != http.StatusOK; { // what failed is not asked again in the same second
		status, _, _ = get(t, client, p.registry+tag)
	}
}

// What a file of rights lets in that its writer may not mean is told when it is
// read again, too.
func TestRightsThatAreReadAgainAreWarnedOf(t *testing.T) {
	t.Parallel()
	p := startProtected(t, "ENTREPOT_LOG_LEVEL=info")
	rules := filepath.Join(p.dir, "rules")
	const warning = "claim sub: "
	if strings.Contains(p.log.String(), warning) {
		t.Fatal("it is warned of before it is there")
	}
	replaceFile(t, rules, []byte(testRules+`
oidc:
  - issuer: https://ci.example
    audience: us
    identities: [{user: ci, claims: {sub: "repo:acme*"}}]
`))
	p.log.await(t, warning)
	if !strings.Contains(p.log.String(), "ENTREPOT_ACCESS_FILE: "+rules+": ") {
		t.Errorf("the file is not named:\n%s", p.log)
	}
}

// Who looks at the server sees that a change is not in force, until it is.
func TestFilesThatCannotBeReadAreShown(t *testing.T) {
	t.Parallel()
	p := startProtected(t, "ENTREPOT_LOG_LEVEL=info")
	o, rules := operatorOf(t, p.program), filepath.Join(p.dir, "rules")
	replaceFile(t, rules, []byte("rules: nobody"))
	p.log.await(t, "cannot be read: what was read before stays")
	wantLines(t, o.must("status", "--table"), `FILES  1 cannot be read: what was read before stays`, "  rights for \\d+s: not an access file: line 1: want a list here, and not.*", `    ENTREPOT_ACCESS_FILE=.*`)
	wantLines(t, o.must("status"), `.*"unread":\[\{"what":"rights","error":"[^"]+","settings":\["ENTREPOT_ACCESS_FILE=`+regexp.QuoteMeta(rules)+`"\],"since":"SINCE"\}\].*`)
	replaceFile(t, rules, []byte(testRules))
	p.log.await(t, "read again")
	if out := o.must("status", "--table"); strings.Contains(out, "cannot be read") {
		t.Errorf("it has been read since:\n%s", out)
	}
}

// Whoever asks for files to be read again is told again of what cannot be. It is in the
// way since it first was, for all that.
func TestHangupsTellAgainOfWhatCannotBeRead(t *testing.T) {
	var log bytes.Buffer
	var broken error
	r := newReloader(zerolog.New(&log), nil, func([]string) []string { return []string{"SETTING=file"} })
	r.add("thing", func() error {
		if n := len(r.unread()); broken != nil && log.Len() > 0 && n != 1 {
			t.Errorf("while it is read %d things cannot be", n)
		}
		return broken
	}, writeFile(t, "1"))
	broken = errors.New("it is broken")
	r.all[0].read(r.log, nil)
	before := r.unread()
	if len(before) != 1 || before[0].Since.IsZero() || before[0].Error != "it is broken" || before[0].Settings[0] != "SETTING=file" {
		t.Fatalf("%+v", before)
	}
	r.round(time.Now().Add(reloadEvery))
	r.readAll()
	if diff := cmp.Diff(before, r.unread()); diff != "" {
		t.Errorf("after SIGHUP (-before +after):\n%s", diff)
	}
	if n := strings.Count(log.String(), "it is broken"); n != 2 {
		t.Errorf("told %d times, want at first and at SIGHUP:\n%s", n, &log)
	}
	broken = nil
	if r.readAll(); len(r.unread()) > 0 {
		t.Errorf("it has been read: %+v", r.unread())
	}
}
