package main

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/internal/ocitest"
)

var transfers = ocitest.Match{Role: ocitest.CDN, Method: http.MethodGet}

// pullerOf is a client of p that pulls from upstreamName.
func pullerOf(t *testing.T, p *program) puller {
	t.Helper()
	return puller{client: newClient(t), registry: p.registry, sample: 512}
}

// TestStreamsOfABigBlobHaveConnectionsOfTheirOwn: over HTTP/2, which this CDN
// offers, they would share one.
func TestStreamsOfABigBlobHaveConnectionsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, told := range []bool{true, false} { // the size, by a manifest
		hub := ocitest.NewHub(t, ocitest.Config{TLS: true, Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
		layer := ocitest.Blob(1, 48<<20+1)
		image := ocitest.ImageSpec{Layers: []ocitest.Content{layer}}.Build()
		hub.Push("app", "latest", image)
		p := startProgram(t, hub, append(over(hub, t.TempDir()), "ENTREPOT_UPSTREAM_0_CA_FILE="+writeFile(t, string(hub.CA())))...)
		from := pullerOf(t, p)
		if told {
			if err := from.manifest(t.Context(), "latest", image); err != nil {
				t.Fatal(err)
			}
		}
		gate := hub.Gate(transfers)
		gate.To(100_000) // of the first stream, whose answer lets the others begin
		pulled := make(chan error, 1)
		go func() { pulled <- from.blob(t.Context(), layer, 0, -1) }()
		if err := gate.AwaitHeld(t.Context(), 4); err != nil {
			t.Error(err)
		}
		gate.Open()
		if err := <-pulled; err != nil {
			t.Error(err)
		}
		conns, registry := map[int]bool{}, 0
		for _, r := range hub.Requests() {
			switch {
			case r.Role == ocitest.Registry && r.Kind == ocitest.BlobKind:
				registry++
			case r.Role == ocitest.CDN:
				conns[r.Conn] = true
				if r.Proto != "HTTP/1.1" {
					t.Errorf("%s came over %s", r, r.Proto)
				}
			}
		}
		if n := hub.Count(transfers); n != 4 || len(conns) != 4 || registry != 1 {
			t.Errorf("size told %v: %d transfers over %d connections, and %d redirects; want 4 over 4, and 1", told, n, len(conns), registry)
		}
		if sent := sentOf(hub, layer.Size); sent != layer.Size {
			t.Errorf("size told %v: %d bytes came of a blob of %d", told, sent, layer.Size)
		}
	}
}

// sentOf is what the transfers sent, once that is so much: a client may have its
// last byte before the hub has counted it.
func sentOf(hub *ocitest.Hub, want int64) int64 {
	for end := time.Now().Add(5 * time.Second); hub.Sent(transfers) < want && time.Now().Before(end); {
		runtime.Gosched()
	}
	return hub.Sent(transfers)
}

// TestAnUpstreamWithoutRangesSendsABigBlobOnce: its answer to the first stream
// is all of it, and is used as it is.
func TestAnUpstreamWithoutRangesSendsABigBlobOnce(t *testing.T) {
	t.Parallel()
	for _, told := range []bool{true, false} { // the size, by a manifest
		hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth, IgnoreRange: true}})
		layer := ocitest.Blob(1, 40<<20)
		image := ocitest.ImageSpec{Layers: []ocitest.Content{layer}}.Build()
		hub.Push("app", "latest", image)
		p := startProgram(t, hub, over(hub, t.TempDir())...)
		from := pullerOf(t, p)
		if told {
			if err := from.manifest(t.Context(), "latest", image); err != nil {
				t.Fatal(err)
			}
		}
		if err := from.blob(t.Context(), layer, 0, -1); err != nil {
			t.Error(err)
		}
		if n, sent := hub.Count(transfers), sentOf(hub, layer.Size); n != 1 || sent != layer.Size {
			t.Errorf("size told %v: %d bytes came in %d transfers of a blob of %d", told, sent, n, layer.Size)
		}
	}
}

// TestChunkedFetch: containerd asks for a layer by ranges that are open to the
// end, all at once, reads 8 MB of each, and leaves.
func TestChunkedFetch(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
		layer := ocitest.Blob(1, 96<<20)
		image := ocitest.ImageSpec{Layers: []ocitest.Content{layer}}.Build()
		s.hub.Push("library/app", "latest", image)
		from := puller{client: s.client, registry: s.url, sample: 512}
		if err := from.manifest(s.t.Context(), "latest", image); err != nil {
			s.t.Fatal(err)
		}
		gate := s.hub.Gate(transfers)
		var clients sync.WaitGroup
		for i := range int64(chunks) {
			clients.Go(func() { takeChunk(s.t, from, layer, i) })
			synctest.Wait()
		}
		if n := s.hub.Count(transfers); n != 1 {
			s.t.Errorf("%d transfers began before the first was answered", n)
		}
		gate.To(1) // the first byte is the answer that lets the others begin
		synctest.Wait()
		var ranges []string
		for _, r := range s.hub.Requests() {
			if r.Role == ocitest.CDN {
				ranges = append(ranges, r.Header.Get("Range"))
			}
		}
		slices.Sort(ranges)
		if diff := cmp.Diff([]string{
			"bytes=0-1048575", // for all that was known then, its client is alone
			"bytes=24000000-39999999", "bytes=40000000-55999999", "bytes=56000000-71999999", "bytes=72000000-87999999", "bytes=8000000-23999999",
		}, ranges); diff != "" {
			s.t.Errorf("transfers that two chunks each share, and the first: (-want +got)\n%s", diff)
		}
		gate.Open()
		clients.Wait()
		// What nobody reads any more is not fetched again for who wants it all.
		if err := from.blob(s.t.Context(), layer, 0, -1); err != nil {
			s.t.Error(err)
		}
		synctest.Wait()
		if sent := s.hub.Sent(transfers); sent != layer.Size {
			s.t.Errorf("%d bytes came of a blob of %d", sent, layer.Size)
		}
	})
}

// TestAChunkedFetchIsNoTrouble: clients that leave early are no failures, in the log
// and the metrics.
func TestAChunkedFetchIsNoTrouble(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	layer := ocitest.Blob(1, 96<<20)
	image := ocitest.ImageSpec{Layers: []ocitest.Content{layer}}.Build()
	hub.Push("app", "latest", image)
	// The last of the chunks may wait for the rest of the layer: for how long is up to
	// how busy the machine is.
	p := startProgram(t, hub, append(over(hub, t.TempDir()), "ENTREPOT_HEADER_TIMEOUT=10m")...)
	from := pullerOf(t, p)
	if err := from.manifest(t.Context(), "latest", image); err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	for i := range int64(chunks) {
		clients.Go(func() { takeChunk(t, from, layer, i) })
	}
	clients.Wait()
	if err := from.blob(t.Context(), layer, 0, -1); err != nil {
		t.Error(err)
	}
	awaitNoFills(t, from.client, p.admin)
	for _, line := range p.log.lines(t) {
		if level := line["level"]; level != "debug" && level != "info" {
			t.Errorf("a client that leaves early is no trouble: %v", line)
		}
	}
	_, scrape, _ := get(t, from.client, p.admin+"/metrics")
	for _, failure := range regexp.MustCompile(`(?m)^entrepot_(responses_cut_total\{.*|disk_trouble_total\{.*|requests_total\{.*status="[45]xx".*) [1-9]\d*$`).FindAllString(scrape, -1) {
		t.Errorf("counted as a failure: %s", failure)
	}
}

// TestRangesThatAreClosedEarly: a client that reads a little of a range that is
// open to the end costs a window or two, wherever the range begins, and is no
// reason to fetch the other layers.
func TestRangesThatAreClosedEarly(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		header string // Range
		whole  bool   // all of the image comes
	}{
		{"bytes=0-", false},
		{"bytes=1-", false},
		{"bytes=0-20971519", false},
		{"bytes=-20971520", false},
		{"bytes=2097152-", false},
		{"", true},
		{"lines=0-", true},
	} {
		t.Run(row.header, func(t *testing.T) {
			t.Parallel()
			simulated(t, ocitest.Habits{}, []string{"ENTREPOT_PREFETCH=on"}, func(s *simulation) {
				layers := []ocitest.Content{ocitest.Blob(1, 20<<20), ocitest.Blob(2, 1<<20)}
				s.hub.Push("library/app", "0", ocitest.ImageSpec{Layers: layers}.Build())
				s.mustGet(tagged(0))
				header := http.Header{}
				if row.header != "" {
					header.Set("Range", row.header)
				}
				s.leaveAfter(300_000, "/v2/library/app/blobs/"+layers[0].Digest.String(), header)
				time.Sleep(time.Minute)
				switch sent, all := s.hub.Sent(transfers), layers[0].Size+layers[1].Size; {
				case row.whole && sent != all:
					t.Errorf("%d bytes came, want all %d", sent, all)
				case !row.whole && sent > 3<<20:
					t.Errorf("%d bytes came for 300 kB", sent)
				}
			})
		})
	}
}

// leaveAfter reads n bytes of an answer and closes it.
func (s *simulation) leaveAfter(n int64, uri string, header http.Header) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+uri, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header = header
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, n); err != nil {
		s.t.Errorf("%s: %s: %v", uri, resp.Status, err)
	}
	if err := resp.Body.Close(); err != nil {
		s.t.Error(err)
	}
}

// containerd's chunks of a layer of 96 MiB.
const chunk, chunks = 8_000_000, 13

// takeChunk reads the i-th chunk of an answer that goes on to the blob's end, and
// closes it.
func takeChunk(t *testing.T, from puller, blob ocitest.Content, i int64) {
	t.Helper()
	transport := from.client.Transport.(*http.Transport).Clone() // a connection of its own
	defer transport.CloseIdleConnections()
	from.client = &http.Client{Transport: transport}
	offset, end := i*chunk, min((i+1)*chunk, blob.Size)
	resp, err := from.wants(t.Context(), "blobs/"+blob.Digest.String(), fmt.Sprintf("bytes=%d-", offset), http.StatusPartialContent)
	if err != nil {
		t.Errorf("chunk %d: %v", i, err)
		return
	}
	defer resp.Body.Close()
	resp.ContentLength, resp.Body = end-offset, readCloser{io.LimitReader(resp.Body, end-offset), resp.Body}
	if err := from.compare(resp, blob, offset, end); err != nil {
		t.Errorf("chunk %d: %v", i, err)
	}
}

type readCloser struct {
	io.Reader
	io.Closer
}

// TestATransferOutlivesCutsAndCredentials: five cuts, and after each of them the
// signed URL is used up and the token is not good any more.
func TestATransferOutlivesCutsAndCredentials(t *testing.T) {
	t.Parallel()
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{URLUses: 1, TokenUses: 1}})
	layer := ocitest.Blob(1, 20<<20)
	image := ocitest.ImageSpec{Layers: []ocitest.Content{layer}}.Build()
	hub.Push("app", "latest", image)
	p := startProgram(t, hub, over(hub, t.TempDir())...)
	from := pullerOf(t, p)
	if err := from.manifest(t.Context(), "latest", image); err != nil {
		t.Fatal(err)
	}
	hub.Inject(&ocitest.Fault{Match: transfers, Effect: ocitest.Cut(3 << 20), Times: 5})
	hub.Reset()
	if err := from.blob(t.Context(), layer, 0, -1); err != nil {
		t.Error(err)
	}
	began, refused := 0, 0
	for _, r := range hub.Requests() {
		switch {
		case r.Role == ocitest.CDN && r.Status == http.StatusForbidden:
			refused++
		case r.Role == ocitest.CDN:
			began++
		}
	}
	if began != 6 || refused != 5 {
		t.Errorf("%d transfers and %d refused URLs, want one and five to go on, each after a refusal", began, refused)
	}
	if tokens := hub.Count(ocitest.Match{Role: ocitest.Token}); tokens < 5 {
		t.Errorf("%d tokens, want one after each cut", tokens)
	}
	if sent := hub.Sent(transfers); sent > layer.Size*105/100 {
		t.Errorf("%d bytes came of a blob of %d, want at most 5 %% more", sent, layer.Size)
	}
}
