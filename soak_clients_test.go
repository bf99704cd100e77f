//go:build soak

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
)

// TestSoakManyClients: connections that do nothing, a thousand pulls at once, and
// attackers that would take every connection there may be. Hits are answered
// throughout, nothing is asked of upstream, and the figures are printed.
func TestSoakManyClients(t *testing.T) {
	const idle, pulls, most = 10_000, 1000, 12_000
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	image := ocitest.RandomImage(1, 1<<20, 300_000)
	hub.Push("app", "latest", image)
	p := startProcess(t, append(over(hub, t.TempDir()), fmt.Sprintf("ENTREPOT_MAX_CONNECTIONS=%d", most))...)
	p.await(t)
	client := newClient(t)
	from := puller{client: client, registry: p.registry, sample: 512}
	if err := from.image(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	awaitNoFills(t, client, p.admin)
	hub.Reset()
	address := strings.TrimPrefix(p.registry, "http://")

	alone := hits(t, from, image, 2000)
	t.Logf("alone: %v", alone)
	waiting := openIdle(t, address, idle)
	withIdle := hits(t, from, image, 2000)
	t.Logf("beside %d idle connections: %v", len(waiting), withIdle)

	began := time.Now()
	var all sync.WaitGroup
	many := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: pulls}}
	defer many.CloseIdleConnections()
	for range pulls {
		all.Go(func() {
			if err := (puller{client: many, registry: p.registry, sample: 512}).image(t.Context(), image); err != nil {
				t.Error(err)
			}
		})
	}
	withPulls := hits(t, from, image, 200)
	all.Wait()
	t.Logf("beside %d pulls of %d bytes each, which took %v: %v", pulls, image.Blobs[1].Size+image.Blobs[2].Size, time.Since(began).Round(time.Millisecond), withPulls)

	// More connections than there may be, of which none ever sends a request: those
	// that were idle go first, these after five seconds.
	attackers := openSilent(t, address, most)
	attacked := time.Now()
	answered := 0
	for answered < 100 && t.Context().Err() == nil {
		fresh := newClient(t) // as dockerd does: a connection each
		resp, err := fresh.Get(p.registry + "/v2/app/manifests/latest")
		if err != nil {
			continue // it was one too many
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			answered++
		} else if resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("a client is told %s", resp.Status)
		}
	}
	t.Logf("beside %d connections without a request, %d new clients were answered within %v", len(attackers), answered, time.Since(attacked).Round(time.Millisecond))
	if took := time.Since(attacked); took > 30*time.Second {
		t.Errorf("the attack kept clients away for %v", took)
	}
	if lines := hub.Lines(); len(lines) > 0 {
		t.Errorf("upstream was asked: %v", lines)
	}
	if withIdle.median > 3*alone.median+time.Millisecond {
		t.Errorf("idle connections make a hit slower: %v, and alone %v", withIdle, alone)
	}
	p.terminate(t)
}

// image pulls the manifest of latest, and all that it lists.
func (p puller) image(ctx context.Context, image ocitest.Image) error {
	if err := p.manifest(ctx, "latest", image); err != nil {
		return err
	}
	for _, blob := range image.Blobs {
		if err := p.blob(ctx, blob, 0, -1); err != nil {
			return err
		}
	}
	return nil
}

// latencies are how long hits took.
type latencies struct{ median, p99, worst time.Duration }

func (l latencies) String() string {
	return fmt.Sprintf("a hit takes %v, 99%% %v, the worst %v", l.median, l.p99, l.worst)
}

// hits asks for a manifest that is held, again and again.
func hits(t *testing.T, from puller, image ocitest.Image, n int) latencies {
	t.Helper()
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		if err := from.manifest(t.Context(), "latest", image); err != nil {
			t.Fatal(err)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return latencies{took[n/2], took[n*99/100], took[n-1]}
}

// openIdle opens connections that have had an answer and wait.
func openIdle(t *testing.T, address string, n int) (all []net.Conn) {
	t.Helper()
	for range n {
		conn := ask(t, address, "/v2/")
		if resp, _ := answerOn(t, conn); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		all = append(all, conn)
	}
	return all
}

// openSilent opens connections that begin a request and do not end it.
func openSilent(t *testing.T, address string, n int) (all []net.Conn) {
	t.Helper()
	for range n {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err != nil {
			continue // refused, which is what there is a bound for
		}
		t.Cleanup(func() { conn.Close() })
		fmt.Fprint(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-")
		all = append(all, conn)
	}
	return all
}
