package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

func pushBlob(t *testing.T, habits ocitest.Habits, size int64) (*ocitest.Hub, ocitest.Content) {
	t.Helper()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: habits})
	blob := ocitest.Blob(1, size)
	hub.PushBlob("library/alpine", blob)
	return hub, blob
}

func TestBlobRanges(t *testing.T) {
	const size = 10_000
	habits := map[string]ocitest.Habits{
		"Docker Hub":              {},
		"no redirect":             {Auth: ocitest.NoAuth, InlineBlobs: true},
		"chunked":                 {Auth: ocitest.NoAuth, InlineBlobs: true, Chunked: true},
		"no Range":                {Auth: ocitest.NoAuth, InlineBlobs: true, IgnoreRange: true},
		"no Range, chunked":       {Auth: ocitest.NoAuth, InlineBlobs: true, IgnoreRange: true, Chunked: true},
		"basic, no digest header": {Auth: ocitest.NoAuth, InlineBlobs: true, OmitDigest: true},
		"gzip for who accepts it": {Auth: ocitest.NoAuth, InlineBlobs: true, Compress: true},
	}
	ranges := []struct{ offset, length, from, to int64 }{
		{0, -1, 0, size},
		{0, size, 0, size},
		{0, 1, 0, 1},
		{5, -1, 5, size},
		{5, 100, 5, 105},
		{size - 1, -1, size - 1, size},
		{size - 10, 100, size - 10, size},
		{5, 1 << 62, 5, size},
		{3, 0, 3, 3},
	}
	for name, h := range habits {
		t.Run(name, func(t *testing.T) {
			hub, blob := pushBlob(t, h, size)
			c := connect(t, hub)
			for _, r := range ranges {
				got, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), r.offset, r.length)
				if err != nil || !bytes.Equal(got, blob.Bytes()[r.from:r.to]) {
					t.Errorf("Open(%d, %d) gave %d bytes, %v; want %d", r.offset, r.length, len(got), err, r.to-r.from)
				}
			}
			_, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), size+5, -1)
			if h.IgnoreRange && h.Chunked {
				if !errors.Is(err, io.EOF) { // found out only by reading
					t.Errorf("Open behind the end: %v", err)
				}
			} else {
				wantCode(t, err, oci.RangeInvalid)
			}
			_, err = openBlob(t, c, alpine, blob.Digest).Open(t.Context(), -1, 5)
			wantCode(t, err, oci.RangeInvalid)
			_, err = openBlob(t, c, alpine, oci.Sum([]byte("missing"))).Open(t.Context(), 0, -1)
			wantCode(t, err, oci.BlobUnknown)
		})
	}
}

func TestReaderSaysWhatItReads(t *testing.T) {
	tests := []struct {
		name           string
		habits         ocitest.Habits
		offset, length int64
		at, size       int64
		whole          bool
	}{
		{"whole", ocitest.Habits{}, 0, -1, 0, 1000, false},
		{"range", ocitest.Habits{}, 10, 5, 10, 1000, false},
		{"range at the start", ocitest.Habits{}, 0, 5, 0, 1000, false},
		{"range of all", ocitest.Habits{}, 0, 5000, 0, 1000, false},
		{"whole, chunked", ocitest.Habits{Chunked: true}, 0, -1, 0, -1, false},
		{"range, chunked", ocitest.Habits{Chunked: true}, 10, 5, 10, 1000, false},
		{"no Range", ocitest.Habits{IgnoreRange: true}, 10, 5, 0, 1000, true},
		{"no Range, at the start", ocitest.Habits{IgnoreRange: true}, 0, 5, 0, 1000, true},
		{"no Range, chunked", ocitest.Habits{IgnoreRange: true, Chunked: true}, 10, -1, 0, -1, true},
		{"no Range, and none asked for", ocitest.Habits{IgnoreRange: true}, 0, -1, 0, 1000, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.habits.InlineBlobs = true
			hub, blob := pushBlob(t, tt.habits, 1000)
			b := openBlob(t, connect(t, hub), alpine, blob.Digest)
			r, err := b.Open(t.Context(), tt.offset, tt.length)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if r.Offset() != tt.at || r.Size() != tt.size || b.Descriptor().Size != tt.size || r.Outcome().Spent != 3 || r.Outcome().Cache != oci.Miss || r.Outcome().Whole != tt.whole {
				t.Errorf("offset %d, size %d, %+v, outcome %+v; want offset %d, size %d, whole %v, 3 spent", r.Offset(), r.Size(), b.Descriptor(), r.Outcome(), tt.at, tt.size, tt.whole)
			}
			want := blob.Bytes()[tt.at:]
			if !tt.whole && tt.length >= 0 {
				want = want[:min(int(tt.length), len(want))]
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("it gave %d bytes, %v, want %d", len(got), err, len(want))
			}
		})
	}
}

func TestStat(t *testing.T) {
	headBlob, getBlob := "registry HEAD blob library/alpine", "registry GET blob library/alpine"
	tests := []struct {
		name   string
		habits ocitest.Habits
		fault  *ocitest.Fault
		size   int64
		saw    []string
	}{
		{name: "no redirect", habits: ocitest.Habits{InlineBlobs: true}, size: 1000, saw: []string{headBlob}},
		{name: "redirect", size: 1000, saw: []string{headBlob, "cdn HEAD blob library/alpine"}},
		{name: "HEAD 405", habits: ocitest.Habits{RefuseHead: 405}, size: 1000, saw: []string{headBlob, getBlob, "cdn GET blob library/alpine"}},
		{name: "HEAD 501", habits: ocitest.Habits{RefuseHead: 501, InlineBlobs: true}, size: 1000, saw: []string{headBlob, getBlob}},
		{name: "no length on HEAD", habits: ocitest.Habits{Chunked: true, InlineBlobs: true}, size: 1000, saw: []string{headBlob, getBlob}},
		{name: "no length anywhere", habits: ocitest.Habits{Chunked: true, IgnoreRange: true, InlineBlobs: true}, size: -1, saw: []string{headBlob, getBlob}},
		{
			name: "a URL for GET alone", size: 1000, fault: &ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN, Method: "HEAD"}, Effect: ocitest.Answer(403)},
			saw: []string{headBlob, "cdn HEAD blob library/alpine", getBlob, "cdn GET blob library/alpine"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.habits.Auth = ocitest.NoAuth
			hub, blob := pushBlob(t, tt.habits, 1000)
			if tt.fault != nil {
				hub.Inject(tt.fault)
			}
			b := openBlob(t, connect(t, hub), alpine, blob.Digest)
			d, out, err := b.Stat(t.Context())
			if err != nil || d.Size != tt.size || d.Digest != blob.Digest || out.Spent != len(tt.saw) {
				t.Errorf("got %+v, %+v, %v; want size %d for %d requests", d, out, err, tt.size, len(tt.saw))
			}
			for i := range tt.saw {
				tt.saw[i] = digestLine(tt.saw[i], blob.Digest)
			}
			saw(t, hub, tt.saw...)
		})
	}
}

func TestStatOfAnEmptyBlob(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	empty := ocitest.Bytes("", nil)
	hub.PushBlob("library/alpine", empty)
	b := openBlob(t, connect(t, hub), alpine, empty.Digest)
	if d, _, err := b.Stat(t.Context()); err != nil || d.Size != 0 {
		t.Errorf("got %+v, %v, want size 0", d, err)
	}
	if got, err := read(t.Context(), b, 0, -1); err != nil || len(got) != 0 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if got, err := read(t.Context(), b, 0, 0); err != nil || len(got) != 0 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	_, err := b.Open(t.Context(), 1, 0)
	wantCode(t, err, oci.RangeInvalid)
}

// The streams of one fill cost the registry one request, whenever they start.
func TestStreamsShareARedirectTarget(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 10_000)
	b := openBlob(t, connect(t, hub), alpine, blob.Digest)
	check := func() {
		t.Helper()
		var wg sync.WaitGroup
		for i := range int64(10) {
			wg.Go(func() {
				got, err := read(t.Context(), b, i*1000, 1000)
				if err != nil || !bytes.Equal(got, blob.Bytes()[i*1000:(i+1)*1000]) {
					t.Errorf("piece %d: %d bytes, %v", i, len(got), err)
				}
			})
		}
		wg.Wait()
	}
	counts := func(registry, cdn int) {
		t.Helper()
		if r, c := hub.Count(ocitest.Match{Role: ocitest.Registry}), hub.Count(ocitest.Match{Role: ocitest.CDN}); r != registry || c != cdn {
			t.Errorf("%d requests to the registry and %d to the CDN, want %d and %d", r, c, registry, cdn)
		}
		hub.Reset()
	}
	check()
	counts(1, 10)
	check()
	counts(0, 10)
	// All URLs expire: however many find out, one resolves it anew.
	hub.ExpireURLs()
	check()
	requests := hub.Requests()
	if r := hub.Count(ocitest.Match{Role: ocitest.Registry}); r != 1 {
		t.Errorf("%d requests to the registry after the URL expired, want 1 (%d in all)", r, len(requests))
	}
}

func TestAnExpiredTargetIsResolvedOnce(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 405, 410} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 1000)
			b := openBlob(t, connect(t, hub), alpine, blob.Digest)
			if _, err := read(t.Context(), b, 0, 10); err != nil {
				t.Fatal(err)
			}
			registry, cdn := digestLine("registry GET blob library/alpine", blob.Digest), digestLine("cdn GET blob library/alpine", blob.Digest)
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Answer(status), Times: 1})
			hub.Reset()
			if _, err := read(t.Context(), b, 10, 10); err != nil {
				t.Errorf("after the target refused: %v", err)
			}
			saw(t, hub, cdn, registry, cdn)

			// Refused for good: one fresh resolution, then the truth, which is none
			// about the blob: the registry has just said that it is there.
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Answer(status)})
			_, err := read(t.Context(), b, 10, 10)
			wantCode(t, err, oci.BadUpstream)
			saw(t, hub, cdn, registry, cdn)
			_, _, err = openBlob(t, connect(t, hub), alpine, blob.Digest).Stat(t.Context())
			wantCode(t, err, oci.BadUpstream)
		})
	}
}

// A registry that is but a signpost to another says of no blob that it is there: the
// other one does, or does not, in the words of a registry.
func TestWhereASignpostLeadsABlobMayBeUnknown(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		code   oci.Code
	}{
		"no such blob":       {status(404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`), oci.BlobUnknown},
		"no such repository": {status(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`), oci.NameUnknown},
		"no such manifest":   {status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`), oci.BadUpstream},
		"no such key":        {status(404, `<Error><Code>NoSuchKey</Code></Error>`), oci.BadUpstream},
		"no word":            {status(404, ""), oci.BadUpstream},
		"403":                {status(403, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`), oci.BadUpstream},
	} {
		t.Run(name, func(t *testing.T) {
			other := listen(t, tt.answer)
			c := connectAt(t, listen(t, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, other+r.URL.Path, http.StatusTemporaryRedirect)
			}), time.Now)
			b := openBlob(t, c, alpine, oci.Sum(nil))
			_, err := b.Open(t.Context(), 0, -1)
			wantCode(t, err, tt.code)
			_, _, err = b.Stat(t.Context())
			wantCode(t, err, tt.code)
		})
	}
}

func TestATargetThatFailsIsForgotten(t *testing.T) {
	for name, effect := range map[string]ocitest.Effect{"500": ocitest.Answer(500), "reset": ocitest.Reset()} {
		t.Run(name, func(t *testing.T) {
			hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 1000)
			b := openBlob(t, connect(t, hub), alpine, blob.Digest)
			if _, err := read(t.Context(), b, 0, 10); err != nil {
				t.Fatal(err)
			}
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: effect, Times: 2}) // net/http may repeat a reset once
			_, err := read(t.Context(), b, 10, 10)
			wantCode(t, err, oci.Unavailable)
			hub.ClearFaults()
			hub.Reset()
			if _, err := read(t.Context(), b, 10, 10); err != nil {
				t.Fatal(err)
			}
			if n := hub.Count(ocitest.Match{Role: ocitest.Registry}); n != 1 {
				t.Errorf("%d requests to the registry, want 1", n)
			}
		})
	}
}

// One who resolves and leaves lets the next one try.
func TestALeavingResolverIsReplaced(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 1000)
	b := openBlob(t, connect(t, hub), alpine, blob.Digest)
	hang := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Hang(), Times: 1})
	ctx, leave := context.WithCancel(t.Context())
	first, second, third := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { _, err := read(ctx, b, 0, 10); first <- err }()
	if err := hub.Await(t.Context(), ocitest.Match{Role: ocitest.Registry}, 1); err != nil {
		t.Fatal(err)
	}
	impatient, stop := context.WithCancel(t.Context())
	go func() { _, err := read(t.Context(), b, 10, 10); second <- err }()
	go func() { _, err := read(impatient, b, 20, 10); third <- err }()
	stop()
	if err := <-third; !errors.Is(err, context.Canceled) {
		t.Errorf("one who left while waiting got %v", err)
	}
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the leaving one got %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the next one got %v", err)
	}
	hang.Release()
}

// A failure of the registry is the answer of all who wait for it.
func TestWaitingStreamsShareAFailure(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 1000)
	b := openBlob(t, connect(t, hub), alpine, blob.Digest)
	hang := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Hang(), Times: 1})
	hub.DeleteDigest("library/alpine", blob.Digest)
	failures := make(chan error, 5)
	open := func(ctx context.Context) { _, err := b.Open(ctx, 0, -1); failures <- err }
	go open(t.Context())
	if err := hub.Await(t.Context(), ocitest.Match{}, 1); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		go open(t.Context())
	}
	hang.Release()
	for range 5 {
		wantCode(t, <-failures, oci.BlobUnknown)
	}
}

func TestBadBodies(t *testing.T) {
	tests := []struct {
		name   string
		effect ocitest.Effect
		habits ocitest.Habits
	}{
		{"cut", ocitest.Cut(700), ocitest.Habits{}},
		{"cut, chunked", ocitest.Cut(700), ocitest.Habits{Chunked: true}},
		{"cut, range", ocitest.Cut(600), ocitest.Habits{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.habits.Auth, tt.habits.InlineBlobs = ocitest.NoAuth, true
			hub, blob := pushBlob(t, tt.habits, 1000)
			hub.Inject(&ocitest.Fault{Effect: tt.effect})
			offset := int64(0)
			if strings.Contains(tt.name, "range") {
				offset = 10
			}
			r, err := openBlob(t, connect(t, hub), alpine, blob.Digest).Open(t.Context(), offset, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != io.ErrUnexpectedEOF {
				t.Errorf("%d bytes, then %v, want io.ErrUnexpectedEOF", len(got), err)
			}
			if !bytes.HasPrefix(blob.Bytes()[offset:], got) {
				t.Error("what came before the cut is not the blob's")
			}
		})
	}
}

// A blob that comes encoded is refused, and not decoded: its bytes are not what
// the digest names, and may unpack to very many.
func TestEncodedBlobsAreRefused(t *testing.T) {
	content := bytes.Repeat([]byte("a"), 1000)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for encoding, want := range map[string]oci.Code{"gzip": oci.BadUpstream, "GZIP": oci.BadUpstream, "br": oci.BadUpstream, "identity": -1, "": -1} {
		c := connectAt(t, listen(t, func(w http.ResponseWriter, _ *http.Request) {
			body := content
			if encoding != "" {
				w.Header().Set("Content-Encoding", encoding)
			}
			if want == oci.BadUpstream {
				body = packed.Bytes()
			}
			_, _ = w.Write(body)
		}), time.Now)
		got, err := read(t.Context(), openBlob(t, c, alpine, oci.Sum(content)), 0, -1)
		switch {
		case want < 0 && (err != nil || !bytes.Equal(got, content)):
			t.Errorf("%q: %d bytes, %v", encoding, len(got), err)
		case want >= 0 && (oci.CodeOf(err) != want || len(got) > 0):
			t.Errorf("%q: %d bytes, %v, want %v", encoding, len(got), err, want)
		}
	}
}

// Answers to a range that are not what was asked for. The request is for bytes
// 10 to 19 of 100.
func TestBadRangeAnswers(t *testing.T) {
	partial := func(contentRange string, n int, chunked bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(206)
			if chunked {
				w.(http.Flusher).Flush()
			}
			_, _ = w.Write(make([]byte, n))
		}
	}
	tests := []struct {
		name   string
		answer http.HandlerFunc
		open   oci.Code // of Open
		n      int      // bytes, when it opens
		end    error    // of the body
		code   oci.Code // of that, unless it is plain
	}{
		{name: "right", answer: partial("bytes 10-19/100", 10, false), n: 10},
		{name: "right, chunked", answer: partial("bytes 10-19/100", 10, true), n: 10},
		{name: "total unknown", answer: partial("bytes 10-19/*", 10, false), n: 10},
		{name: "another start", answer: partial("bytes 9-18/100", 10, false), open: oci.BadUpstream},
		{name: "the whole as a part", answer: partial("bytes 0-99/100", 100, false), open: oci.BadUpstream},
		{name: "too much", answer: partial("bytes 10-99/100", 90, false), open: oci.BadUpstream},
		{name: "length contradicts", answer: partial("bytes 10-19/100", 9, false), open: oci.BadUpstream},
		{name: "beyond the total", answer: partial("bytes 10-19/15", 10, false), open: oci.BadUpstream},
		{name: "no Content-Range", answer: partial("", 10, false), open: oci.BadUpstream},
		{name: "unsatisfied in a 206", answer: partial("bytes */100", 10, false), open: oci.BadUpstream},
		{name: "another total than before", answer: partial("bytes 10-19/200", 10, false), open: oci.BadUpstream},
		{name: "short body, chunked", answer: partial("bytes 10-19/100", 7, true), n: 7, end: io.ErrUnexpectedEOF},
		{name: "long body, chunked", answer: partial("bytes 10-19/100", 12, true), n: 10, code: oci.BadUpstream},
		{name: "less than asked", answer: partial("bytes 10-14/100", 5, false), n: 5, end: io.ErrUnexpectedEOF},
		{name: "416", answer: status(416, ""), open: oci.RangeInvalid},
		{name: "204", answer: status(204, ""), open: oci.BadUpstream},
		{name: "404", answer: status(404, ""), open: oci.BlobUnknown},
		{name: "another digest", answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", oci.Sum([]byte("x")).String())
			partial("bytes 10-19/100", 10, false)(w, r)
		}, open: oci.BadUpstream},
		{name: "digest of another algorithm", answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha512:"+strings.Repeat("0", 128))
			partial("bytes 10-19/100", 10, false)(w, r)
		}, n: 10},
		{name: "200 with another digest", answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", oci.Sum([]byte("x")).String())
			_, _ = w.Write(make([]byte, 100))
		}, open: oci.BadUpstream},
		{name: "a body that never begins", answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 10-19/100")
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(206)
		}, open: oci.BadUpstream},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := connectAt(t, listen(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					w.Header().Set("Content-Length", "100")
					return
				}
				if got := r.Header.Get("Range"); got != "bytes=10-19" {
					t.Errorf("asked for %q", got)
				}
				tt.answer(w, r)
			}), time.Now)
			b := openBlob(t, c, alpine, oci.Sum(make([]byte, 100)))
			if _, _, err := b.Stat(t.Context()); err != nil {
				t.Fatal(err)
			}
			r, err := b.Open(t.Context(), 10, 10)
			if tt.open != 0 {
				wantCode(t, err, tt.open)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if len(got) != tt.n {
				t.Errorf("%d bytes, want %d", len(got), tt.n)
			}
			switch {
			case tt.code != 0:
				wantCode(t, err, tt.code)
			case err != tt.end:
				t.Errorf("ended in %v, want %v", err, tt.end)
			}
		})
	}
}

func TestA206ToTheWholeIsRefused(t *testing.T) {
	c := connectAt(t, listen(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", "bytes 0-9/10")
		w.WriteHeader(206)
		_, _ = w.Write(make([]byte, 10))
	}), time.Now)
	_, err := openBlob(t, c, alpine, oci.Sum(nil)).Open(t.Context(), 0, -1)
	wantCode(t, err, oci.BadUpstream)
}

func TestRedirects(t *testing.T) {
	leadTo := func(location string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(307)
		}
	}
	n := 0
	tests := []struct {
		name   string
		answer http.HandlerFunc
		code   oci.Code
	}{
		{"relative", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("x") == "" {
				leadTo("?x=1")(w, r)
				return
			}
			_, _ = w.Write([]byte("content"))
		}, 0},
		{"every kind of redirect", func(w http.ResponseWriter, r *http.Request) {
			if n++; n > 5 {
				_, _ = w.Write([]byte("content"))
				return
			}
			w.Header().Set("Location", fmt.Sprintf("/%d", n))
			w.WriteHeader([]int{301, 302, 303, 307, 308}[n-1])
		}, 0},
		{"in circles", leadTo("/"), oci.BadUpstream},
		{"no host", leadTo("http://"), oci.BadUpstream},
		{"file", leadTo("file:///etc/passwd"), oci.BadUpstream},
		{"password", leadTo("http://a:b@localhost/"), oci.BadUpstream},
		{"malformed", leadTo("http://localhost:x/?sig=secret"), oci.BadUpstream},
		{"endless", leadTo("http://localhost/" + strings.Repeat("a", 20<<10)), oci.BadUpstream},
		{"link-local", leadTo("http://169.254.169.254/latest/meta-data/?sig=secret"), oci.BadUpstream},
		{"private", leadTo("http://10.0.0.1/?sig=secret"), oci.BadUpstream},
		{"unspecified", leadTo("http://[::]/?sig=secret"), oci.BadUpstream},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var rec recorder
			c := connectAt(t, listen(t, tt.answer), time.Now, rec.attach)
			_, err := read(t.Context(), openBlob(t, c, alpine, oci.Sum(nil)), 0, -1)
			if tt.code == 0 && err != nil {
				t.Error(err)
			} else if tt.code != 0 {
				wantCode(t, err, tt.code)
				for e := err; e != nil; e = errors.Unwrap(e) {
					if strings.Contains(fmt.Sprintf("%v %+v", e, e), "secret") {
						t.Errorf("the error shows a signature: %v", e)
					}
				}
			}
			for _, call := range rec.calls {
				if strings.Contains(fmt.Sprintf("%+v", call), "secret") {
					t.Errorf("the call shows a signature: %+v", call)
				}
			}
		})
	}
}

// The password and the token stay at the registry; the CDN refuses whoever
// brings any, and its own challenge is answered with its own realm, by nobody.
func TestAuthorizationStaysWithItsOrigin(t *testing.T) {
	ck := newClock()
	other := ocitest.NewHub(t, ocitest.Config{}) // another registry with tokens of its own
	other.AddUser("me", "secret")
	blob := ocitest.Blob(1, 1000)
	other.PushBlob("moved/alpine", blob)
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.AddUser("me", "secret")
	hub.Push("library/alpine", "latest", ocitest.RandomImage(2, 10))
	front := listen(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+hub.TokenURL()+`/token",service="s",scope="repository:library/alpine:pull"`)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Location", other.URL()+"/v2/moved/alpine/blobs/"+blob.Digest.String())
		w.WriteHeader(307)
	})
	c := connectAt(t, front, ck.now, func(cfg *Config) { cfg.Credentials = Password("me", "secret") })
	for range 2 {
		got, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1)
		if err != nil || !bytes.Equal(got, blob.Bytes()) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if r := hub.Requests()[0]; r.Role != ocitest.Token || r.Account != "me" {
		t.Errorf("the registry's token service saw %v of %q, want me", r, r.Account)
	}
	get, cdn := digestLine("registry GET blob moved/alpine", blob.Digest), digestLine("cdn GET blob moved/alpine", blob.Digest)
	for _, r := range other.Requests() {
		if r.Account != "" || strings.HasPrefix(r.Header.Get("Authorization"), "Basic") {
			t.Errorf("the redirect's target was told who we are: %v", r)
		}
		if r.Role == ocitest.CDN && r.Header.Get("Authorization") != "" {
			t.Errorf("a token went to the CDN")
		}
	}
	// The second time its token is there already.
	saw(t, other, get, "token GET token moved/alpine", get, cdn, get, cdn)
}

func TestContextEndsATransfer(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 1000)
	gate := hub.Gate(ocitest.Match{Role: ocitest.CDN})
	gate.To(500)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := openBlob(t, connect(t, hub), alpine, blob.Digest).Open(ctx, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 500)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	deadline, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
	_, err = openBlob(t, connect(t, hub), alpine, blob.Digest).Open(deadline, 0, -1)
	wantCode(t, err, oci.Timeout)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v does not tell of the deadline", err)
	}
}

// A place is given back however an answer ends: with one place for each kind
// nothing gets stuck.
func TestPlacesAreGivenBack(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{}, 1000)
	hub.Push("library/alpine", "latest", ocitest.RandomImage(2, 10))
	c := connect(t, hub, func(cfg *Config) {
		cfg.Limits.Requests, cfg.Limits.Transfers, cfg.Limits.Wait = 1, 1, time.Nanosecond
	})
	for range 3 {
		for _, effect := range []ocitest.Effect{ocitest.Answer(500), ocitest.Answer(404), ocitest.Cut(10), ocitest.Reset()} {
			hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: effect, Times: 2})
			_, _ = read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1)
			hub.ClearFaults()
		}
		mustResolve(t, c)
		r, err := openBlob(t, c, alpine, blob.Digest).Open(t.Context(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		_, err = openBlob(t, c, alpine, blob.Digest).Open(t.Context(), 0, -1)
		wantCode(t, err, oci.TooManyRequests)
		r.Close() // unread
		if _, err := read(t.Context(), openBlob(t, c, alpine, blob.Digest), 0, -1); err != nil {
			t.Fatal(err)
		}
	}
}

// A registry that has the content itself is asked by each stream.
func TestStreamsOfARegistryWithoutRedirects(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth, InlineBlobs: true}, 10_000)
	b := openBlob(t, connect(t, hub), alpine, blob.Digest)
	if _, err := read(t.Context(), b, 0, 10); err != nil {
		t.Fatal(err)
	}
	// Two at once: neither waits for the other's end.
	one, err := b.Open(t.Context(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := b.Open(t.Context(), 5000, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if n := hub.Count(ocitest.Match{}); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// A CDN that asks for time is not a URL that has ended.
func TestATargetsRateLimitIsNoExpiry(t *testing.T) {
	hub, blob := pushBlob(t, ocitest.Habits{Auth: ocitest.NoAuth}, 1000)
	c := connect(t, hub)
	b := openBlob(t, c, alpine, blob.Digest)
	if _, err := read(t.Context(), b, 0, 10); err != nil {
		t.Fatal(err)
	}
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.RetryLater(429, "60"), Times: 1})
	hub.Reset()
	for range 2 { // the second is refused without asking
		_, err := read(t.Context(), b, 10, 10)
		wantCode(t, err, oci.TooManyRequests)
		if after := oci.RetryAfter(err); after <= 55*time.Second || after > time.Minute {
			t.Errorf("retry after %v, want about a minute", after)
		}
	}
	saw(t, hub, digestLine("cdn GET blob library/alpine", blob.Digest))
	// The registry itself may still be asked.
	_, _, err := c.Resolve(t.Context(), alpine, "missing", oci.Ask{})
	wantCode(t, err, oci.ManifestUnknown)
}

func TestStatSaysWhyNot(t *testing.T) {
	tests := []struct {
		name   string
		answer http.HandlerFunc
		code   oci.Code
	}{
		{"404", status(404, ""), oci.BlobUnknown},
		{"404 with another word", status(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`), oci.BlobUnknown},
		{"404 of the name", status(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`), oci.NameUnknown},
		{"403", status(403, ""), oci.Denied},
		{"500", status(500, ""), oci.Unavailable},
		{"another digest", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", oci.Sum([]byte("x")).String())
		}, oci.BadUpstream},
		{"HEAD refused, GET fails", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(map[string]int{"HEAD": 405, "GET": 500}[r.Method])
		}, oci.Unavailable},
		{"silence", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, oci.Unavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.name, "with") || strings.Contains(tt.name, "of the") {
				// A HEAD's answer has no body to say more; a GET's has.
				tt.answer = refuseHead(tt.answer)
			}
			c := connectAt(t, listen(t, tt.answer), time.Now)
			_, _, err := openBlob(t, c, alpine, oci.Sum(nil)).Stat(t.Context())
			wantCode(t, err, tt.code)
			_, err = openBlob(t, c, alpine, oci.Sum(nil)).Open(t.Context(), 0, 0)
			wantCode(t, err, tt.code)
		})
	}
}

func refuseHead(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.WriteHeader(405)
			return
		}
		h(w, r)
	}
}
