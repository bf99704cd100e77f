package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the program as its users do: testdata/script has the
// commands, the files and what is expected of them on one page each. Beside
// testscript's own commands there are those below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     scriptExits,
			"start":     scriptStart,
			"hangup":    scriptHangup,
			"terminate": scriptTerminate,
			"get":       scriptGet,
			"occupy":    scriptOccupy,
		},
	})
}

// setupScript puts the product on the path, under its name.
func setupScript(e *testscript.Env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Join(e.WorkDir, ".bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
	e.Setenv("GORACE", raceOptions)
	e.Values[runningKey{}] = new(running)
	return os.Symlink(self, filepath.Join(bin, "entrepot"))
}

// raceOptions keep the race detector from waiting a second at each exit.
const raceOptions = "atexit_sleep_ms=0"

// running is the server that a script started.
type running struct {
	cmd *exec.Cmd
	log chan string // what it writes, by line; closed at its end
}

type runningKey struct{}

// scriptStart ("start NAME=value...") runs a server with these variables and
// waits until it says that it serves. REGISTRY, ADMIN and METRICS are then its
// addresses, and serving.json what it said.
func scriptStart(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(filepath.Join(ts.Getenv("WORK"), ".bin", "entrepot"))
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append([]string{"HOME=" + ts.Getenv("HOME"), "GORACE=" + raceOptions}, args...)
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	r := ts.Value(runningKey{}).(*running)
	*r = running{cmd: cmd, log: make(chan string, 1000)}
	go readLines(stderr, r.log)
	ts.Defer(func() {
		if r.cmd != nil {
			_ = r.cmd.Process.Kill()
			_ = r.wait(ts)
		}
	})
	for line := range r.log {
		ts.Logf("%s", line)
		var said struct{ Message, Listen, AdminListen, MetricsListen string }
		line = strings.ReplaceAll(strings.ReplaceAll(line, "admin_listen", "AdminListen"), "metrics_listen", "MetricsListen")
		if json.Unmarshal([]byte(line), &said) == nil && said.Message == "serving" {
			ts.Setenv("REGISTRY", said.Listen)
			ts.Setenv("ADMIN", said.AdminListen)
			ts.Setenv("METRICS", said.MetricsListen)
			ts.Check(os.WriteFile(ts.MkAbs("serving.json"), []byte(line), 0o644))
			return
		}
	}
	ts.Fatalf("the server ended before it served")
}

func readLines(r io.Reader, lines chan<- string) {
	defer close(lines)
	for scanner := bufio.NewScanner(r); scanner.Scan(); {
		lines <- scanner.Text()
	}
}

// wait reads the log to its end, and then how the process ended.
func (r *running) wait(ts *testscript.TestScript) error {
	for line := range r.log {
		ts.Logf("%s", line)
	}
	err := r.cmd.Wait()
	r.cmd = nil
	return err
}

// scriptExits ("exits code program argument...") expects an exit code, of which
// testscript itself knows only zero and not zero.
func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		ts.Fatalf("%v: %v, want exit code %s", args[1:], err, args[0])
	}
	if got := strconv.Itoa(exit.ExitCode()); got != args[0] {
		ts.Fatalf("%v: exit code %s, want %s", args[1:], got, args[0])
	}
}

// scriptTerminate ("terminate") ends the server by SIGTERM, which is to lead to
// exit code 0.
func scriptTerminate(ts *testscript.TestScript, _ bool, _ []string) {
	r := ts.Value(runningKey{}).(*running)
	ts.Check(r.cmd.Process.Signal(syscall.SIGTERM))
	ts.Check(r.wait(ts))
}

// scriptHangup ("hangup text") sends SIGHUP to the server and waits until a line
// of its log has the text.
func scriptHangup(ts *testscript.TestScript, _ bool, args []string) {
	r := ts.Value(runningKey{}).(*running)
	ts.Check(r.cmd.Process.Signal(syscall.SIGHUP))
	for line := range r.log {
		ts.Logf("%s", line)
		if strings.Contains(line, args[0]) {
			return
		}
	}
	ts.Fatalf("the server ended")
}

// scriptGet ("get URL status") expects a status and prints the body.
func scriptGet(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: get URL status")
	}
	resp, err := http.Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s", body)
	if got := strconv.Itoa(resp.StatusCode); got != args[1] {
		ts.Fatalf("GET %s: %s %s, want %s", args[0], got, body, args[1])
	}
}

// scriptOccupy ("occupy NAME") listens on a free port and puts the address into
// a variable.
func scriptOccupy(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = l.Close() })
	ts.Setenv(args[0], l.Addr().String())
}
