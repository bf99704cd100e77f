package proxy

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"

	"entrepot/oci"
)

// octetStream is what clients expect of a blob: what it is says the manifest
// that led to it.
const octetStream = "application/octet-stream"

var bytesUnit = []string{"bytes"}

func (x *exchange) blob() error {
	d := x.req.Digest
	if !x.mute && x.h.cfg.Clients != nil {
		end, err := x.h.cfg.Clients.Transfer(&x.ctx, x.ask.Client)
		if err != nil {
			return err
		}
		defer end()
	}
	ranges, refused := x.ranges(d)
	x.ask.Ranged = ranges != nil
	b, err := x.pass.Source.Blob(&x.ctx, x.at.repo, d, x.ask)
	if err != nil {
		return err
	}
	if x.mute || x.r.Header["If-None-Match"] != nil {
		if done, err := x.blobHead(b, d); done || err != nil {
			return err
		}
	}
	switch {
	case refused != nil:
		return refused
	case ranges == nil:
		return x.sendWhole(b, d)
	}
	return x.sendRanges(b, d, ranges)
}

// blobHead answers HEAD, and a GET whose client has the blob already.
func (x *exchange) blobHead(b oci.Blob, d oci.Digest) (done bool, err error) {
	size, err := x.stat(b)
	switch {
	case err != nil:
		return false, err
	case x.holds(d):
		return true, x.notModified(d)
	case !x.mute:
		return false, nil
	}
	if err := x.describeBlob(d, size); err != nil {
		return false, err
	}
	x.WriteHeader(http.StatusOK)
	return true, nil
}

// stat asks for the true size; -1 if even the source cannot tell.
func (x *exchange) stat(b oci.Blob) (int64, error) {
	desc, out, err := b.Stat(&x.ctx)
	x.learn(out)
	return desc.Size, err
}

func (x *exchange) describeBlob(d oci.Digest, size int64) error {
	x.Header()["Accept-Ranges"] = bytesUnit
	return x.describe(oci.Descriptor{MediaType: octetStream, Digest: d, Size: size})
}

// sendWhole answers 200. A size that is not known once the first byte is there
// is asked for; if nobody knows it the answer goes out in chunks, and a failure
// still cuts it.
func (x *exchange) sendWhole(b oci.Blob, d oci.Digest) error {
	rd, err := b.Open(&x.ctx, 0, -1)
	if errors.Is(err, oci.ErrRangeInvalid) {
		return oci.Errorf(oci.BadUpstream, "upstream has no first byte of the blob %s: %w", d, err)
	}
	if err != nil {
		return err
	}
	defer rd.Close()
	size := rd.Size()
	if size < 0 {
		if size, err = x.stat(b); err != nil {
			size = -1
		}
	}
	switch {
	case size < 0 && !x.r.ProtoAtLeast(1, 1):
		return oci.Errorf(oci.BadUpstream, "upstream does not tell the size of %s, and HTTP/1.0 cannot show where an answer breaks", d)
	case size == 0:
		if err := expectEnd(rd); err != nil {
			return err
		}
	}
	if !x.ctx.settle() {
		return x.ctx.Err()
	}
	x.served(rd.Outcome())
	if err := x.describeBlob(d, size); err != nil {
		return err
	}
	return x.sendPart(http.StatusOK, rd, part{0, size, true})
}

// expectEnd makes sure that an empty blob is one: its headers alone complete
// the client's copy, so nothing could be held back later.
func expectEnd(rd oci.Reader) error {
	var one [1]byte
	n, err := io.ReadFull(rd, one[:])
	switch {
	case n > 0:
		return oci.Errorf(oci.BadUpstream, "upstream sends bytes of a blob that it says has none")
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// sendRanges answers 206 or 416, and 200 where ranges mean nothing.
func (x *exchange) sendRanges(b oci.Blob, d oci.Digest, ranges []byteRange) error {
	o, err := x.openRanges(b, ranges)
	if err != nil {
		return err
	}
	if o.rd == nil {
		return x.sendWhole(b, d)
	}
	defer o.rd.Close()
	if !x.ctx.settle() {
		return x.ctx.Err()
	}
	x.served(o.rd.Outcome())
	if len(o.parts) > 1 {
		return x.sendMultipart(b, d, o)
	}
	p := o.parts[0]
	if err := x.describeBlob(d, p.length); err != nil {
		return err
	}
	x.set("Content-Range", contentRange(p, o.size))
	return x.sendPart(http.StatusPartialContent, o.rd, p)
}

// opened is what openRanges found: the parts to send of a blob of size bytes,
// and a reader at the first of them. A nil reader stands for the whole blob.
type opened struct {
	parts []part
	size  int64
	sure  bool // size is more than a hint
	rd    oci.Reader
}

// maxOpens bounds how often ranges are planned anew: once for a hint, once for
// the size that the source tells, once for the one that its reader tells.
const maxOpens = 3

// openRanges opens the first part. Headers must not go out before: only the
// reader knows the true size.
func (x *exchange) openRanges(b oci.Blob, ranges []byteRange) (opened, error) {
	o := opened{size: b.Descriptor().Size}
	for range maxOpens {
		if err := x.plan(b, ranges, &o); err != nil || len(o.parts) == 0 {
			return o, err
		}
		first := o.parts[0]
		rd, err := b.Open(&x.ctx, first.offset, first.openLength())
		if errors.Is(err, oci.ErrRangeInvalid) {
			if o.sure {
				return o, oci.Errorf(oci.BadUpstream, "upstream refuses a range inside the %d bytes that it says the blob has: %w", o.size, err)
			}
			o.size = -1 // the hint was too large
			continue
		}
		if err != nil {
			return o, err
		}
		if fits, err := x.fit(b, ranges, &o, rd); err != nil {
			return o, errors.Join(err, rd.Close())
		} else if fits {
			o.rd = rd
			return o, nil
		}
		if err := rd.Close(); err != nil {
			return o, err
		}
	}
	return o, oci.Errorf(oci.BadUpstream, "upstream tells a new size for the blob each time that it is asked")
}

// plan makes o's parts for its size. A hint refuses nobody: where no range fits
// it, the source is asked for the size. No parts and no error mean the whole
// blob: of unknown size, or empty, where "bytes=0-" is a client's habit and no
// mistake.
func (x *exchange) plan(b oci.Blob, ranges []byteRange, o *opened) (err error) {
	o.parts, err = partsOf(ranges, o.size)
	if !o.sure && (err != nil || len(o.parts) == 0) {
		if o.size, err = x.stat(b); err != nil {
			return err
		}
		o.sure = true
		o.parts, err = partsOf(ranges, o.size)
	}
	if err == nil && len(o.parts) == 0 && o.size > 0 {
		return x.unsatisfiable(o.size)
	}
	return err
}

// fit compares the size that o was planned for with the true one. Where they
// differ it plans anew, and reports whether rd still stands at the first part.
func (x *exchange) fit(b oci.Blob, ranges []byteRange, o *opened, rd oci.Reader) (bool, error) {
	size := rd.Size()
	if size < 0 && !o.sure {
		var err error
		if size, err = x.stat(b); err != nil {
			return false, err
		}
		o.sure = size == o.size
	}
	if size == o.size || size < 0 && o.sure {
		return true, nil
	}
	first := o.parts[0]
	o.size, o.sure = size, true
	if err := x.plan(b, ranges, o); err != nil || len(o.parts) == 0 {
		return false, err
	}
	return o.parts[0].offset == first.offset && o.parts[0].openLength() == first.openLength(), nil
}

// sendPart sends the headers and the one part of the answer.
func (x *exchange) sendPart(status int, rd oci.Reader, p part) error {
	x.WriteHeader(status)
	if err := x.flushUnlessHeld(); err != nil {
		return err
	}
	defer x.spentBy(rd)
	return x.copyPart(rd, p)
}

// flushUnlessHeld sends the headers alone if the bytes may be slow. What we hold
// follows at once, and a small blob then shares a packet with them.
func (x *exchange) flushUnlessHeld() error {
	if x.outcome.Cache == oci.Hit {
		return nil
	}
	return x.flush()
}

// copyPart sends p from rd, which may start before p and go on behind it. A
// length below zero is to wherever the reader ends.
func (x *exchange) copyPart(rd oci.Reader, p part) (err error) {
	skip := p.offset - rd.Offset()
	if skip < 0 {
		return fmt.Errorf("source opened a blob at %d, behind the %d asked for", rd.Offset(), p.offset)
	}
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, rd, skip); err != nil {
			return noEOF(err)
		}
	}
	if p.length < 0 || p.length >= corkFrom {
		x.line.widen()
	}
	x.left = p.length
	if p.length < 0 {
		x.left = math.MaxInt64
	}
	if wt, ok := rd.(io.WriterTo); ok {
		_, err = wt.WriteTo(&x.answer)
	} else {
		_, err = x.follow(rd)
	}
	switch {
	case x.gone != nil:
		return x.gone
	case x.left == 0: // complete, whatever the reader has behind it
		return nil
	case err == nil && p.length >= 0:
		return fmt.Errorf("source ended a blob %d bytes early: %w", x.left, io.ErrUnexpectedEOF)
	}
	return noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
