package store

import (
	"errors"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stateSays fails if the state of who is away is another one.
func stateSays(t *testing.T, dir, want string) {
	t.Helper()
	b, err := os.ReadFile(path.Join(dir, stateDir, stateAway))
	if err != nil || string(b) != want {
		t.Errorf("the state is %s, %v, want %s", b, err, want)
	}
}

// TestWhoIsAwayIsRemembered: by the next process, too, however this one ends, until
// the upstream is back, or is none any more.
func TestWhoIsAwayIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which begins in 2000
		dir := t.TempDir()
		var d *Disk
		open := func(upstreams ...string) {
			d = openBudget(t, dir, 0, func(cfg *Config) { cfg.Upstreams = upstreams })
			<-d.counted
		}
		const (
			ghcrAway = `{"name":"ghcr.io","spent":"2000-01-01T06:00:00Z"}`
			both     = `{"version":2,"upstreams":[{"name":"docker.io","silent":"2000-01-02T00:00:00Z"},` + ghcrAway + `]}`
			one      = `{"version":2,"upstreams":[` + ghcrAway + `]}`
			none     = `{"version":2,"upstreams":[]}`
		)
		open("docker.io", "ghcr.io")
		hub, ghcr := put(t, d, 1, 500_000, "docker.io", time.Hour), put(t, d, 2, 500_000, "ghcr.io", time.Hour)
		d.SetAway("docker.io", Silent, time.Now().Add(24*time.Hour))
		d.SetAway("ghcr.io", Spent, time.Now().Add(6*time.Hour-time.Second))
		d.SetAway("quay.io", Silent, time.Now().Add(24*time.Hour)) // which is none of ours
		stateSays(t, dir, both)                                    // at once: we may be killed
		closeDisk(t, d)

		open("docker.io", "ghcr.io")
		force(t, d, 1<<30)
		if !isHeld(d, hub) || !isHeld(d, ghcr) {
			t.Error("evicted after a restart")
		}
		d.SetAway("docker.io", Silent, time.Time{})
		time.Sleep(lookEvery + time.Second)
		synctest.Wait()
		stateSays(t, dir, one)
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
		stateSays(t, dir, none)
	})
}

// TestNobodyIsAwayForEver: each word counts for so long, one that is said again for
// longer, whether we run meanwhile or not; of two, the one that lasts longer.
func TestNobodyIsAwayForEver(t *testing.T) {
	const day = 24 * time.Hour
	for _, row := range []struct {
		name          string
		silent, spent time.Duration
		again         time.Duration // when it was silent once more; 0: it was not
		back          bool          // it answered then
		stays         time.Duration // until about then
	}{
		{name: "silent", silent: day, stays: day},
		{name: "still silent", silent: day, again: 20 * time.Hour, stays: 44 * time.Hour},
		{name: "spent", spent: time.Hour, stays: time.Hour},
		{name: "both", silent: day, spent: time.Hour, stays: day},
		{name: "it speaks, and is spent", silent: day, spent: 6 * time.Hour, back: true, stays: 6 * time.Hour},
		{name: "spent for a year", spent: 365 * day, stays: mostAway},
	} {
		for _, restarts := range []bool{false, true} {
			name := row.name
			if restarts {
				name += ", and we restart"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dir := t.TempDir()
					d := openDisk(t, dir, nil)
					<-d.counted
					dg := put(t, d, 1, 500_000, "docker.io", time.Hour)
					began := time.Now()
					at := func(after time.Duration) {
						t.Helper()
						time.Sleep(time.Until(began.Add(after)))
						if restarts {
							closeDisk(t, d)
							d = openDisk(t, dir, nil)
							<-d.counted
						}
					}
					for why, lasts := range map[Absence]time.Duration{Silent: row.silent, Spent: row.spent} {
						if lasts > 0 {
							d.SetAway("docker.io", why, began.Add(lasts))
						}
					}
					if row.back {
						d.SetAway("docker.io", Silent, time.Time{})
					}
					if row.again > 0 {
						at(row.again)
						d.SetAway("docker.io", Silent, time.Now().Add(row.silent))
					}
					at(row.stays - time.Minute)
					if force(t, d, 1<<30); !isHeld(d, dg) {
						t.Error("evicted before")
					}
					at(row.stays + time.Minute)
					if force(t, d, 1<<30); isHeld(d, dg) {
						t.Error("still protected")
					}
					time.Sleep(2 * lookEvery)
					synctest.Wait()
					stateSays(t, dir, `{"version":2,"upstreams":[]}`)
				})
			})
		}
	}
}

// TestWhatIsOfflineStays: as long as the settings say so, which is not remembered.
func TestWhatIsOfflineStays(t *testing.T) {
	dir := t.TempDir()
	offline := func(names ...string) func(*Config) { return func(cfg *Config) { cfg.Offline = names } }
	d := openBudget(t, dir, 0, offline("docker.io"))
	<-d.counted
	hub, ghcr := put(t, d, 1, 500_000, "docker.io", time.Hour), put(t, d, 2, 500_000, "ghcr.io", time.Hour)
	force(t, d, 1<<30)
	if !isHeld(d, hub) || isHeld(d, ghcr) {
		t.Errorf("of what is offline is held %v, of the rest %v", isHeld(d, hub), isHeld(d, ghcr))
	}
	closeDisk(t, d)
	if _, err := os.Stat(path.Join(dir, stateDir, stateAway)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is remembered: %v", err)
	}
	d = openBudget(t, dir, 0, offline())
	<-d.counted
	if force(t, d, 1<<30); isHeld(d, hub) {
		t.Error("still protected")
	}
}

// TestAnUpstreamThatComesAndGoesCostsFewWrites: each answer may say otherwise; nor
// does one that stays away cost more.
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
			d.SetAway("docker.io", Silent, time.Now().Add(time.Hour))
			d.SetAway("docker.io", Silent, time.Time{})
			time.Sleep(100 * time.Millisecond)
		}
		if n := writes.Swap(0); n > 2*int64(time.Minute/lookEvery)+1 {
			t.Errorf("%d writes in a minute", n)
		}
		for range 6000 { // ten
			d.SetAway("docker.io", Silent, time.Now().Add(time.Hour))
			time.Sleep(100 * time.Millisecond)
		}
		if n := writes.Load(); n > 13 {
			t.Errorf("%d writes in ten minutes of silence", n)
		}
	})
}

// TestADamagedStateOfWhoIsAwayIsLeftBehind: with a word, once, as one of a program to
// come.
func TestADamagedStateOfWhoIsAwayIsLeftBehind(t *testing.T) {
	for name, state := range map[string]string{
		"empty":     ``,
		"torn":      `{"version":2,"upstr`,
		"another":   `[]`,
		"to come":   `{"version":3,"upstreams":["docker.io"]}`,
		"past":      `{"version":1,"upstreams":["docker.io"]}`,
		"nameless":  `{"version":2,"upstreams":[{"name":"docker.io","silent":"2999-01-01T00:00:00Z"},{"name":""}]}`,
		"too large": `{"version":2,"upstreams":[{"name":"docker.io","silent":"2999-01-01T00:00:00Z"}]}` + strings.Repeat(" ", maxAwayState),
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
			warn := func(cfg *Config) {
				cfg.Warn = func(message string, err error) { told = append(told, message+": "+err.Error()) }
			}
			d = openBudget(t, dir, 0, warn)
			<-d.counted
			if len(told) != 1 || !strings.Contains(told[0], "state/away") {
				t.Errorf("told %q, want a word of state/away", told)
			}
			stateSays(t, dir, `{"version":2,"upstreams":[]}`)
			force(t, d, 1<<30)
			if isHeld(d, dg) {
				t.Error("it is believed")
			}
			closeDisk(t, d)
			openBudget(t, dir, 0, warn)
			if len(told) != 1 {
				t.Errorf("told %q, want one word for all starts", told)
			}
		})
	}
}
