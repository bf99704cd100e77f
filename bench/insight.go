package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// insight is what we were seen to do in a workload, in a round of its own that
// counts for nothing else: where a target is missed, it is why.
type insight struct {
	Busy   []string // the functions that took most processor time, with their shares
	Waited float64  // seconds that goroutines waited for locks, for each second
	Failed string   `json:",omitempty"` // why there is none
}

func (i *insight) String() string {
	switch {
	case i == nil:
		return ""
	case i.Failed != "":
		return "no profile: " + i.Failed
	}
	return fmt.Sprintf("most processor time goes to %s; goroutines wait for locks %s in a second", strings.Join(i.Busy, ", "), seconds(i.Waited))
}

// profileTime is how much of a round is looked at. It is no longer than a warm one.
const profileTime = 2 * time.Second

// look runs a workload once more against us, and watches from inside.
func (b *bench) look(ctx context.Context, w workload, s *seat) *insight {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	found := new(insight)
	if err := found.take(ctx, b, w, s); err != nil {
		found.Failed = brief(err)
	}
	return found
}

func (i *insight) take(ctx context.Context, b *bench, w workload, s *seat) error {
	if err := s.seat(ctx, b, w); err != nil {
		return err
	}
	if !w.warm {
		defer s.leave(b)
	}
	if err := b.hub.forget(ctx); err != nil {
		return err
	}
	admin, begin := "http://"+s.server.admin, time.Now()
	before, err := lockWaits(ctx, admin)
	if err != nil {
		return err
	}
	profile, profiled := filepath.Join(b.dir, "profile"), make(chan error, 1)
	go func() {
		profiled <- fetch(ctx, fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", admin, int(profileTime.Seconds())), profile)
	}()
	_, err = w.run(ctx, b, s.server)
	if err := errors.Join(err, <-profiled); err != nil {
		return err
	}
	after, err := lockWaits(ctx, admin)
	if err != nil {
		return err
	}
	i.Waited = (after - before) / time.Since(begin).Seconds()
	i.Busy, err = busiest(ctx, b.binary, profile)
	return err
}

// lockWaits is for how many seconds goroutines have waited for locks since our
// program began, as its metrics tell.
func lockWaits(ctx context.Context, admin string) (float64, error) {
	resp, err := ask(ctx, admin+"/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "go_sync_mutex_wait_total_seconds_total "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.New("its metrics do not tell of locks")
}

// busiest are the functions in which a profile found the program most often.
func busiest(ctx context.Context, program, profile string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=6", program, profile).Output()
	if err != nil {
		return nil, fmt.Errorf("go tool pprof: %w", err)
	}
	all := topOf(string(out))
	if len(all) == 0 {
		return nil, errors.New("it never found the program busy")
	}
	return all, nil
}

// topOf are the lines of pprof's table, flat, flat%, sum%, cum, cum%, name, but for
// those that only call others.
func topOf(out string) (all []string) {
	_, table, _ := strings.Cut(out, "flat%")
	for line := range strings.Lines(table) {
		if columns := strings.Fields(line); len(columns) >= 6 && strings.HasSuffix(columns[1], "%") && columns[1] != "0%" {
			all = append(all, fmt.Sprintf("`%s` %s", columns[5], strings.Replace(columns[1], "%", " %", 1)))
		}
	}
	return all
}

func ask(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp, err
}

// fetch writes what a URL gives to a file.
func fetch(ctx context.Context, url, path string) error {
	resp, err := ask(ctx, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
