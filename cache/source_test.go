package cache

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"entrepot/oci"
	"entrepot/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var alpine = oci.Repository{Host: "docker.io", Path: "library/alpine"}

// source is a small true registry in memory that notes what it was asked. A
// fault is a field: nil means that all is well.
type source struct {
	mu        sync.Mutex
	tags      map[string]oci.Digest // by repository:tag
	manifests map[string]oci.Manifest
	blobs     map[string][]byte // by repository@digest
	asked     []string
	moved     int64 // bytes of blobs given out
	refreshed int   // questions that said Refresh
	doubted   int   // blobs that were said to be wrong

	down     error  // every question fails with it
	downHost string // of the only upstream that is down; empty: all are
	noRanges bool   // every body starts at 0
	noSize   bool   // bodies do not tell the blob's size, and HEAD does not either
	sizeOnce int64  // above 0: what the next body tells of the blob's size
	delay    time.Duration
	hangs    string // questions that hold this are left without an answer until time is up
	hanging  int    // of them, now
	waits    bool   // a tag is not told before who asks has ended
	most     int    // of them, at once
	noAPI    bool
	noAPIFor string        // the repository that has none
	nobody   bool          // who asks is nobody, since our login is refused
	spent    error         // every GET of a manifest fails with it
	withheld time.Duration // how long there are no manifests for who can do without
	// body may replace what a blob's reader gives out from offset.
	body func(call int, content []byte, offset int64) io.Reader
}

func newSource() *source {
	return &source{tags: map[string]oci.Digest{}, manifests: map[string]oci.Manifest{}, blobs: map[string][]byte{}}
}

func (s *source) note(format string, args ...any) error {
	s.mu.Lock()
	question := fmt.Sprintf(format, args...)
	s.asked = append(s.asked, question)
	err, delay := s.down, s.delay
	hangs := s.hangs != "" && strings.Contains(question, s.hangs)
	s.mu.Unlock()
	if hangs {
		s.set(func() { s.hanging++; s.most = max(s.most, s.hanging) })
		time.Sleep(20 * time.Second)
		s.set(func() { s.hanging-- })
		return &oci.Error{Code: oci.Timeout}
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	return err
}

func (s *source) refuses(ask oci.Ask) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.withheld > 0 && (ask.Held || ask.Background)
}

func (s *source) isDown(repo oci.Repository) bool {
	return s.downHost == "" || s.downHost == repo.Host
}

func (s *source) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *source) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *source) bytesMoved() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

func (s *source) pushBlob(repo oci.Repository, b []byte) oci.Digest {
	d := oci.Sum(b)
	s.blobs[repo.String()+"@"+d.String()] = b
	return d
}

// pushImage pushes an image of one layer for each content.
func (s *source) pushImage(repo oci.Repository, tag string, layers ...[]byte) oci.Manifest {
	type desc struct {
		MediaType string     `json:"mediaType"`
		Digest    oci.Digest `json:"digest"`
		Size      int        `json:"size"`
	}
	config := []byte(fmt.Sprintf(`{"architecture":"amd64","os":"linux","n":%d}`, len(layers)))
	body := struct {
		MediaType string `json:"mediaType"`
		Config    desc   `json:"config"`
		Layers    []desc `json:"layers"`
	}{"application/vnd.oci.image.manifest.v1+json", desc{"application/vnd.oci.image.config.v1+json", s.pushBlob(repo, config), len(config)}, nil}
	for _, l := range layers {
		body.Layers = append(body.Layers, desc{"application/vnd.oci.image.layer.v1.tar", s.pushBlob(repo, l), len(l)})
	}
	content, _ := json.Marshal(body)
	return s.pushManifest(repo, tag, content, body.MediaType)
}

func (s *source) pushManifest(repo oci.Repository, tag string, content []byte, mediaType string) oci.Manifest {
	m := oci.Manifest{Descriptor: oci.Descriptor{MediaType: mediaType, Digest: oci.Sum(content), Size: int64(len(content))}, Content: content}
	s.manifests[repo.String()+"@"+m.Digest.String()] = m
	s.tags[repo.String()+":"+tag] = m.Digest
	return m
}

func (s *source) Resolve(ctx context.Context, repo oci.Repository, ref string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	out := oci.Outcome{Cache: oci.Miss, Spent: 1}
	if ask.Refresh {
		s.set(func() { s.refreshed++ })
	}
	if err := s.note("HEAD %s %s", repo.Path, ref); err != nil && s.isDown(repo) {
		return oci.Resolved{}, out, err
	}
	s.mu.Lock()
	waits := s.waits
	s.mu.Unlock()
	if waits {
		<-ctx.Done()
		return oci.Resolved{}, out, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.tags[repo.String()+":"+ref]
	if !ok {
		d, _ = oci.ParseDigest(ref)
	}
	m, ok := s.manifests[repo.String()+"@"+d.String()]
	if !ok {
		return oci.Resolved{}, out, s.unknownLocked(oci.ManifestUnknown, ref)
	}
	if ask.Held {
		out.Withheld = s.withheld
	}
	return oci.Resolved{Descriptor: m.Descriptor}, out, nil
}

func (s *source) Manifest(_ context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	out := oci.Outcome{Cache: oci.Miss, Spent: 1}
	if s.refuses(ask) {
		time.Sleep(time.Second)
		return oci.Manifest{}, out, &oci.Error{Code: oci.TooManyRequests, Detail: "the last are kept", RetryAfter: time.Hour}
	}
	if err := s.note("GET %s manifest %s", repo.Path, d); err != nil && s.isDown(repo) {
		return oci.Manifest{}, out, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spent != nil {
		return oci.Manifest{}, out, s.spent
	}
	m, ok := s.manifests[repo.String()+"@"+d.String()]
	if !ok {
		return oci.Manifest{}, out, oci.Errorf(oci.ManifestUnknown, "no %s", d)
	}
	return m, out, nil
}

func (s *source) Blob(_ context.Context, repo oci.Repository, d oci.Digest, _ oci.Ask) (oci.Blob, error) {
	return &sourceBlob{s, repo, d}, nil
}

func (s *source) Tags(_ context.Context, repo oci.Repository, page oci.Page, _ oci.Ask) (oci.TagList, oci.Outcome, error) {
	if err := s.note("GET %s tags", repo.Path); err != nil {
		return oci.TagList{}, oci.Outcome{}, err
	}
	return oci.TagList{Tags: []string{"from-upstream"}}, oci.Outcome{}, nil
}

func (s *source) Referrers(_ context.Context, repo oci.Repository, d oci.Digest, _ string, _ oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	if err := s.note("GET %s referrers %s", repo.Path, d); err != nil {
		return oci.ReferrerList{}, oci.Outcome{}, err
	}
	if s.noAPI || repo.Path == s.noAPIFor {
		e := oci.Errorf(oci.Unsupported, "no referrers API")
		if s.nobody {
			e.RetryAfter = time.Minute
		}
		return oci.ReferrerList{}, oci.Outcome{}, e
	}
	return oci.ReferrerList{Manifests: []oci.Referrer{{Digest: d, Raw: []byte(`{}`)}}}, oci.Outcome{}, nil
}

// unknownLocked is what is said of a thing that is not there.
func (s *source) unknownLocked(code oci.Code, what string) error {
	e := oci.Errorf(code, "no %s", what)
	if s.nobody {
		return &oci.Error{Code: oci.Denied, Detail: e.Detail + "; it was asked anonymously", Err: e}
	}
	return e
}

type sourceBlob struct {
	s    *source
	repo oci.Repository
	d    oci.Digest
}

func (b *sourceBlob) Wrong() { b.s.set(func() { b.s.doubted++ }) }

func (b *sourceBlob) Descriptor() oci.Descriptor { return oci.Descriptor{Digest: b.d, Size: -1} }

func (b *sourceBlob) content() ([]byte, error) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	c, ok := b.s.blobs[b.repo.String()+"@"+b.d.String()]
	if !ok {
		return nil, b.s.unknownLocked(oci.BlobUnknown, b.d.String())
	}
	return c, nil
}

func (b *sourceBlob) Stat(context.Context) (oci.Descriptor, oci.Outcome, error) {
	out := oci.Outcome{Spent: 1}
	if err := b.s.note("HEAD %s blob %s", b.repo.Path, b.d); err != nil {
		return oci.Descriptor{}, out, err
	}
	c, err := b.content()
	size := int64(len(c))
	if b.s.noSize {
		size = -1
	}
	return oci.Descriptor{Digest: b.d, Size: size}, out, err
}

func (b *sourceBlob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	if err := b.s.note("GET %s blob %s %d+%d", b.repo.Path, b.d, offset, length); err != nil && b.s.isDown(b.repo) {
		return nil, err
	}
	c, err := b.content()
	if err != nil {
		return nil, err
	}
	size := int64(len(c))
	ranged := offset > 0 || length >= 0
	if ranged && offset >= size && !b.s.noRanges {
		return nil, oci.Errorf(oci.RangeInvalid, "nothing at %d", offset)
	}
	whole := b.s.noRanges && ranged
	if b.s.noRanges {
		offset, length = 0, -1
	}
	b.s.mu.Lock()
	call, body := len(b.s.asked), b.s.body
	b.s.mu.Unlock()
	var r io.Reader
	if body != nil {
		r = body(call, c, offset)
	} else {
		r = bytes.NewReader(c[offset:])
	}
	if g, ok := r.(*gated); ok {
		g.done = ctx.Done()
	}
	if length >= 0 {
		short := b.s.noSize && length > size-offset
		r = io.LimitReader(r, length)
		if short { // whether that is all, a part of unknown total does not say
			r = io.MultiReader(r, broken{})
		}
	}
	if b.s.noSize {
		size = -1
	}
	b.s.set(func() {
		if b.s.sizeOnce > 0 {
			size, b.s.sizeOnce = b.s.sizeOnce, 0
		}
	})
	return &sourceReader{ctx, b.s, r, offset, size, whole}, nil
}

type sourceReader struct {
	ctx          context.Context
	s            *source
	r            io.Reader
	offset, size int64
	whole        bool
}

func (r *sourceReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.s.mu.Lock()
	r.s.moved += int64(n)
	r.s.mu.Unlock()
	return n, err
}
func (r *sourceReader) Close() error         { return nil }
func (r *sourceReader) Offset() int64        { return r.offset }
func (r *sourceReader) Size() int64          { return r.size }
func (r *sourceReader) Outcome() oci.Outcome { return oci.Outcome{Spent: 1, Whole: r.whole} }

// newCache makes a cache over s on a fresh directory.
func newCache(t *testing.T, s oci.Source, cfg Config) *Cache {
	t.Helper()
	return openCache(t, t.TempDir(), s, cfg)
}

func openCache(t *testing.T, dir string, s oci.Source, cfg Config) *Cache {
	t.Helper()
	return openCacheOf(t, store.Config{Dir: dir, Memory: 1 << 20}, s, cfg)
}

func openCacheOf(t *testing.T, on store.Config, s oci.Source, cfg Config) *Cache {
	t.Helper()
	disk, err := store.Open(t.Context(), on)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Warn == nil {
		cfg.Warn = func(message string, repo oci.Repository, err error) { t.Logf("warn: %s: %s: %v", message, repo, err) }
	}
	c := New(disk, s, cfg)
	t.Cleanup(func() { closeCache(t, c) })
	return c
}

// closeCache may be called twice.
func closeCache(t *testing.T, c *Cache) {
	t.Helper()
	if c.ctx.Err() != nil {
		return
	}
	if err := c.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if err := c.disk.Close(); err != nil {
		t.Error(err)
	}
}

// openBlob opens a stretch of a blob.
func openBlob(ctx context.Context, c *Cache, repo oci.Repository, d oci.Digest, ask oci.Ask, offset, length int64) (oci.Reader, error) {
	b, err := c.Blob(ctx, repo, d, ask)
	if err != nil {
		return nil, err
	}
	return b.Open(ctx, offset, length)
}

// mustOpen opens a blob from an offset on.
func mustOpen(t *testing.T, c *Cache, repo oci.Repository, d oci.Digest, offset int64) oci.Reader {
	t.Helper()
	r, err := openBlob(t.Context(), c, repo, d, oci.Ask{}, offset, -1)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// read reads a stretch of a blob to its end.
func read(ctx context.Context, c *Cache, repo oci.Repository, d oci.Digest, offset, length int64) ([]byte, oci.Outcome, error) {
	return readAs(ctx, c, repo, d, oci.Ask{}, offset, length)
}

func readAs(ctx context.Context, c *Cache, repo oci.Repository, d oci.Digest, ask oci.Ask, offset, length int64) ([]byte, oci.Outcome, error) {
	r, err := openBlob(ctx, c, repo, d, ask, offset, length)
	if err != nil {
		return nil, oci.Outcome{}, err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	return content, r.Outcome(), err
}

func mustRead(t *testing.T, c *Cache, repo oci.Repository, d oci.Digest, want []byte) oci.Outcome {
	t.Helper()
	got, out, err := read(t.Context(), c, repo, d, 0, -1)
	if err != nil {
		t.Fatalf("read %s: %v", d, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read %s: %d bytes that differ from the %d pushed", d, len(got), len(want))
	}
	return out
}

// pattern is content of n bytes that differs everywhere.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

var errDown = &oci.Error{Code: oci.Unavailable, Detail: "upstream is down"}

var errCut = fmt.Errorf("connection reset: %w", io.ErrUnexpectedEOF)

// cutAfter gives n bytes and then breaks.
func cutAfter(r io.Reader, n int64) io.Reader {
	return io.MultiReader(io.LimitReader(r, n), broken{})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errCut }

// gated gives out bytes only as the test lets it.
type gated struct {
	r    io.Reader
	open <-chan int64 // bytes that may pass; closed: all
	done <-chan struct{}
	left int64
}

func (g *gated) Read(p []byte) (int, error) {
	for g.left == 0 {
		select {
		case n, ok := <-g.open:
			if g.left = n; !ok {
				g.left = 1 << 62
			}
		case <-g.done:
			return 0, context.Canceled
		}
	}
	n, err := g.r.Read(p[:min(int64(len(p)), g.left)])
	g.left -= int64(n)
	return n, err
}

func wantAsked(t *testing.T, s *source, want ...string) {
	t.Helper()
	if got := s.questions(); !slices.Equal(got, want) {
		t.Errorf("upstream was asked\n  %q\nwant\n  %q", got, want)
	}
}

func wantCode(t *testing.T, err error, want oci.Code) {
	t.Helper()
	if err == nil || oci.CodeOf(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func isCut(err error) bool { return err != nil && !errors.Is(err, io.EOF) }

func sha512Of(b []byte) oci.Digest {
	d, _ := oci.ParseDigest(fmt.Sprintf("sha512:%x", sha512.Sum512(b)))
	return d
}
