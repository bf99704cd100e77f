package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/upstream"
)

// TestFaultsPastTheDisk: a blob that cannot be kept arrives through the same
// trouble as one that can.
func TestFaultsPastTheDisk(t *testing.T) {
	const size, budget = 6_000_000, 4 << 20
	brief := upstream.Timeouts{FirstByte: time.Second, Stall: time.Second}
	for _, row := range []struct {
		name   string
		fault  *ocitest.Fault
		habits ocitest.Habits
		waits  upstream.Timeouts
		moves  int64 // bytes from upstream at most; 0: any number
		fails  bool
	}{
		{name: "cut once", fault: &ocitest.Fault{Effect: ocitest.Cut(3_000_000), Times: 1}, moves: size * 105 / 100},
		{name: "cut five times", fault: &ocitest.Fault{Effect: ocitest.Cut(1_000_000), Times: 5}, moves: size * 105 / 100},
		{name: "cut, no ranges", fault: &ocitest.Fault{Effect: ocitest.Cut(3_000_000), Times: 1}, habits: ocitest.Habits{IgnoreRange: true}},
		{name: "cut, chunked", fault: &ocitest.Fault{Effect: ocitest.Cut(3_000_000), Times: 1}, habits: ocitest.Habits{Chunked: true}},
		{name: "stalled once", fault: &ocitest.Fault{Effect: ocitest.Stall(700_000), Times: 1}, waits: brief, moves: size * 105 / 100},
		{name: "503 once", fault: &ocitest.Fault{Effect: ocitest.Answer(503), Times: 1}},
		{name: "reset twice", fault: &ocitest.Fault{Effect: ocitest.Reset(), Times: 2}},
		{name: "signed URL refused once", fault: &ocitest.Fault{Effect: ocitest.Answer(403), Times: 1}},
		{name: "corrupt", fault: &ocitest.Fault{Effect: ocitest.Corrupt(4_000_000)}, fails: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub := ocitest.NewHub(t, ocitest.Config{Habits: row.habits})
			image := ocitest.RandomImage(4, size)
			hub.Push("library/alpine", "latest", image)
			s := newStack(t, hub, stackConfig{budget: budget, upstream: upstream.Config{Timeouts: row.waits}})
			s.mustPull("alpine", "latest", image) // from now on it is known to be too large
			hub.Reset()
			layer := ocitest.Match{Role: ocitest.CDN, Kind: ocitest.BlobKind, Reference: image.Blobs[1].Digest.String()}
			row.fault.Match = layer
			hub.Inject(row.fault)
			resp, _, err := s.get(http.MethodGet, "/v2/alpine/blobs/"+image.Blobs[1].Digest.String())
			if err == nil && resp.StatusCode != http.StatusOK || (err != nil) != row.fails {
				t.Fatalf("pull: %v %v, want failure %v", resp, err, row.fails)
			}
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("a client saw %v, want a cut connection", err)
			}
			if err == nil && !row.habits.Chunked && resp.Header.Get("X-Entrepot-Cache") != string(oci.Bypass) { // chunks do not tell beforehand that they will not fit
				t.Errorf("served as %q, want bypass", resp.Header.Get("X-Entrepot-Cache"))
			}
			if sent := hub.Sent(layer); row.moves > 0 && sent > row.moves {
				t.Errorf("upstream sent %d bytes of a blob of %d, want %d at most", sent, size, row.moves)
			}
			hub.ClearFaults()
			s.mustPull("alpine", "latest", image)
		})
	}
}

// TestManyPastTheDisk: more want what cannot be kept than there may be transfers
// of it, and all get it.
func TestManyPastTheDisk(t *testing.T) {
	const clients = 12
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(4, 6_000_000)
	hub.Push("library/alpine", "latest", image)
	s := newStack(t, hub, stackConfig{budget: 4 << 20, cache: cache.Config{MaxBypass: 1}})
	s.mustPull("alpine", "latest", image)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			resp, body, err := s.get(http.MethodGet, "/v2/alpine/blobs/"+image.Blobs[1].Digest.String())
			if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(body, image.Blobs[1].Bytes()) {
				t.Errorf("%v, %d bytes, %v", resp, len(body), err)
			}
		})
	}
	all.Wait()
}
