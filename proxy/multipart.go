package proxy

import (
	"crypto/rand"
	"fmt"
	"math"
	"net/http"
	"strconv"

	"entrepot/oci"
)

// unsatisfiable is the 416 that tells the true size.
func (x *exchange) unsatisfiable(size int64) error {
	x.set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
	return oci.Errorf(oci.RangeInvalid, "the blob has %d bytes, and the range lies behind them", size)
}

func contentRange(p part, size int64) string {
	b := append(make([]byte, 0, 64), "bytes "...)
	b = strconv.AppendInt(b, p.offset, 10)
	b = strconv.AppendInt(append(b, '-'), p.offset+p.length-1, 10)
	return string(strconv.AppendInt(append(b, '/'), size, 10))
}

// sendMultipart answers several ranges (RFC 9110, section 14.6). The parts are
// opened one after the other, each when the one before it is out; a part that
// cannot be opened cuts the answer.
func (x *exchange) sendMultipart(b oci.Blob, d oci.Digest, o opened) error {
	boundary := rand.Text() // a blob cannot hold what nobody could foresee
	heads, tail, length := frame(o, boundary)
	if err := x.describeBlob(d, length); err != nil {
		return err
	}
	x.set("Content-Type", "multipart/byteranges; boundary="+boundary)
	x.WriteHeader(http.StatusPartialContent)
	if err := x.flushUnlessHeld(); err != nil {
		return err
	}
	for i, p := range o.parts {
		err := x.putAll(heads[i])
		switch {
		case err != nil:
		case i == 0:
			err = x.copyPart(o.rd, p)
		default:
			err = x.openAndCopy(b, o.size, p)
		}
		if err != nil {
			return err
		}
	}
	return x.putAll(tail)
}

// openAndCopy sends a later part. It runs after the headers: only the request
// bounds how long the source may take.
func (x *exchange) openAndCopy(b oci.Blob, size int64, p part) error {
	if err := x.flush(); err != nil { // what is here, while the source may take its time
		return err
	}
	rd, err := b.Open(&x.ctx, p.offset, p.openLength())
	if err != nil {
		return err
	}
	defer rd.Close()
	if now := rd.Size(); now >= 0 && now != size {
		return fmt.Errorf("source told a size of %d for a blob, then %d", size, now)
	}
	return x.copyPart(rd, p)
}

// frame makes what stands before each part and behind the last, and adds up the
// length of it all.
func frame(o opened, boundary string) (heads []string, tail string, length int64) {
	heads = make([]string, len(o.parts))
	before := "--"
	for i, p := range o.parts {
		heads[i] = before + boundary + "\r\nContent-Type: " + octetStream + "\r\nContent-Range: " + contentRange(p, o.size) + "\r\n\r\n"
		length += int64(len(heads[i])) + p.length
		before = "\r\n--"
	}
	tail = before + boundary + "--\r\n"
	return heads, tail, length + int64(len(tail))
}

// putAll sends bytes that belong to no part.
func (x *exchange) putAll(s string) error {
	x.left = math.MaxInt64
	_, err := x.put([]byte(s))
	return err
}
