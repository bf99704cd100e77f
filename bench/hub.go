package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// digested hashes a pattern into content.
func digested(p pattern) (ocitest.Content, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(p, 0, p.size), make([]byte, 256<<10)); err != nil {
		return ocitest.Content{}, err
	}
	d, err := oci.ParseDigest("sha256:" + hex.EncodeToString(h.Sum(nil)))
	if err != nil {
		return ocitest.Content{}, err
	}
	return ocitest.Content{Descriptor: oci.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: p.size}, ReaderAt: p}, nil
}

// counts is what upstream was asked for and what it sent, since the last reset.
type counts struct {
	Manifests int   // GETs of manifests: what Docker Hub counts
	Heads     int   // HEADs of manifests
	Blobs     int   // GETs of blobs at the registry
	Transfers int   // GETs of blobs where the registry redirects to
	Bytes     int64 // of all bodies
}

// runHub is the fake Docker Hub in a process of its own, so that its CPU is
// nobody else's. Beside ocitest's remote control it takes patterns, and counts.
func runHub(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("hub", flag.ContinueOnError)
	control := flags.String("control", "127.0.0.1:0", "address of the remote control")
	registry := flags.String("registry", "127.0.0.1:0", "address of the registry")
	if err := flags.Parse(args); err != nil {
		return err
	}
	hub, err := ocitest.Start(ocitest.Config{Hostname: "127.0.0.1", RegistryAddr: *registry, Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	if err != nil {
		return err
	}
	defer hub.Close()
	h := hubServer{hub}
	mux := http.NewServeMux()
	mux.Handle("/", ocitest.Control(hub))
	mux.HandleFunc("POST /patterns", h.push)
	mux.HandleFunc("GET /counts", h.count)
	return serveUntil(ctx, *control, mux)
}

// serveUntil serves until ctx ends.
func serveUntil(ctx context.Context, addr string, handler http.Handler) error {
	ln, err := net.Listen("tcp", addr) //nolint:noctx // at once
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute} // which every server on a network needs
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type hubServer struct{ hub *ocitest.Hub }

func (h hubServer) push(w http.ResponseWriter, r *http.Request) {
	var spec imageSpec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	built, described, err := buildImage(spec)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.hub.Push(spec.Repo, spec.Tag, built)
	_ = json.NewEncoder(w).Encode(described)
}

func (h hubServer) count(w http.ResponseWriter, _ *http.Request) {
	var c counts
	for _, r := range h.hub.Requests() {
		c.Bytes += r.Sent
		switch {
		case r.Kind == ocitest.Manifest && r.Method == http.MethodHead:
			c.Heads++
		case r.Kind == ocitest.Manifest && r.Status == http.StatusOK:
			c.Manifests++
		case r.Kind == ocitest.BlobKind && r.Method == http.MethodGet && r.Role == ocitest.Registry:
			c.Blobs++
		case r.Kind == ocitest.BlobKind && r.Method == http.MethodGet:
			c.Transfers++
		}
	}
	_ = json.NewEncoder(w).Encode(c)
}

// hub is the harness's hold on the running hub.
type hub struct {
	*process
	url     string // of the registry
	control string
}

// line is how the hub's connections are shaped.
type line struct {
	Rate    int64 // bytes per second of each; 0: no bound
	Latency time.Duration
}

func startHub(ctx context.Context, dir string) (*hub, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	registry, control, err := twoPorts()
	if err != nil {
		return nil, err
	}
	p, err := startProcess(nil, filepath.Join(dir, "hub.log"), nil, self, "hub", "-registry", registry, "-control", control)
	if err != nil {
		return nil, err
	}
	h := &hub{p, "http://" + registry, "http://" + control}
	if err := p.awaitHTTP(ctx, dialLocal, h.control+"/content"); err != nil {
		p.stop()
		return nil, err
	}
	return h, nil
}

func twoPorts() (a, b string, err error) {
	if a, err = freePort(); err != nil {
		return "", "", err
	}
	b, err = freePort()
	return a, b, err
}

// ask sends JSON to the remote control and reads JSON back, each unless nil.
func (h *hub) ask(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, h.control+path, body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("remote control of the hub: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("the hub's %s: %s: %s", path, resp.Status, said)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func (h *hub) push(ctx context.Context, spec imageSpec) (image, error) {
	var i image
	err := h.ask(ctx, http.MethodPost, "/patterns", spec, &i)
	return i, err
}

func (h *hub) shape(ctx context.Context, l line) error {
	return h.ask(ctx, http.MethodPatch, "/habits", l, nil)
}

func (h *hub) forget(ctx context.Context) error {
	return h.ask(ctx, http.MethodDelete, "/requests", nil, nil)
}

func (h *hub) counts(ctx context.Context) (counts, error) {
	var c counts
	err := h.ask(ctx, http.MethodGet, "/counts", nil, &c)
	return c, err
}

// settled are the counts once they have stopped changing, or after a while:
// what a cache still fetches when its client has all counts too.
func (h *hub) settled(ctx context.Context) (counts, error) {
	last, err := h.counts(ctx)
	for tries := 0; err == nil && tries < 20; tries++ {
		wait(ctx, 100*time.Millisecond)
		var now counts
		if now, err = h.counts(ctx); now == last {
			break
		}
		last = now
	}
	return last, err
}
