package store

import (
	"os"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWhoIsAwayIsRemembered: by the next process, too, however this one ends, until
// the upstream is back, or is none any more.
func TestWhoIsAwayIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var d *Disk
		open := func(upstreams ...string) {
			d = openBudget(t, dir, 0, func(cfg *Config) { cfg.Upstreams = upstreams })
			<-d.counted
		}
		says := func(want string) {
			t.Helper()
			b, err := os.ReadFile(path.Join(dir, stateDir, stateAway))
			if err != nil || string(b) != want {
				t.Errorf("the state is %s, %v, want %s", b, err, want)
			}
		}
		const both, one, none = `{"version":1,"upstreams":["docker.io","ghcr.io"]}`, `{"version":1,"upstreams":["ghcr.io"]}`, `{"version":1,"upstreams":[]}`
		open("docker.io", "ghcr.io")
		hub, ghcr := put(t, d, 1, 500_000, "docker.io", time.Hour), put(t, d, 2, 500_000, "ghcr.io", time.Hour)
		d.SetUnreachable("docker.io", true)
		d.SetUnreachable("ghcr.io", true)
		d.SetUnreachable("quay.io", true) // which is none of ours
		says(both)                        // at once: we may be killed
		closeDisk(t, d)

		open("docker.io", "ghcr.io")
		force(t, d, 1<<30)
		if !isHeld(d, hub) || !isHeld(d, ghcr) {
			t.Error("evicted after a restart")
		}
		d.SetUnreachable("docker.io", false)
		time.Sleep(lookEvery + time.Second)
		synctest.Wait()
		says(one)
		force(t, d, 1<<30)
		if isHeld(d, hub) || !isHeld(d, ghcr) {
			t.Errorf("of what is back is held %v, of what is away %v", isHeld(d, hub), isHeld(d, ghcr))
		}
		closeDisk(t, d)

		open("docker.io")
		force(t, d, 1<<30)
		if isHeld(d, ghcr) {
			t.Error("still protected by an upstream that is none any more")
		}
		closeDisk(t, d)
		says(none)
	})
}

// TestAnUpstreamThatComesAndGoesCostsFewWrites: each answer may say otherwise.
func TestAnUpstreamThatComesAndGoesCostsFewWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var writes atomic.Int64
		d := openDisk(t, t.TempDir(), func(op Op, name string) error {
			if op == OpRename && name == path.Join(stateDir, stateAway) {
				writes.Add(1)
			}
			return nil
		})
		defer closeDisk(t, d)
		for range 600 { // a minute
			d.SetUnreachable("docker.io", true)
			d.SetUnreachable("docker.io", false)
			time.Sleep(100 * time.Millisecond)
		}
		if n := writes.Load(); n > 2*int64(time.Minute/lookEvery)+1 {
			t.Errorf("%d writes in a minute", n)
		}
	})
}

// TestADamagedStateOfWhoIsAwayIsLeftBehind: with a word, as one of a program to come.
func TestADamagedStateOfWhoIsAwayIsLeftBehind(t *testing.T) {
	for name, state := range map[string]string{
		"torn":      `{"version":1,"upstr`,
		"another":   `[]`,
		"to come":   `{"version":2,"upstreams":["docker.io"]}`,
		"nameless":  `{"version":1,"upstreams":["docker.io",""]}`,
		"too large": `{"version":1,"upstreams":["docker.io"]}` + strings.Repeat(" ", maxAwayState),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := openDisk(t, dir, nil)
			dg := put(t, d, 1, 500_000, "docker.io", time.Hour)
			closeDisk(t, d)
			if err := os.WriteFile(path.Join(dir, stateDir, stateAway), []byte(state), 0o644); err != nil {
				t.Fatal(err)
			}
			var told []string
			d = openBudget(t, dir, 0, func(cfg *Config) {
				cfg.Warn = func(message string, err error) { told = append(told, message+": "+err.Error()) }
			})
			<-d.counted
			if len(told) != 1 || !strings.Contains(told[0], "state/away") {
				t.Errorf("told %q, want a word of state/away", told)
			}
			force(t, d, 1<<30)
			if isHeld(d, dg) {
				t.Error("it is believed")
			}
			d.SetUnreachable("docker.io", true)
			if b, err := os.ReadFile(path.Join(dir, stateDir, stateAway)); err != nil || string(b) != `{"version":1,"upstreams":["docker.io"]}` {
				t.Errorf("then: %s, %v", b, err)
			}
		})
	}
}
