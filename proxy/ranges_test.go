package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"entrepot/oci"

	"github.com/google/go-cmp/cmp"
)

func TestRanges(t *testing.T) {
	const whole = helloBlob // ten bytes
	etag := `"` + blobDigest.String() + `"`
	for _, c := range []struct {
		name    string
		headers []string
		status  int
		body    string
		crange  string
		open    string // what the source is asked for
	}{
		{"none", nil, 200, whole, "-", "Open 0 -1"},
		{"from the start", []string{"Range", "bytes=0-"}, 206, whole, "bytes 0-9/10", "Open 0 -1"},
		{"open end", []string{"Range", "bytes=4-"}, 206, whole[4:], "bytes 4-9/10", "Open 4 -1"},
		{"last byte, open", []string{"Range", "bytes=9-"}, 206, "9", "bytes 9-9/10", "Open 9 -1"},
		{"explicit end", []string{"Range", "bytes=2-5"}, 206, "2345", "bytes 2-5/10", "Open 2 4"},
		{"one byte", []string{"Range", "bytes=0-0"}, 206, "0", "bytes 0-0/10", "Open 0 1"},
		{"explicit last byte passes unproven", []string{"Range", "bytes=5-9"}, 206, "56789", "bytes 5-9/10", "Open 5 5"},
		{"explicit whole waits for the proof", []string{"Range", "bytes=0-9"}, 206, whole, "bytes 0-9/10", "Open 0 -1"},
		{"end behind the end", []string{"Range", "bytes=7-99"}, 206, "789", "bytes 7-9/10", "Open 7 -1"},
		{"end beyond all numbers", []string{"Range", "bytes=7-99999999999999999999999"}, 206, "789", "bytes 7-9/10", "Open 7 -1"},
		{"suffix", []string{"Range", "bytes=-3"}, 206, "789", "bytes 7-9/10", "Open 7 -1"},
		{"long suffix", []string{"Range", "bytes=-300"}, 206, whole, "bytes 0-9/10", "Open 0 -1"},
		{"unit in capitals", []string{"Range", "BYTES=2-5"}, 206, "2345", "bytes 2-5/10", "Open 2 4"},
		{"empty list elements", []string{"Range", "bytes=, 2-5 ,,"}, 206, "2345", "bytes 2-5/10", "Open 2 4"},
		{"one of two satisfiable", []string{"Range", "bytes=50-60,2-5"}, 206, "2345", "bytes 2-5/10", "Open 2 4"},

		{"behind the end", []string{"Range", "bytes=10-"}, 416, "", "bytes */10", ""},
		{"far behind the end", []string{"Range", "bytes=99999999999999999999999-"}, 416, "", "bytes */10", ""},
		{"both behind the end", []string{"Range", "bytes=10-11,12-13"}, 416, "", "bytes */10", ""},
		{"suffix of nothing", []string{"Range", "bytes=-0"}, 416, "", "bytes */10", ""},

		{"other unit", []string{"Range", "lines=1-2"}, 200, whole, "-", "Open 0 -1"},
		{"end before start", []string{"Range", "bytes=5-2"}, 200, whole, "-", "Open 0 -1"},
		{"no numbers", []string{"Range", "bytes=-"}, 200, whole, "-", "Open 0 -1"},
		{"letters", []string{"Range", "bytes=a-b"}, 200, whole, "-", "Open 0 -1"},
		{"signs", []string{"Range", "bytes=+1-2"}, 200, whole, "-", "Open 0 -1"},
		{"two minus", []string{"Range", "bytes=--2"}, 200, whole, "-", "Open 0 -1"},
		{"blank inside", []string{"Range", "bytes=1 -2"}, 200, whole, "-", "Open 0 -1"},
		{"one malformed of two", []string{"Range", "bytes=0-1,x"}, 200, whole, "-", "Open 0 -1"},
		{"empty", []string{"Range", "bytes="}, 200, whole, "-", "Open 0 -1"},
		{"only commas", []string{"Range", "bytes=,,"}, 200, whole, "-", "Open 0 -1"},
		{"two headers", []string{"Range", "bytes=0-1", "Range", "bytes=2-3"}, 200, whole, "-", "Open 0 -1"},

		{"If-Range matches", []string{"Range", "bytes=2-5", "If-Range", etag}, 206, "2345", "bytes 2-5/10", "Open 2 4"},
		{"If-Range of another", []string{"Range", "bytes=2-5", "If-Range", `"x"`}, 200, whole, "-", "Open 0 -1"},
		{"If-Range weak", []string{"Range", "bytes=2-5", "If-Range", "W/" + etag}, 200, whole, "-", "Open 0 -1"},
		{"If-Range date", []string{"Range", "bytes=2-5", "If-Range", time.Now().UTC().Format(http.TimeFormat)}, 200, whole, "-", "Open 0 -1"},
		{"If-Range without Range", []string{"If-Range", etag}, 200, whole, "-", "Open 0 -1"},

		{"overlap beyond the size", []string{"Range", "bytes=0-8,0-8"}, 400, "", "-", ""},
		{"as many as may be", []string{"Range", "bytes=" + strings.Repeat("99-99,", maxRanges)}, 416, "", "bytes */10", ""},
		{"too many", []string{"Range", "bytes=" + strings.Repeat("99-99,", maxRanges+1)}, 400, "", "-", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := helloRegistry(t)
			d := newDoor(t, g, Config{})
			got := d.do("GET", theBlob(), c.headers...)
			if got.StatusCode != c.status || got.err != nil {
				t.Fatalf("got %s %q %v, want %d", got.Status, got.body, got.err, c.status)
			}
			expectHeaders(t, got.Header, "Content-Range", c.crange)
			if c.open != "" {
				calls := g.took()
				if !slices.Equal(calls[1:], []string{c.open}) {
					t.Errorf("source was asked %q, want %q", calls[1:], c.open)
				}
				if ranged := strings.HasSuffix(calls[0], " ranged"); ranged != (c.status == 206) {
					t.Errorf("source was told of a range: %v, by %q", ranged, calls[0])
				}
			}
			switch c.status {
			case 416:
				expectError(t, got, 416, "RANGE_INVALID")
			case 400:
				expectError(t, got, 400, "RANGE_INVALID")
			default:
				if got.body != c.body {
					t.Errorf("got %q, want %q", got.body, c.body)
				}
				expectHeaders(t, got.Header, "Content-Length", strconv.Itoa(len(c.body)), "Docker-Content-Digest", blobDigest.String(), "Etag", etag, "Content-Type", octetStream)
			}
			// RFC 9110, section 14.2: HEAD has no ranges.
			if head := d.do("HEAD", theBlob(), c.headers...); head.StatusCode != 200 || head.ContentLength != 10 {
				t.Errorf("HEAD: got %s with %d bytes", head.Status, head.ContentLength)
			}
		})
	}
}

// containerd asks for bytes=0- of everything it fetches in pieces.
func TestRangeOfAnEmptyBlobIsTheWhole(t *testing.T) {
	d := newDoor(t, helloRegistry(t), Config{})
	for _, r := range []string{"bytes=0-", "bytes=0-10", "bytes=-5", "bytes=0-0,5-6"} {
		got := d.do("GET", "/v2/library/hello/blobs/"+emptyDigest.String(), "Range", r)
		if got.StatusCode != 200 || got.ContentLength != 0 {
			t.Errorf("%s: got %s, %d bytes; want 200, 0", r, got.Status, got.ContentLength)
		}
	}
}

// net/http's own file server is the second opinion.
func TestSingleRangesAreThoseOfServeContent(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	d := newDoor(t, helloRegistry(t), Config{})
	for range 300 {
		a, b := rnd.IntN(14), rnd.IntN(14)
		spec := []string{fmt.Sprintf("bytes=%d-%d", min(a, b), max(a, b)), fmt.Sprintf("bytes=%d-", a), fmt.Sprintf("bytes=-%d", a+1)}[rnd.IntN(3)]
		rec := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Range", spec)
		http.ServeContent(rec, req, "", time.Time{}, strings.NewReader(helloBlob))
		got := d.do("GET", theBlob(), "Range", spec)
		if got.StatusCode != rec.Code || got.Header.Get("Content-Range") != rec.Header().Get("Content-Range") || rec.Code == 206 && got.body != rec.Body.String() {
			t.Errorf("%s: got %s %q %q, want %d %q %q", spec, got.Status, got.Header.Get("Content-Range"), got.body, rec.Code, rec.Header().Get("Content-Range"), rec.Body)
		}
	}
}

func TestSeveralRangesAreMultipart(t *testing.T) {
	content := make([]byte, 300<<10)
	for i := range content {
		content[i] = byte(rand.IntN(256))
	}
	for _, c := range []struct {
		ranges string
		parts  []string
	}{
		{"bytes=0-0,5-9", []string{"0-0", "5-9"}},
		{"bytes=100000-199999,0-99,-10", []string{"100000-199999", "0-99", "307190-307199"}},
		{"bytes=0-99,50-149", []string{"0-99", "50-149"}}, // an overlap within the size
		{"bytes=0-9,999999999-,300000-", []string{"0-9", "300000-307199"}},
	} {
		for _, noRanges := range []bool{false, true} {
			g := helloRegistry(t)
			digest := g.repo("docker.io/library/hello").addBlob(content)
			g.noRanges = noRanges
			g.outcome.Cache = []oci.CacheStatus{oci.Hit, oci.Miss}[rand.IntN(2)]
			d := newDoor(t, g, Config{})
			got := d.do("GET", "/v2/library/hello/blobs/"+digest.String(), "Range", c.ranges)
			if got.StatusCode != 206 || got.err != nil || got.ContentLength != int64(len(got.body)) {
				t.Fatalf("%s: got %s, %v, %d bytes of %d", c.ranges, got.Status, got.err, len(got.body), got.ContentLength)
			}
			expectHeaders(t, got.Header, "Docker-Content-Digest", digest.String(), "Content-Range", "-")
			mediaType, params, err := mime.ParseMediaType(got.Header.Get("Content-Type"))
			if err != nil || mediaType != "multipart/byteranges" {
				t.Fatalf("Content-Type: %q", got.Header.Get("Content-Type"))
			}
			mr := multipart.NewReader(strings.NewReader(got.body), params["boundary"])
			for _, want := range c.parts {
				p, err := mr.NextRawPart()
				if err != nil {
					t.Fatalf("%s: part %s: %v", c.ranges, want, err)
				}
				body, err := io.ReadAll(p)
				if err != nil {
					t.Fatal(err)
				}
				if cr := fmt.Sprintf("bytes %s/%d", want, len(content)); p.Header.Get("Content-Range") != cr || p.Header.Get("Content-Type") != octetStream {
					t.Errorf("%s: got %v, want %s", c.ranges, p.Header, cr)
				}
				var first, last int
				if _, err := fmt.Sscanf(want, "%d-%d", &first, &last); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(body, content[first:last+1]) {
					t.Errorf("%s: part %s has wrong bytes", c.ranges, want)
				}
			}
			if _, err := mr.NextRawPart(); err != io.EOF {
				t.Errorf("%s: after the last part: %v", c.ranges, err)
			}
		}
	}
}

func TestMultipartIsCutWhenALaterPartFails(t *testing.T) {
	for name, fault := range map[string]func(*registry){
		"open fails": func(g *registry) { g.refuseRange = func(offset, _ int64) bool { return offset == 5 } },
		"size moves": func(g *registry) {
			opens := 0
			g.opened = func(int64, int64) { opens++ }
			g.readerSize = func(size int64) int64 { return size + int64(opens/2) }
		},
	} {
		g := helloRegistry(t)
		fault(g)
		d := newDoor(t, g, Config{})
		got := d.do("GET", theBlob(), "Range", "bytes=0-1,5-6")
		if got.StatusCode != 206 || !errors.Is(got.err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: got %s and %v, want 206 and a cut", name, got.Status, got.err)
		}
		if rec := d.record(); rec.Err == nil {
			t.Errorf("%s: no error recorded", name)
		}
	}
}

// A manifest's size is a hint: what goes out is what the reader knows.
func TestSizesThatAreOnlyHints(t *testing.T) {
	is := func(n int64) func(int64) int64 { return func(int64) int64 { return n } }
	for _, c := range []struct {
		name   string
		fault  func(*registry)
		ranges string
		status int
		crange string
		body   string
		calls  []string
	}{
		{"hint too small, whole", func(g *registry) { g.hint = is(5) }, "", 200, "-", helloBlob, []string{"Open 0 -1"}},
		{"hint too large, whole", func(g *registry) { g.hint = is(50) }, "", 200, "-", helloBlob, []string{"Open 0 -1"}},
		{"no hint, whole", func(g *registry) { g.hint = is(-1) }, "", 200, "-", helloBlob, []string{"Open 0 -1"}},
		{"reader does not know, whole", func(g *registry) { g.readerSize = is(-1) }, "", 200, "-", helloBlob, []string{"Open 0 -1", "Stat"}},
		{"no hint, range", func(g *registry) { g.hint = is(-1) }, "bytes=2-3", 206, "bytes 2-3/10", "23", []string{"Stat", "Open 2 2"}},
		{"hint too small, inside", func(g *registry) { g.hint = is(5) }, "bytes=2-3", 206, "bytes 2-3/10", "23", []string{"Open 2 2"}},
		{"hint too small, across", func(g *registry) { g.hint = is(5) }, "bytes=2-7", 206, "bytes 2-7/10", "234567", []string{"Open 2 -1", "Open 2 6"}},
		{"hint too small, behind", func(g *registry) { g.hint = is(5) }, "bytes=6-7", 206, "bytes 6-7/10", "67", []string{"Stat", "Open 6 2"}},
		{"hint too small, open", func(g *registry) { g.hint = is(5) }, "bytes=2-", 206, "bytes 2-9/10", "23456789", []string{"Open 2 -1"}},
		{"hint too small, suffix", func(g *registry) { g.hint = is(5) }, "bytes=-3", 206, "bytes 7-9/10", "789", []string{"Open 2 -1", "Open 7 -1"}},
		{"hint too small, sum of several", func(g *registry) { g.hint = is(3) }, "bytes=0-1,2-2,1-2", 206, "-", "*", []string{"Stat", "Open 0 2", "Open 2 1", "Open 1 2"}},
		{"hint too large, suffix", func(g *registry) { g.hint = is(50) }, "bytes=-3", 206, "bytes 7-9/10", "789", []string{"Open 47 -1", "Stat", "Open 7 -1"}},
		{"hint too large, across", func(g *registry) { g.hint = is(50) }, "bytes=7-20", 206, "bytes 7-9/10", "789", []string{"Open 7 14", "Open 7 -1"}},
		{"hint too large, behind", func(g *registry) { g.hint = is(50) }, "bytes=20-30", 416, "bytes */10", "", []string{"Open 20 11", "Stat"}},
		{"hint of nothing", func(g *registry) { g.hint = is(0) }, "bytes=1-2", 206, "bytes 1-2/10", "12", []string{"Stat", "Open 1 2"}},
		{"only the hint is known", func(g *registry) { g.readerSize, g.statSize = is(-1), is(-1) }, "bytes=1-2", 200, "-", helloBlob, []string{"Open 1 2", "Stat", "Open 0 -1", "Stat"}},
		{"nobody knows, range", func(g *registry) { g.hint, g.readerSize, g.statSize = is(-1), is(-1), is(-1) }, "bytes=1-2", 200, "-", helloBlob, []string{"Stat", "Open 0 -1", "Stat"}},
		{"hint right, reader does not know", func(g *registry) { g.readerSize = is(-1) }, "bytes=1-2", 206, "bytes 1-2/10", "12", []string{"Open 1 2", "Stat"}},
		{"stat and reader differ", func(g *registry) { g.hint, g.statSize = is(-1), is(5) }, "bytes=-3", 206, "bytes 7-9/10", "789", []string{"Stat", "Open 2 -1", "Open 7 -1"}},
		{"refused inside the size", func(g *registry) { g.refuseRange = func(o, _ int64) bool { return o > 0 } }, "bytes=1-2", 502, "-", "", []string{"Open 1 2", "Stat", "Open 1 2"}},
		{"first byte refused", func(g *registry) { g.refuseRange = func(int64, int64) bool { return true } }, "", 502, "-", "", []string{"Open 0 -1"}},
		{"size grows for ever", func(g *registry) {
			n := int64(10)
			g.readerSize = func(int64) int64 { n++; return n }
		}, "bytes=-1", 502, "-", "", []string{"Open 9 -1", "Open 10 -1", "Open 11 -1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := helloRegistry(t)
			c.fault(g)
			d := newDoor(t, g, Config{})
			headers := []string{}
			if c.ranges != "" {
				headers = []string{"Range", c.ranges}
			}
			got := d.do("GET", theBlob(), headers...)
			if got.StatusCode != c.status || got.err != nil {
				t.Fatalf("got %s %q %v, want %d", got.Status, got.body, got.err, c.status)
			}
			if diff := cmp.Diff(c.calls, g.took()[1:]); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			expectHeaders(t, got.Header, "Content-Range", c.crange)
			if c.status < 400 && c.body != "*" && got.body != c.body {
				t.Errorf("got %q, want %q", got.body, c.body)
			}
		})
	}
}

func TestHeadOfABlobWhoseSizeNobodyKnows(t *testing.T) {
	g := helloRegistry(t)
	g.statSize = func(int64) int64 { return -1 }
	d := newDoor(t, g, Config{})
	got := d.do("HEAD", theBlob())
	if got.StatusCode != 200 || got.ContentLength != -1 {
		t.Errorf("got %s with Content-Length %d, want 200 with none", got.Status, got.ContentLength)
	}
}

// A blob that is said to be empty is complete with its headers.
func TestEmptyBlobIsProvenBeforeHeaders(t *testing.T) {
	g := helloRegistry(t)
	g.readerSize = func(int64) int64 { return 0 }
	d := newDoor(t, g, Config{})
	expectError(t, d.do("GET", theBlob()), 502, "UNAVAILABLE")

	g = helloRegistry(t)
	g.reader = func(_ context.Context, r *stretch) oci.Reader {
		r.Reader = failing{oci.Errorf(oci.BadUpstream, "not what the digest names")}
		return r
	}
	d = newDoor(t, g, Config{})
	expectError(t, d.do("GET", "/v2/library/hello/blobs/"+emptyDigest.String()), 502, "UNAVAILABLE")
}

// A source without ranges starts at the first byte and goes on to the last.
func TestSourceWithoutRanges(t *testing.T) {
	for _, writerTo := range []bool{false, true} {
		g := helloRegistry(t)
		g.noRanges = true
		if writerTo {
			g.reader = func(_ context.Context, r *stretch) oci.Reader { return selfWriter{r} }
		}
		d := newDoor(t, g, Config{})
		for r, want := range map[string]string{"bytes=3-": "3456789", "bytes=3-5": "345", "bytes=-2": "89", "bytes=0-0": "0"} {
			got := d.do("GET", theBlob(), "Range", r)
			if got.StatusCode != 206 || got.body != want || got.err != nil {
				t.Errorf("%s: got %s %q %v, want %q", r, got.Status, got.body, got.err, want)
			}
			if rec := d.record(); rec.Err != nil || rec.Bytes != int64(len(want)) {
				t.Errorf("%s: recorded %d bytes, %v", r, rec.Bytes, rec.Err)
			}
		}
	}
}

// selfWriter is a reader with a way of its own to write itself.
type selfWriter struct{ *stretch }

func (s selfWriter) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, s.Reader) }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzRanges(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-5", "bytes=2-5,7-9", "bytes=5-2", "bytes=, 1-2 ,", "lines=1-2", "bytes=99999999999999999999-", "bytes=0-0,0-0,0-0", "bytes=-0"} {
		f.Add(s, int64(10))
	}
	f.Add("bytes=9223372036854775806-9223372036854775807", int64(9223372036854775807))
	f.Fuzz(func(t *testing.T, s string, size int64) {
		ranges, err := parseRanges(s)
		if err != nil {
			if ranges != nil || oci.CodeOf(err) != oci.RangesRefused {
				t.Fatalf("%q: %v with %v", s, ranges, err)
			}
			return
		}
		if len(ranges) > maxRanges {
			t.Fatalf("%d ranges", len(ranges))
		}
		parts, err := partsOf(ranges, size)
		if err != nil {
			if oci.CodeOf(err) != oci.RangesRefused || len(ranges) < 2 {
				t.Fatalf("%q of %d: %v", s, size, err)
			}
			return
		}
		total := int64(0)
		for _, p := range parts {
			total += p.length
			if p.offset < 0 || p.length <= 0 || p.offset > size-p.length || total < 0 || total > size {
				t.Fatalf("%q of %d: part %+v, total %d", s, size, p, total)
			}
			if p.toEnd && p.offset+p.length != size {
				t.Fatalf("%q of %d: %+v is no part to the end", s, size, p)
			}
		}
		if !strings.HasPrefix(strings.ToLower(s), "bytes=") && ranges != nil {
			t.Fatalf("%q has ranges %v", s, ranges)
		}
	})
}
