//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout   = 30 * time.Second // until a daemon says that it is ready
	stopTimeout    = 20 * time.Second // from SIGTERM to SIGKILL
	commandTimeout = 90 * time.Second // of one client command, unless it says otherwise
	tailLines      = 60               // of a daemon's output, shown when a test fails
)

// process is a running daemon. It ends with the test that started it.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *transcript
	done   chan struct{} // closed when it has ended and err is set
	err    error
	told   int // the exit code of one that was told to end
}

// start starts a daemon and waits until its output matches ready. The kernel
// ends it should the test binary be killed.
func start(t *testing.T, name string, env []string, ready *regexp.Regexp, command ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(command[0], command[1:]...), output: newTranscript(), done: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = 5 * time.Second // for grandchildren that keep the pipe open
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
		p.output.end()
	}()
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("%s ended badly: %v", name, err)
		}
		if t.Failed() {
			t.Logf("the last lines of %s:\n%s", name, p.output.tail(tailLines))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if _, err := p.output.await(ctx, ready); err != nil {
		t.Fatalf("%s is not ready: %v", name, err)
	}
	return p
}

// stop asks the process to end and waits. Another exit code than it is to have is
// an error, and so is having to kill it; some daemons do not catch SIGTERM.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself: Wait tells
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		return errors.Join(fmt.Errorf("still running %v after SIGTERM", stopTimeout), p.err)
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && (status.Signal() == syscall.SIGTERM || status.Exited() && status.ExitStatus() == p.told) {
		return nil
	}
	return p.err
}

// transcript is what a process has written so far.
type transcript struct {
	mu      sync.Mutex // guards everything below
	buf     bytes.Buffer
	ended   bool
	changed chan struct{} // closed and replaced on every write and at the end
}

func newTranscript() *transcript { return &transcript{changed: make(chan struct{})} }

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.signalLocked()
	return tr.buf.Write(p)
}

func (tr *transcript) end() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.ended = true
	tr.signalLocked()
}

func (tr *transcript) signalLocked() {
	close(tr.changed)
	tr.changed = make(chan struct{})
}

// await waits until the output matches, and returns the match with its groups.
func (tr *transcript) await(ctx context.Context, want *regexp.Regexp) ([]string, error) {
	for {
		tr.mu.Lock()
		match, ended, changed := want.FindSubmatch(tr.buf.Bytes()), tr.ended, tr.changed
		groups := []string{}
		for _, g := range match {
			groups = append(groups, string(g))
		}
		tr.mu.Unlock()
		switch {
		case match != nil:
			return groups, nil
		case ended:
			return nil, fmt.Errorf("it ended before its output matched %s", want)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("its output did not match %s: %w", want, ctx.Err())
		}
	}
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.buf.String()
}

func (tr *transcript) tail(n int) string {
	lines := strings.Split(strings.TrimRight(tr.String(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// run runs a command to its end and returns what it wrote to standard output.
// It fails the test, with everything it wrote, unless the exit code is 0.
func run(t *testing.T, env []string, command ...string) string {
	t.Helper()
	out, err := try(t.Context(), commandTimeout, env, command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try is run for other goroutines than the test's own, and for longer commands.
func try(ctx context.Context, timeout time.Duration, env []string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, ctx.Err())
		}
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(command, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// tempDir is a directory with a name short enough for sockets, cleared of
// mounts and removed at the end, when what clients leave running there has ended.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e") //nolint:usetesting // t.TempDir is too long a name and cannot unmount
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(unmountBelow(dir), os.RemoveAll(dir))
		for tries := 0; err != nil && tries < 50; tries++ { // podman leaves a process that tidies up after it
			time.Sleep(100 * time.Millisecond)
			err = errors.Join(unmountBelow(dir), os.RemoveAll(dir))
		}
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// unmountBelow undoes what daemons leave mounted, the last first.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	points := []string{}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	for _, point := range slices.Backward(points) {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// write puts a file in place, with its directories.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
