package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// TestAStartThatWasKilledIsNoHindrance: the first thing that a process writes may
// be the last one too.
func TestAStartThatWasKilledIsNoHindrance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	temporary := "." + strings.Repeat("A", 26) + ".version"
	for _, name := range []string{"VERSION", "lock", temporary} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hub := ocitest.NewHub(t, ocitest.Config{})
	p := startProcess(t, over(hub, dir)...)
	p.await(t)
	for client := newClient(t); t.Context().Err() == nil; {
		if _, err := os.Stat(filepath.Join(dir, temporary)); errors.Is(err, fs.ErrNotExist) {
			break
		}
		get(t, client, p.admin+"/healthz")
	}
	p.terminate(t)
	if version, err := os.ReadFile(filepath.Join(dir, "VERSION")); err != nil || string(version) != "1\n" {
		t.Errorf("VERSION is %q, %v", version, err)
	}
}

// killing is a run of the product that is killed again and again while clients
// pull from it.
type killing struct {
	t      *testing.T
	hub    *ocitest.Hub
	dir    string
	blobs  []ocitest.Content
	image  ocitest.Image          // of all of them
	lives  []time.Duration        // after which each process is killed
	within time.Duration          // of which it has to serve; 0: at some time
	slow   time.Duration          // the longest time from a start until it served
	right  map[string]os.FileInfo // files of content that were found to be right
	lost   int64                  // bytes of fills that were on disk and on no record when a process was killed

	// Clients hold it shared while they read an answer. What the kernel has of one
	// are pages of the fill's file: they must not become garbage on their way.
	reading sync.RWMutex

	mu      sync.Mutex // guards the fields below
	now     *process
	changed chan struct{} // closed when now is another one
	done    int           // the blobs before this have come whole
	whole   int           // answers that did
	cut     int           // answers that a kill broke off
}

// TestKilledAtAnyInstant kills the process with SIGKILL while clients pull, and
// makes of each kill a loss of power: whatever the process had not synced of its
// fills is garbage when the next one starts.
func TestKilledAtAnyInstant(t *testing.T) {
	t.Parallel()
	random := schedule(t)
	runKilling(t, random, append(randomLives(random, 8, 300*time.Millisecond), 2300*time.Millisecond), 4, 10<<20, 0)
}

// randomLives are n lives of less than most.
func randomLives(random *rand.Rand, n int, most time.Duration) []time.Duration {
	lives := make([]time.Duration, n)
	for i := range lives {
		lives[i] = time.Duration(random.Int64N(int64(most)))
	}
	return lives
}

// TestAKilledFillGoesOnFromItsSyncedSpans: what was on record is not fetched a
// second time, and nothing else is believed.
func TestAKilledFillGoesOnFromItsSyncedSpans(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	blob := ocitest.Blob(1, 100<<20)
	hub.PushBlob("app", blob)
	gate := hub.Gate(ocitest.Match{Role: ocitest.CDN})
	gate.To(90 << 20)
	k := &killing{t: t, hub: hub, dir: t.TempDir(), changed: make(chan struct{})}
	client := newClient(t)
	first := k.start()
	first.await(t)
	cut := make(chan error, 1)
	go func() { cut <- puller{client: client, registry: first.registry}.blob(t.Context(), blob, 0, -1) }()
	name := filepath.Join(k.dir, "fills", "sha256", blob.Digest.Hex())
	recorded := func() (n int64) {
		for _, s := range recordedSpans(name) {
			n += s.End - s.Start
		}
		return n
	}
	for recorded() < 60<<20 { // how many of 90 MiB the first record tells of is a question of time
		get(t, client, first.admin+"/healthz")
	}
	first.kill()
	if err := <-cut; err == nil || errors.Is(err, errWrong) {
		t.Fatalf("the killed answer: %v", err)
	}
	k.losePower()
	synced := recorded()
	hub.Reset()
	gate.Open()
	second := k.start()
	second.await(t)
	if err := (puller{client: client, registry: second.registry}).blob(t.Context(), blob, 0, -1); err != nil {
		t.Errorf("after the kill: %v", err)
	}
	sent := hub.Sent(ocitest.Match{Role: ocitest.CDN})
	t.Logf("%d MiB were on record, %d MiB on no record; the rest cost %d MiB", synced>>20, k.lost>>20, sent>>20)
	if sent > blob.Size-synced {
		t.Errorf("with %d of %d bytes on record, %d more were fetched", synced, blob.Size, sent)
	}
}

// runKilling has clients pull blobs of about size while one process after the
// other is killed. Each has to serve within some time, unless that is 0: among
// other tests, and instrumented for races, how long a start takes tells nothing.
func runKilling(t *testing.T, random *rand.Rand, lives []time.Duration, clients int, size int64, within time.Duration) {
	t.Helper()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, Rate: 16 << 20}})
	k := &killing{t: t, hub: hub, dir: t.TempDir(), lives: lives, within: within, right: map[string]os.FileInfo{}, changed: make(chan struct{})}
	for i := range 3 * len(lives) / 2 {
		k.blobs = append(k.blobs, ocitest.Blob(uint64(i), size/2+random.Int64N(size)))
	}
	k.image = ocitest.ImageSpec{Layers: k.blobs}.Build()
	hub.Push("app", "latest", k.image)
	ctx, calm := context.WithCancel(t.Context())
	var pulling sync.WaitGroup
	for range clients {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		pulling.Go(func() { k.pull(ctx, own) })
	}
	for _, life := range lives {
		k.killAfter(life)
	}
	last := k.start()
	last.await(t)
	calm()
	pulling.Wait()
	k.settle(last)
}

// killAfter is one life of the product, and what a loss of power leaves of it.
func (k *killing) killAfter(life time.Duration) {
	k.t.Helper()
	p := k.start()
	<-time.After(life)
	p.kill()
	switch {
	case isOver(p.serving):
		k.slow = max(k.slow, p.took)
	case k.within > 0 && life > k.within:
		k.t.Errorf("after %v the process did not serve", life)
	}
	k.checkContent()
	k.reading.Lock()
	defer k.reading.Unlock()
	k.losePower()
}

// start starts the next process and lets clients know.
func (k *killing) start() *process {
	k.t.Helper()
	p := startProcess(k.t, append(over(k.hub, k.dir), "ENTREPOT_STREAM_THRESHOLD=8MiB", "ENTREPOT_PREFETCH=off")...)
	k.mu.Lock()
	k.now = p
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	return p
}

// current waits for a process that serves; nil once ctx has ended.
func (k *killing) current(ctx context.Context) *process {
	for {
		k.mu.Lock()
		p, changed := k.now, k.changed
		k.mu.Unlock()
		if p == nil {
			p = &process{ended: make(chan struct{})}
			close(p.ended)
		}
		select {
		case <-p.serving:
			if !isOver(p.ended) {
				return p
			}
		case <-p.ended:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// pull is one client: manifests, whole blobs and pieces of them, those that have
// not come yet rather than those that have.
func (k *killing) pull(ctx context.Context, random *rand.Rand) {
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for {
		p := k.current(ctx)
		if p == nil {
			return
		}
		k.reading.RLock()
		blob, err := k.pullOne(ctx, puller{client: client, registry: p.registry}, random)
		k.reading.RUnlock()
		k.report(ctx, p, blob, err)
	}
}

// pullOne gets one thing, and tells which blob it was if it was a whole one; -1
// otherwise.
func (k *killing) pullOne(ctx context.Context, from puller, random *rand.Rand) (whole int, err error) {
	k.mu.Lock()
	i := min(k.done+random.IntN(3), len(k.blobs)-1)
	if random.IntN(8) == 0 {
		i = random.IntN(i + 1)
	}
	k.mu.Unlock()
	blob := k.blobs[i]
	offset := random.Int64N(blob.Size)
	switch random.IntN(8) {
	case 0:
		return -1, from.blob(ctx, blob, offset, -1)
	case 1:
		return -1, from.blob(ctx, blob, offset, 1+random.Int64N(blob.Size-offset))
	case 2:
		return -1, from.manifest(ctx, "latest", k.image)
	}
	return i, from.blob(ctx, blob, 0, -1)
}

// report judges how an answer ended. blob is the place of one that was asked for
// whole; -1 for anything else.
func (k *killing) report(ctx context.Context, p *process, blob int, err error) {
	if err != nil && !errors.Is(err, errWrong) && ctx.Err() == nil {
		// The process's end shows a moment after its connections'. If it does
		// not, nobody killed it.
		select {
		case <-p.ended:
		case <-time.After(5 * time.Second):
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.whole++
		if blob == k.done && k.done < len(k.blobs)-1 {
			k.done++
		}
	case errors.Is(err, errWrong), errors.Is(err, errStatus), ctx.Err() == nil && !isOver(p.ended):
		k.t.Errorf("a client saw: %v", err)
	default:
		k.cut++
	}
}

// checkContent: nothing is under a digest's name that is something else. A file
// is read once, and again in the end.
func (k *killing) checkContent() {
	k.t.Helper()
	for _, name := range filesBelow(k.t, filepath.Join(k.dir, "blobs")) {
		base := filepath.Base(name)
		if strings.HasPrefix(base, ".") {
			continue
		}
		d, err := oci.ParseDigest("sha256:" + base)
		if err != nil {
			k.t.Errorf("%s is no digest", name)
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			k.t.Fatal(err)
		}
		info, err := f.Stat()
		if known := k.right[name]; err == nil && (known == nil || !os.SameFile(known, info) || known.Size() != info.Size()) {
			h := d.Hash()
			_, err = io.Copy(h, f)
			if k.right[name] = info; !d.Matches(h) {
				delete(k.right, name)
			}
		}
		if f.Close(); err != nil || k.right[name] == nil {
			k.t.Errorf("%s holds something else (%v)", name, err)
		}
	}
}

// losePower makes garbage of every byte of a fill that its record does not
// vouch for.
func (k *killing) losePower() {
	k.t.Helper()
	for _, name := range filesBelow(k.t, filepath.Join(k.dir, "fills")) {
		if strings.HasSuffix(name, ".spans") || strings.HasPrefix(filepath.Base(name), ".") {
			continue
		}
		n, err := overwriteUnsynced(name)
		if err != nil {
			k.t.Fatal(err)
		}
		k.lost += n
	}
}

// overwriteUnsynced writes garbage over what a fill's file has between its
// recorded spans. Holes stay holes.
func overwriteUnsynced(name string) (n int64, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	at := int64(0)
	for _, s := range append(recordedSpans(name), span{size, size}) {
		m, err := overwriteData(f, at, s.Start)
		if n += m; err != nil {
			return n, err
		}
		at = s.End
	}
	return n, nil
}

// overwriteData writes garbage over the data of f between two offsets.
func overwriteData(f *os.File, at, end int64) (n int64, err error) {
	const seekData, seekHole = 3, 4 // lseek(2)
	for at < end {
		start, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return n, nil // only a hole is left
		}
		if err != nil {
			return n, err
		}
		if at, err = f.Seek(start, seekHole); err != nil {
			return n, err
		}
		m, err := io.Copy(io.NewOffsetWriter(f, start), io.LimitReader(garbage{}, min(at, end)-start))
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

type garbage struct{}

func (garbage) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xee
	}
	return len(p), nil
}

type span struct{ Start, End int64 }

// recordedSpans are the spans beside a fill's file; none if there is no record.
func recordedSpans(name string) []span {
	b, err := os.ReadFile(name + ".spans")
	if err != nil {
		return nil
	}
	var record struct{ Spans []span }
	if json.Unmarshal(b, &record) != nil {
		return nil
	}
	return record.Spans
}

func filesBelow(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // it comes and goes while a process runs
			return nil
		}
		if err == nil && !e.IsDir() {
			files = append(files, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// settle: once nobody kills it, everything comes, and nothing is left of what
// the dead had begun.
func (k *killing) settle(p *process) {
	t := k.t
	t.Helper()
	k.hub.Set(func(h *ocitest.Habits) { h.Rate = 0 })
	client := newClient(t)
	var total int64
	for _, blob := range k.blobs {
		if err := (puller{client: client, registry: p.registry}).blob(t.Context(), blob, 0, -1); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		total += blob.Size
	}
	awaitNoFills(t, client, p.admin)
	for k.leftovers() != "" && time.Since(p.began) < time.Minute {
		get(t, client, p.admin+"/healthz")
	}
	if left := k.leftovers(); left != "" {
		t.Errorf("left for ever: %s", left)
	}
	p.terminate(t)
	clear(k.right)
	k.checkContent()
	sent := k.hub.Sent(ocitest.Match{Role: ocitest.CDN})
	t.Logf("%d kills, slowest start %v; %d whole answers, %d cut", len(k.lives), k.slow, k.whole, k.cut)
	t.Logf("%d MiB of blobs cost %d MiB from upstream; %d MiB were lost unsynced", total>>20, sent>>20, k.lost>>20)
	// What the kernel held of each stream is lost too.
	if most := total + k.lost + int64(len(k.lives))*inFlight; sent > most {
		t.Errorf("%d bytes came from upstream, want %d at most", sent, most)
	}
	if k.within > 0 && k.slow > k.within {
		t.Errorf("a start took %v, want %v at most", k.slow, k.within)
	}
}

// inFlight is what upstream may have sent of all streams that a process never
// read.
const inFlight = 16 << 20

// leftovers names a file that should not be there when all is calm.
func (k *killing) leftovers() string {
	for _, name := range filesBelow(k.t, k.dir) {
		rel, _ := filepath.Rel(k.dir, name)
		if strings.HasPrefix(filepath.Base(name), ".") || strings.HasPrefix(rel, "fills/") {
			return rel
		}
	}
	return ""
}
