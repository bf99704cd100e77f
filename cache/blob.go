package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// blob is the handle that Cache.Blob gives out.
type blob struct {
	c    *Cache
	repo oci.Repository
	dg   oci.Digest
	ask  oci.Ask

	marker store.Marker
	known  bool // marker is set: repo is known to name or to have the blob

	failed bool // what was held could not be read: it goes past the disk if need be

	foreign oci.ForeignSource // set: the bytes come from urls, since upstream does not have them
	urls    []string
}

// Blob returns a handle. Whether the blob may be served, and from where, is
// decided when it is used.
func (c *Cache) Blob(ctx context.Context, repo oci.Repository, dg oci.Digest, ask oci.Ask) (oci.Blob, error) {
	b := &blob{c: c, repo: repo, dg: dg, ask: ask}
	marker, err := c.marker(ctx, repo, dg)
	switch {
	case err == nil:
		b.marker, b.known = marker, true
	case !errors.Is(err, store.ErrNotHeld):
		return nil, err
	}
	return b, nil
}

// member reports whether bytes that are here already may be served under repo
// without a word to upstream.
func (b *blob) member() bool {
	return b.known && (b.marker.State == store.Proven || !b.c.cfg.Private)
}

// isMemberNow is member with what has been found out since the handle was made.
func (b *blob) isMemberNow() bool {
	if !b.member() {
		if marker, err := b.c.disk.Marker(b.repo, b.dg); err == nil {
			b.marker, b.known = marker, true
		}
	}
	return b.member()
}

// size is what upstream or a manifest says of the size; -1 if neither does.
func (b *blob) size() int64 {
	if !b.known {
		return -1
	}
	return b.marker.Size
}

func (b *blob) Descriptor() oci.Descriptor {
	desc := oci.Descriptor{Digest: b.dg, Size: -1}
	if b.known {
		desc.MediaType, desc.Size = b.marker.MediaType, b.marker.Size
	}
	if n, err := b.c.disk.Size(b.dg); err == nil && b.member() {
		desc.Size = n
	}
	return desc
}

// Stat answers from what is held, then from a running fill, then from what
// upstream said earlier, and else by one HEAD that equal questions share.
func (b *blob) Stat(ctx context.Context) (oci.Descriptor, oci.Outcome, error) {
	desc := oci.Descriptor{MediaType: b.marker.MediaType, Digest: b.dg, Size: -1}
	var held Holding
	var out oci.Outcome
	held, desc.Size, out = b.holding(ctx)
	rung, failed := b.c.decide(ctx, b.place(), b.key, Case{Kind: HeadKind, Held: held, Background: b.ask.Background})
	switch {
	case rung.Serve == Ours && out.Cache == "":
		out.Cache = rung.Mark
		return desc, out, nil
	case rung.Serve == Ours:
		return desc, out, nil
	case failed != nil && b.turnElsewhere(ctx, failed):
		return b.Stat(ctx)
	case failed != nil:
		return oci.Descriptor{}, oci.Outcome{Why: "upstream said so a moment ago"}, failed
	case rung.Serve == Error:
		return oci.Descriptor{}, oci.Outcome{}, offline(b.key())
	}
	spent, err := b.confirm(ctx)
	if b.turnElsewhere(ctx, err) {
		return b.Stat(ctx)
	}
	if desc.Size = b.marker.Size; err == nil && desc.Size >= 0 {
		b.c.fills.tellSize(b.dg, b.place().Host, desc.Size)
	}
	return desc, oci.Outcome{Cache: oci.Miss, Checked: time.Now(), Why: "asked upstream", Spent: spent}, err
}

// holding is what can be told of the blob without asking, and its size, -1 if that
// is nothing.
func (b *blob) holding(ctx context.Context) (Holding, int64, oci.Outcome) {
	if !b.member() {
		return Nothing, -1, oci.Outcome{}
	}
	if n, err := b.heldSize(ctx); err == nil {
		return Whole, n, oci.Outcome{Why: "held"}
	}
	if n := b.c.fills.sizeOf(b.dg); n >= 0 {
		return Known, n, oci.Outcome{Cache: oci.Joined, Why: "a fill is running"}
	}
	if b.marker.State == store.Proven && b.size() >= 0 {
		return Known, b.size(), oci.Outcome{Why: "known"}
	}
	return Nothing, -1, oci.Outcome{}
}

// mayAsk returns why upstream is not to be asked for the bytes; nil if it is.
func (b *blob) mayAsk(ctx context.Context) error {
	rung, failed := b.c.decide(ctx, b.place(), b.key, Case{Kind: DigestKind, Background: b.ask.Background})
	if rung.Serve == Error && failed == nil {
		return offline(b.key())
	}
	return failed
}

// heldSize is the size of the held file. One that is not what it should be is
// looked into.
func (b *blob) heldSize(ctx context.Context) (int64, error) {
	if n, err := b.c.disk.Size(b.dg); err != nil || n == b.size() {
		return n, err
	}
	content, err := b.c.disk.Open(ctx, b.dg, b.size())
	if err != nil {
		return 0, err
	}
	return content.Size(), content.Close()
}

// confirm asks upstream by HEAD whether repo has the blob, and notes it. Of what
// is elsewhere it finds out the size.
func (b *blob) confirm(ctx context.Context) (spent int, err error) {
	found, first, err := do(ctx, b.c, &b.c.stats, b.key(), b.ask, questionBound, func(ctx context.Context) (resolution, error) {
		up, err := b.remote(ctx, b.ask)
		if err != nil {
			return resolution{}, err
		}
		desc, out, err := up.Stat(ctx)
		b.c.spoke(b.place().Host, out, err)
		if err != nil {
			b.noteFailure(HeadKind, err)
			return resolution{spent: out.Spent}, err
		}
		if desc.Size < 0 { // what a manifest says is better than nothing
			desc.Size = b.size()
		}
		if !b.isElsewhere() {
			b.c.mark(b.repo, b.dg, store.Marker{MediaType: b.marker.MediaType, Size: desc.Size, State: store.Proven})
		}
		return resolution{desc: desc, spent: out.Spent}, nil
	})
	if first {
		spent = found.spent
	}
	if err == nil {
		b.marker.Size, b.known = found.desc.Size, true
		if !b.isElsewhere() {
			b.marker.State = store.Proven
		}
	}
	return spent, err
}

// noteFailure remembers why there was no answer from where the bytes come from.
func (b *blob) noteFailure(kind Kind, err error) {
	b.c.noteFailure(b.c.ctx, b.place(), b.key(), Case{Kind: kind, Background: b.ask.Background}, err)
	if _, turns := b.elsewhere(b.c.ctx, err); b.known && !turns {
		b.c.doubt(b.repo, lost{b.dg, false, err}, b.ask)
	}
}

// markProven notes that the blob came under repo's name.
func (b *blob) markProven(size int64) {
	mediaType := b.marker.MediaType
	if marker, err := b.c.disk.Marker(b.repo, b.dg); err == nil {
		mediaType = marker.MediaType
	}
	b.c.mark(b.repo, b.dg, store.Marker{MediaType: mediaType, Size: size, State: store.Proven})
}

// isWhole reports that a read is of the whole blob, and likely to go on to its end.
func (b *blob) isWhole(offset, length int64) bool {
	return offset == 0 && length < 0 && !b.ask.Ranged
}

// Open serves what is held; what is not is filled, and read along.
func (b *blob) Open(ctx context.Context, offset, length int64) (oci.Reader, error) {
	if b.isWhole(offset, length) && !b.ask.Background {
		b.c.prefetchWith(ctx, b.repo, b.dg, b.ask.Client)
	}
	for range 8 {
		r, err := b.openHeld(ctx, offset, length)
		if errors.Is(err, store.ErrNotHeld) {
			r, err = b.openFill(ctx, offset, length)
		}
		if !errors.Is(err, errFillOver) && !b.turnElsewhere(ctx, err) {
			return r, err
		}
	}
	return nil, oci.Errorf(oci.Unavailable, "%s comes and goes on our disk", b.dg)
}

func (b *blob) openHeld(ctx context.Context, offset, length int64) (oci.Reader, error) {
	content, err := b.c.disk.Open(ctx, b.dg, b.size())
	if err != nil {
		return nil, err
	}
	out := oci.Outcome{Why: "held", Debt: b.c.debts.of(b.dg)}
	facts := Case{Kind: DigestKind, Held: Whole, Background: b.ask.Background}
	if !b.isMemberNow() {
		facts.Held = Unproven
	}
	rung, err := b.c.decide(ctx, b.place(), b.key, facts)
	switch {
	case err == nil && rung.Serve == Error:
		err = offline(b.key())
	case rung.Serve == Confirm && b.isElsewhere(): // only the bytes can prove that it belongs here
		if err := content.Close(); err != nil {
			return nil, err
		}
		return b.openProof(ctx, offset, length)
	case rung.Serve == Confirm:
		out.Why = "held, confirmed by upstream"
		out.Spent, err = b.confirm(ctx)
		facts.Said = Confirmed
		rung = b.c.ladder(b.repo.Host).Climb(facts)
	}
	if err != nil {
		return nil, errors.Join(err, content.Close())
	}
	out.Cache = rung.Mark
	if b.failed {
		if err := content.Close(); err != nil {
			return nil, err
		}
		if err := b.mayAsk(ctx); err != nil {
			return nil, err
		}
		return b.openBypass(ctx, offset, length, "what is held cannot be read", nil)
	}
	size := content.Size()
	if b.marker.State == store.Proven && b.size() != size { // upstream was wrong about it
		b.c.mark(b.repo, b.dg, store.Marker{MediaType: b.marker.MediaType, Size: size, State: store.Proven})
	}
	if offset > size || offset == size && size > 0 {
		return nil, errors.Join(beyond(b.dg, offset, size), content.Close())
	}
	if length < 0 || length > size-offset {
		length = size - offset
	}
	section, err := content.Section(offset, length)
	if err != nil {
		return nil, err
	}
	return &heldReader{Section: section, blob: b, ctx: ctx, offset: offset, end: offset + length, size: size, outcome: out}, nil
}

func beyond(dg oci.Digest, offset, size int64) error {
	return oci.Errorf(oci.RangeInvalid, "%s has %d bytes, none at offset %d", dg, size, offset)
}

// heldReader reads held content. When the disk cannot give the rest, it goes on
// with what can be had again.
type heldReader struct {
	*store.Section
	blob              *blob
	ctx               context.Context //nolint:containedctx // the request's: the reader lives in it
	offset, end, size int64
	outcome           oci.Outcome
	past              oci.Reader // set once the disk failed
}

func (r *heldReader) Read(p []byte) (int, error) {
	if r.past != nil {
		return r.past.Read(p)
	}
	n, err := r.Section.Read(p)
	switch {
	case !errors.Is(err, store.ErrDisk):
		return n, err
	case n > 0:
		return n, nil // the next time it fails at once
	}
	if err := r.goPast(err); err != nil {
		return 0, err
	}
	return r.past.Read(p)
}

// WriteTo lets the kernel send what is on disk.
func (r *heldReader) WriteTo(w io.Writer) (int64, error) {
	var n int64
	if r.past == nil {
		var err error
		if n, err = r.Section.WriteTo(w); !errors.Is(err, store.ErrDisk) {
			return n, err
		}
		if err := r.goPast(err); err != nil {
			return n, err
		}
	}
	m, err := io.Copy(w, struct{ io.Reader }{r.past})
	return n + m, err
}

// goPast asks for the rest anew. What was damaged has been dropped by now; what
// could not even be dropped is passed by.
func (r *heldReader) goPast(why error) (err error) {
	r.blob.c.cfg.Warn("held content cannot be read; the rest of it is fetched", r.blob.repo, why)
	again, left := *r.blob, r.Left()
	again.failed = true
	at := r.end - left
	if r.end == r.size {
		left = -1
	}
	r.past, err = again.Open(r.ctx, at, left)
	return err
}

func (r *heldReader) Close() error {
	err := r.Section.Close()
	if r.past != nil {
		err = errors.Join(err, r.past.Close())
	}
	return err
}

func (r *heldReader) Offset() int64        { return r.offset }
func (r *heldReader) Size() int64          { return r.size }
func (r *heldReader) Outcome() oci.Outcome { return r.outcome }

// openFill joins the running fill of the blob, or starts one. errFillOver says
// that the fill ended just now: look again.
func (b *blob) openFill(ctx context.Context, offset, length int64) (oci.Reader, error) {
	if err := b.mayAsk(ctx); err != nil {
		return nil, err
	}
	if _, _, err := b.c.unkept.get(b.dg.String(), time.Now()); err != nil {
		return b.openBypass(ctx, offset, length, err.Error(), nil)
	}
	f, started := b.c.joinOrStart(ctx, b)
	if f == nil {
		return nil, errClosed
	}
	out := oci.Outcome{Cache: oci.Miss, Checked: time.Now(), Why: "not held"}
	if !started {
		out = oci.Outcome{Cache: oci.Joined, Checked: time.Now(), Why: "a fill is running"}
	}
	if f.origin.Host != b.place().Host {
		switch {
		case f.isOver():
			return nil, f.awaitEnd(ctx)
		case b.ask.Background:
			return nil, b.awaitOther(ctx, f, "another upstream is filling it")
		}
		return b.openBypass(ctx, offset, length, "another upstream is filling it", nil)
	}
	if err := f.awaitReady(ctx); err != nil && !errors.Is(err, errFillOver) && !errors.Is(err, errCannotKeep) {
		return nil, err
	}
	if !b.isMemberNow() && f.holdsOthers(b.place()) {
		if b.isElsewhere() {
			f.abandon()
			if b.ask.Background && !started {
				return nil, b.awaitOther(ctx, f, "another repository is filling it")
			}
			return b.openBypass(ctx, offset, length, "another repository is filling it", nil)
		}
		spent, err := b.confirm(ctx)
		if err != nil {
			f.abandon()
			return nil, err
		}
		out.Spent = spent
	}
	r, err := b.follow(ctx, f, offset, length)
	if errors.Is(err, errCannotKeep) {
		b.c.passBy(b.dg, b.ask, err)
		return b.openBypass(ctx, offset, length, err.Error(), nil)
	}
	if err != nil {
		return nil, err
	}
	if size := r.Size(); size >= 0 && (offset > size || offset == size && size > 0) {
		return nil, errors.Join(beyond(b.dg, offset, size), r.Close())
	}
	switch {
	case started:
	case f.file.Proven():
		out.Cache, out.Why = oci.Hit, "just filled"
	default:
		b.c.joined.Add(1)
	}
	out.Had, out.Debt = f.had, f.debt
	r.outcome = out
	return r, nil
}

// othersWait is how long the background waits for a fill of others, before it is told
// to come again: whoever asks has a place that he keeps from others.
const othersWait = 10 * time.Second

// awaitOther waits, where nobody does, for a fill that may not be read along with: what
// it brings is here then, and need not come twice.
func (b *blob) awaitOther(ctx context.Context, f *fill, why string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, othersWait, &oci.Error{Code: oci.Unavailable, Detail: why, Err: oci.ErrFilling})
	defer cancel()
	return f.awaitEnd(ctx)
}

func (b *blob) key() string { return b.place().String() + "@" + b.dg.String() }

// follow adds a reader to a fill and waits for its first byte.
func (b *blob) follow(ctx context.Context, f *fill, offset, length int64) (*fillReader, error) {
	r, err := f.open(ctx, offset, length, b.isWhole(offset, length))
	if errors.Is(err, errFillOver) {
		return nil, f.awaitEnd(ctx)
	}
	if err != nil {
		return nil, err
	}
	r.blob, r.ctx = b, ctx
	began := time.Now()
	err = r.Wait()
	if err == nil || errors.Is(err, io.EOF) {
		return r, nil
	}
	if errors.Is(err, context.DeadlineExceeded) && r.AwaitsProof() { // upstream has answered
		err = &oci.Error{Code: oci.Timeout, Detail: fmt.Sprintf("upstream has not sent all of it within %v: %d of %d bytes have come",
			time.Since(began).Round(time.Second), f.file.Landed(), r.Size()), Err: err}
	}
	err = errors.Join(err, r.Close())
	if f.origin != b.place() && saidBy(err).isFinal() {
		return nil, f.awaitEnd(ctx) // that is what upstream says of another repository
	}
	return nil, err
}
