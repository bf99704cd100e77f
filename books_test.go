package main

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"entrepot/internal/ocitest"
)

// buyers are the clients of one row of TestSavedIsWhatDidNotComeFromUpstream.
type buyers struct {
	t        *testing.T
	hub      *ocitest.Hub
	p        *program
	image    ocitest.Image // library/app:1, a config and three layers
	requests int64         // that were answered
}

// pull is one by a client that takes one blob after the other.
func (b *buyers) pull(client *http.Client) {
	b.t.Helper()
	b.p.pull(b.t, client, "library/app", "1", b.image)
	b.requests += int64(1 + len(b.image.Blobs))
	awaitNoFills(b.t, client, b.p.admin)
}

// begin asks for a layer, and reads the first of it.
func (b *buyers) begin(client *http.Client, layer int, rang string) *http.Response {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.p.registry+"/v2/library/app/blobs/"+b.image.Blobs[layer].Digest.String(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if rang != "" {
		req.Header.Set("Range", rang)
	}
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	b.requests++
	if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil || resp.StatusCode >= 300 {
		b.t.Fatalf("%s: %v", resp.Status, err)
	}
	return resp
}

func (b *buyers) finish(resp *http.Response) {
	b.t.Helper()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		b.t.Error(err)
	}
	resp.Body.Close()
}

// What is saved is what was served less what was fetched for clients, whoever had
// it fetched, and when.
func TestSavedIsWhatDidNotComeFromUpstream(t *testing.T) {
	const layer, unsure = 6_000_000, -1
	const dropped = 1000 // at most: the first of an answer that there turns out to be no room for
	for _, row := range []struct {
		name    string
		setting string
		do      func(b *buyers, one, two *http.Client)
		held    int64
		warmed  bool // bytes were fetched for nobody
	}{
		{name: "the first pull ever", do: func(b *buyers, one, _ *http.Client) { b.pull(one) }},
		{name: "and the second", held: 5, do: func(b *buyers, one, two *http.Client) {
			b.pull(one)
			b.pull(two)
		}},
		{name: "fetched ahead for one, taken by another first", held: 1, do: func(b *buyers, one, two *http.Client) {
			status, _, _ := get(b.t, one, b.p.registry+"/v2/library/app/manifests/1")
			if b.requests++; status != http.StatusOK {
				b.t.Fatal(status)
			}
			b.finish(b.begin(one, 1, ""))
			awaitNoFills(b.t, one, b.p.admin)
			b.finish(b.begin(two, 2, ""))
			b.finish(b.begin(two, 3, ""))
			b.finish(b.begin(one, 2, ""))
		}},
		{name: "in pieces", do: func(b *buyers, one, _ *http.Client) {
			for at := 0; at < layer; at += 1_000_000 {
				b.finish(b.begin(one, 1, fmt.Sprintf("bytes=%d-%d", at, at+999_999)))
			}
			awaitNoFills(b.t, one, b.p.admin)
		}},
		{name: "in pieces at once", do: func(b *buyers, one, _ *http.Client) {
			var pieces []*http.Response
			for at := 0; at < layer; at += 1_000_000 {
				pieces = append(pieces, b.begin(one, 1, fmt.Sprintf("bytes=%d-%d", at, at+999_999)))
			}
			for _, piece := range pieces {
				b.finish(piece)
			}
			awaitNoFills(b.t, one, b.p.admin)
		}},
		{name: "one leaves and comes again", do: func(b *buyers, one, _ *http.Client) {
			gate := b.hub.Gate(ocitest.Match{Kind: ocitest.BlobKind})
			gate.To(layer / 2)
			left := b.begin(one, 1, "")
			left.Body.Close()
			operatorOf(b.t, b.p).statusAfter(b.requests)
			gate.Open()
			b.finish(b.begin(one, 1, ""))
			awaitNoFills(b.t, one, b.p.admin)
		}},
		{name: "two read along", held: 1, do: func(b *buyers, one, two *http.Client) {
			gate := b.hub.Gate(ocitest.Match{Kind: ocitest.BlobKind})
			gate.To(layer / 2)
			first, second := b.begin(one, 1, ""), b.begin(two, 1, "")
			gate.Open()
			b.finish(second)
			b.finish(first)
			awaitNoFills(b.t, one, b.p.admin)
		}},
		{name: "two read along past the disk", setting: "ENTREPOT_CACHE_SIZE=4MiB", held: unsure, do: func(b *buyers, one, two *http.Client) {
			gate := b.hub.Gate(ocitest.Match{Kind: ocitest.BlobKind})
			gate.To(200_000)
			first, second := b.begin(one, 1, ""), b.begin(two, 1, "")
			gate.Open()
			var both sync.WaitGroup
			both.Go(func() { b.finish(first) })
			both.Go(func() { b.finish(second) }) // by itself, if it cannot keep up
			both.Wait()
		}},
		{name: "kept warm", held: 5, warmed: true, do: func(b *buyers, one, _ *http.Client) {
			operatorOf(b.t, b.p).must("warm", "app:1")
			b.pull(one)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub := ocitest.NewHub(t, ocitest.Config{})
			b := &buyers{t: t, hub: hub, image: ocitest.RandomImage(1, layer, layer, layer)}
			hub.Push("library/app", "1", b.image)
			b.p = startProgram(t, hub, row.setting)
			row.do(b, clientAt(t, "127.0.0.2"), clientAt(t, "127.0.0.3"))

			spent := operatorOf(t, b.p).statusAfter(b.requests).Spent
			total := spent.Total
			want := total.Served - total.Fetched
			if row.warmed {
				want = total.Served
			}
			if total.Saved < want || total.Saved > want+dropped || row.held != unsure && total.Held != row.held || total.Requests != b.requests || total.Failed > 0 {
				t.Errorf("%+v\nwant %d bytes saved, %d of %d requests held", total, want, row.held, b.requests)
			}
			for _, line := range spent.Clients.Lines {
				if line.Saved > line.Served || row.warmed && line.Served > 0 && line.Fetched > 0 {
					t.Errorf("%+v", line)
				}
			}
		})
	}
}

// A registry has counted what it redirects, whatever is found there.
func TestARedirectedManifestIsOnePull(t *testing.T) {
	for _, row := range []struct {
		name   string
		fault  *ocitest.Fault
		status int
	}{
		{"all is well", nil, http.StatusOK},
		{"the target fails", &ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Answer(404)}, http.StatusNotFound},
	} {
		t.Run(row.name, func(t *testing.T) {
			hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100, RedirectManifests: true}})
			image := ocitest.RandomImage(1, 1000)
			hub.Push("library/app", "1", image)
			p := startProgram(t, hub)
			if row.fault != nil {
				hub.Inject(row.fault)
			}
			if status, body, _ := get(t, newClient(t), p.registry+"/v2/library/app/manifests/"+image.Digest.String()); status != row.status {
				t.Errorf("%d %s, want %d", status, body, row.status)
			}
			total := operatorOf(t, p).status().Spent.Total // a request upstream is counted before it is answered
			if n := hub.CountedPulls(); n == 0 || total.Pulls != int64(n) {
				t.Errorf("%d pulls, and the registry has counted %d", total.Pulls, n)
			}
		})
	}
}
