package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run of the harness.
type bench struct {
	options
	dir    string // of this run, below options.work; removed at its end
	binary string // the product
	hub    *hub
	images map[string]image // by name, as pushed
	away   *link            // to far clients; nil until it is wanted
}

// measure does all workloads that are wanted.
func measure(ctx context.Context, o options) (results, error) {
	b := &bench{options: o, images: map[string]image{}}
	rivals, err := b.chosen()
	if err != nil {
		return results{}, err
	}
	var todo []workload
	for _, w := range workloads(o) {
		if o.wants(w.name) {
			todo = append(todo, w)
		}
	}
	if len(todo) == 0 {
		return results{}, fmt.Errorf("no workload's name begins with %s: see bench -list", strings.Join(o.only, " or "))
	}
	if b.root, err = filepath.Abs(o.root); err != nil {
		return results{}, err
	}
	if b.dir, err = os.MkdirTemp(o.work, "entrepot-bench-"); err != nil {
		return results{}, err
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	date := time.Now()
	if err := b.build(ctx); err != nil {
		return results{}, err
	}
	if b.hub, err = startHub(ctx, b.dir); err != nil {
		return results{}, err
	}
	defer b.hub.stop()
	defer func() { b.away.close() }()
	found := results{Date: date.UTC().Truncate(time.Second), Machine: b.describe(), Full: o.full, Short: o.short, Partial: o.isPart()}
	for _, r := range rivals {
		entry := rivalInfo{Name: r.name, About: r.about}
		if r.version != nil {
			entry.Version = r.version(b)
		}
		found.Rivals = append(found.Rivals, entry)
	}
	for _, w := range todo {
		result, err := b.do(ctx, w, rivals)
		if err != nil {
			return results{}, fmt.Errorf("%s: %w", w.name, err)
		}
		found.Workloads = append(found.Workloads, result)
	}
	found.Seconds = time.Since(date).Seconds()
	if o.began > 0 {
		found.Before = date.Sub(time.Unix(o.began, 0)).Seconds()
	}
	return found, nil
}

// chosen are the rivals of this run.
func (b *bench) chosen() ([]rival, error) {
	all := allRivals()
	for _, flag := range b.custom {
		r, err := customRival(flag)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	for _, name := range b.rivals {
		if !slices.ContainsFunc(all, func(r rival) bool { return r.name == name }) {
			return nil, fmt.Errorf("no rival is called %s: see bench -list", name)
		}
	}
	if len(b.rivals) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(r rival) bool { return r.name != ours && !slices.Contains(b.rivals, r.name) }), nil
}

// build makes the product as a release is made.
func (b *bench) build(ctx context.Context) error {
	b.binary = filepath.Join(b.dir, ours)
	flags := []string{"build", "-buildvcs=false", "-o", b.binary}
	cmd := exec.CommandContext(ctx, "go", append(append(flags, b.buildFlags...), ".")...)
	cmd.Dir = b.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", b.root, err, out)
	}
	return nil
}

// image is what the hub has under a name; it is pushed at the first use.
func (b *bench) image(ctx context.Context, name string, layers []layerSpec) (image, error) {
	if i, ok := b.images[name]; ok {
		return i, nil
	}
	i, err := b.hub.push(ctx, imageSpec{Repo: "library/" + name, Tag: "latest", Layers: layers})
	if err != nil {
		return image{}, err
	}
	b.images[name] = i
	return i, nil
}

// layOut writes an image's bytes where file servers find them.
func (b *bench) layOut(i image) error {
	dir := filepath.Join(b.files(), "v2", i.Repo)
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "manifests"), 0o755), os.MkdirAll(filepath.Join(dir, "blobs"), 0o755)); err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		"manifests/" + i.Tag:             i.Manifest,
		"manifests/" + i.Digest.String(): i.Manifest,
		"blobs/" + i.ConfigID.String():   i.Config,
	} {
		if err := os.WriteFile(filepath.Join(dir, path), content, 0o644); err != nil {
			return err
		}
	}
	for _, l := range i.Layers {
		path := filepath.Join(dir, "blobs", l.Digest.String())
		if info, err := os.Stat(path); err == nil && info.Size() == l.Size {
			continue
		}
		if err := writeContent(path, l.content()); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) files() string { return filepath.Join(b.dir, "files") }

// link is the way to clients that are far away.
func (b *bench) link() (l *link, err error) {
	if b.away == nil {
		b.away, err = newLink(farAway, farRate)
	}
	return b.away, err
}

// server is a running rival.
type server struct {
	*process
	rival
	addr  string
	admin string // of our own admin listener
	dial  dialer
	data  string
	disk  bool          // data is a file system of its own
	ready time.Duration // from its start until it answered
	round int           // of the workload, for which it was started; from 0
}

// base is what the path of a repository is put behind.
func (s *server) base() string { return "http://" + s.addr + s.path("") }

// path is a URL's, of something below /v2/.
func (s *server) path(rest string) string { return "/v2/" + s.prefix + rest }

// seeder puts something into a rival's directory before it starts.
type seeder func(ctx context.Context, b *bench, r rival, s site) error

// start starts a rival with nothing in its cache, unless seed puts it there.
func (b *bench) start(ctx context.Context, r rival, where site, seed seeder) (*server, error) {
	if r.roles&direct != 0 {
		return &server{process: b.hub.process, rival: r, addr: strings.TrimPrefix(b.hub.url, "http://"), dial: dialLocal}, nil
	}
	data, err := os.MkdirTemp(b.dir, r.name+"-")
	if err != nil {
		return nil, err
	}
	s := &server{rival: r, dial: dialLocal, data: data}
	if where.ownDisk { // where we may not, the directory is walked
		s.disk = unix.Mount("bench", data, "tmpfs", 0, "mode=0755") == nil
	}
	if err := b.launch(ctx, s, where, seed); err != nil {
		return nil, errors.Join(err, s.clear())
	}
	return s, nil
}

// launch starts a server's process and waits until it answers.
func (b *bench) launch(ctx context.Context, s *server, where site, seed seeder) error {
	where.Data, where.Upstream, where.Files, where.Root = s.data, b.hub.url, b.files(), os.Geteuid() == 0
	if seed != nil {
		if err := seed(ctx, b, s.rival, where); err != nil {
			return err
		}
	}
	var err error
	if where.Listen, err = freePort(); err != nil {
		return err
	}
	if where.link == nil {
		if where.Admin, err = freePort(); err != nil {
			return err
		}
	} else {
		where.Listen, s.dial = where.link.listen(where.Listen), where.link.dial
	}
	s.addr, s.admin = where.Listen, where.Admin
	if s.process, err = s.rival.start(b, where); err != nil {
		return err
	}
	if err := s.awaitHTTP(ctx, s.dial, "http://"+s.addr+"/v2/"); err != nil {
		s.stop()
		return err
	}
	s.ready = time.Since(s.began)
	return nil
}

// end stops a server and empties its cache. The hub goes on.
func (b *bench) end(s *server) {
	if s.roles&direct != 0 {
		return
	}
	s.stop()
	if err := s.clear(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// clear removes what a server kept.
func (s *server) clear() error {
	if s.disk {
		if err := unix.Unmount(s.data, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", s.data, err)
		}
	}
	return os.RemoveAll(s.data)
}

// do runs one workload against all rivals that can take part, in rounds: A B A
// B, so that whatever else the machine does meets all of them.
func (b *bench) do(ctx context.Context, w workload, rivals []rival) (workloadResult, error) {
	begin := time.Now()
	result := workloadResult{Name: w.name, Family: w.family, Title: w.title, About: w.about, Clients: w.clients}
	if w.far {
		var err error
		if w.site.link, err = b.link(); err != nil {
			result.Skipped = brief(err)
			return result, nil
		}
	}
	if err := b.hub.shape(ctx, w.line); err != nil {
		return result, err
	}
	if w.setUp != nil {
		if err := w.setUp(ctx, b); err != nil {
			return result, err
		}
	}
	var seats []*seat
	for _, r := range rivals {
		if r.roles&w.roles != 0 && (w.among == nil || slices.Contains(w.among, r.name)) {
			seats = append(seats, &seat{rival: r, result: rivalResult{Name: r.name}})
		}
	}
	defer func() {
		for _, s := range seats {
			s.leave(b)
		}
	}()
	rounds := w.rounds
	if b.rounds > 0 {
		rounds = b.rounds
	}
	for n := range rounds {
		for _, s := range seats {
			if s.result.Failed != "" || s.spent > w.budget || b.rounds == 0 && w.enough(s.rival.name, n) {
				continue
			}
			if ctx.Err() != nil {
				return result, ctx.Err()
			}
			s.round(ctx, b, w)
			b.say(w, s)
		}
	}
	for _, s := range seats {
		if w.looked && s.rival.name == ours && s.result.Failed == "" {
			result.Insight = b.look(ctx, w, s)
		}
		result.Rivals = append(result.Rivals, s.result)
	}
	result.Seconds = time.Since(begin).Seconds()
	return result, nil
}

// enough reports whether a rival has had its rounds after some. What ours are
// compared with has as many as they.
func (w workload) enough(rival string, rounds int) bool {
	isBase := func(m metric) bool { return m.base == rival }
	return w.few > 0 && rounds >= w.few && rival != ours && !slices.ContainsFunc(families[w.family].metrics, isBase)
}

// seat is a rival's place in a workload.
type seat struct {
	rival  rival
	server *server // kept from round to round if the workload is warm
	result rivalResult
	spent  time.Duration
}

// round runs a workload once. What goes wrong is the result.
func (s *seat) round(ctx context.Context, b *bench, w workload) {
	begin := time.Now()
	defer func() { s.spent += time.Since(begin) }()
	ctx, cancel := context.WithTimeoutCause(ctx, w.limit, fmt.Errorf("not done after %v", w.limit))
	defer cancel()
	measured, err := s.attempt(ctx, b, w)
	if measured != nil {
		s.result.Runs = append(s.result.Runs, measured)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		s.result.Failed = brief(err)
	}
}

func (s *seat) attempt(ctx context.Context, b *bench, w workload) (measures, error) {
	if err := s.seat(ctx, b, w); err != nil {
		return nil, err
	}
	if !w.warm {
		defer s.leave(b)
	}
	if !b.short {
		syscall.Sync() // nobody pays for what others wrote
	}
	if err := b.hub.forget(ctx); err != nil {
		return nil, err
	}
	return w.run(ctx, b, s.server)
}

// seat has the rival's server run, and hold what it is to hold.
func (s *seat) seat(ctx context.Context, b *bench, w workload) error {
	if s.server != nil {
		return nil
	}
	started, err := b.start(ctx, s.rival, w.site, w.seed)
	if err != nil {
		return err
	}
	s.server, started.round = started, len(s.result.Runs)
	if w.warmUp != nil {
		return w.warmUp(ctx, b, s.server)
	}
	return nil
}

// leave ends the rival's server, if it runs.
func (s *seat) leave(b *bench) {
	if s.server != nil {
		b.end(s.server)
		s.server = nil
	}
}

// brief is an error on one line of a table.
func brief(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}

// say prints how a round went.
func (b *bench) say(w workload, s *seat) {
	var line strings.Builder
	fmt.Fprintf(&line, "%s  %-18s %-15s", time.Now().Format(time.TimeOnly), w.name, s.rival.name)
	if n := len(s.result.Runs); n > 0 {
		for _, m := range families[w.family].metrics {
			if v, ok := s.result.Runs[n-1][m.key]; ok {
				fmt.Fprintf(&line, "  %s %s", m.title, m.format(v))
			}
		}
	}
	if s.result.Failed != "" {
		line.WriteString("  FAILED: " + s.result.Failed)
	}
	fmt.Fprintln(os.Stderr, line.String())
}

func listAll(o options) error {
	for _, w := range workloads(o) {
		fmt.Printf("%-20s %s\n", w.name, w.title)
	}
	fmt.Println()
	for _, r := range allRivals() {
		fmt.Printf("%-20s %s\n", r.name, r.about)
	}
	return nil
}
