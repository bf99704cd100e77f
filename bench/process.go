package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a server that the harness started, with whatever that starts.
type process struct {
	cmd   *exec.Cmd
	log   string // path of its output
	began time.Time
	ended chan struct{} // closed when it has
	err   error         // how; set before ended is closed
}

const (
	startTimeout = 60 * time.Second // from its start until it answers
	stopTimeout  = 15 * time.Second // from SIGTERM to SIGKILL
)

// startProcess starts a command whose output goes to a file, in a network
// namespace unless that is nil. It is a group of its own, and dies with the
// harness.
func startProcess(ns *namespace, log string, env []string, command ...string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{cmd: exec.Command(command[0], command[1:]...), log: log, ended: make(chan struct{})}                                                      //nolint:noctx // it ends by stop
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(log), "OTEL_TRACES_EXPORTER=none", "GORACE=atexit_sleep_ms=0"}, env...) // what is built for tests would sleep for a second
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// The kernel sends Pdeathsig when the thread that forked ends, not when the
	// process does: that thread has to outlive the child.
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := ns.enter()      // the thread is not used again
		if err == nil {
			p.began = time.Now()
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(command[0]), err)
	}
	return p, nil
}

// stop ends the process with all that it started.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what it left behind
	<-p.ended
}

// awaitHTTP waits until the process answers at url, with anything but that it
// cannot yet.
func (p *process) awaitHTTP(ctx context.Context, dial dialer, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return dial(ctx, addr)
	}}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode < http.StatusInternalServerError {
				return nil
			}
		}
		select {
		case <-p.ended:
			return fmt.Errorf("it ended before it answered (%v): %s", p.err, p.lastWords()) //nolint:errorlint // how it ended is no error of ours
		case <-ctx.Done():
			return fmt.Errorf("no answer from %s: %s", url, p.lastWords())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// lastWords are the end of its output, on one line.
func (p *process) lastWords() string {
	b, _ := os.ReadFile(p.log)
	b = bytes.TrimSpace(b)
	if len(b) > 300 {
		b = b[len(b)-300:]
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// freePort is an address that nobody listens on, for now.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// usage is what a group of processes has used so far, and holds now.
type usage struct {
	cpu       time.Duration // user and system, to the nanosecond
	anonymous int64         // bytes that no file stands behind
	resident  int64         // all of them, those of files and shared ones too
}

// pids are the process and its descendants.
func (p *process) pids() []int {
	parents := map[int]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f := stat(pid); len(f) > 1 {
			parents[pid], _ = strconv.Atoi(f[1])
		}
	}
	root := p.cmd.Process.Pid
	family := []int{root}
	for pid := range parents {
		for at, seen := parents[pid], 0; at > 1 && seen < len(parents); at, seen = parents[at], seen+1 {
			if at == root {
				family = append(family, pid)
				break
			}
		}
	}
	return family
}

// stat are the fields of /proc/pid/stat behind the name, which may hold spaces.
func stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// cpuTime is what a process has taken, with the threads that it had: its clock,
// which /proc tells in hundredths of a second only. 0 if it is gone.
func cpuTime(pid int) time.Duration {
	const scheduled = 2                 // CPUCLOCK_SCHED: what it ran, in linux/posix-timers.h
	clock := int32(^pid)<<3 | scheduled // as clock_getcpuclockid(3) makes it
	var at unix.Timespec
	if unix.ClockGettime(clock, &at) != nil {
		return 0
	}
	return time.Duration(at.Nano())
}

func used(pids []int) usage {
	var u usage
	for _, pid := range pids {
		u.cpu += cpuTime(pid)
		anonymous, resident := memory(pid)
		u.anonymous += anonymous
		u.resident += resident
	}
	return u
}

func memory(pid int) (anonymous, resident int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "RssAnon":
			anonymous = n << 10
		case "VmRSS":
			resident = n << 10
		}
	}
	return anonymous, resident
}

// watch looks at processes until it is asked for the CPU time that went by and
// the most memory that there was.
type watch struct {
	pids   []int
	before usage
	done   chan struct{}
	most   chan usage
}

const lookEvery = 25 * time.Millisecond

func (p *process) watch() *watch {
	w := &watch{pids: p.pids(), done: make(chan struct{}), most: make(chan usage)}
	w.before = used(w.pids)
	go func() {
		most := w.before
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			select {
			case <-look.C:
			case <-w.done:
				w.most <- most
				return
			}
			now := used(w.pids)
			most.anonymous, most.resident = max(most.anonymous, now.anonymous), max(most.resident, now.resident)
		}
	}()
	return w
}

// end is what was used since the watch began. Memory is the most, not the last.
func (w *watch) end() usage {
	close(w.done)
	most, now := <-w.most, used(w.pids)
	return usage{
		cpu:       now.cpu - w.before.cpu,
		anonymous: max(most.anonymous, now.anonymous),
		resident:  max(most.resident, now.resident),
	}
}
