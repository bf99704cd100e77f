package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// accept is what dockerd and containerd say they take.
const accept = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*"

// puller pulls images as a client does: manifest, config, then layers at once,
// each over a connection of its own. It reads all bytes and compares a few of
// each read with what they should be.
type puller struct {
	client *http.Client
	base   string // URL, with the prefix of repositories
	buffer int
	places map[string]string // by path, the URLs that pieces were redirected to
}

func newPuller(s *server) (p *puller, idle func()) {
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8}
	return &puller{&http.Client{Transport: transport}, s.base(), 64 << 10, map[string]string{}}, transport.CloseIdleConnections
}

// errWrong is an answer whose bytes are not those that were pushed.
var errWrong = errors.New("wrong bytes")

// get asks for a path and expects one of two statuses.
func (p *puller) get(ctx context.Context, path, rang string) (*http.Response, error) {
	url := p.base + path
	if place := p.places[path]; place != "" {
		url = place
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	if rang != "" {
		req.Header.Set("Range", rang)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && (rang == "" || resp.StatusCode != http.StatusPartialContent) {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		resp.Body.Close()
		return nil, fmt.Errorf("status %d: %s", resp.StatusCode, bytes.TrimSpace(said))
	}
	return resp, nil
}

func (p *puller) bytes(ctx context.Context, path string, want []byte) error {
	resp, err := p.get(ctx, path, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && want != nil && !bytes.Equal(got, want) {
		err = errWrong
	}
	return err
}

// pulled is how a pull went.
type pulled struct {
	first time.Duration // until the first byte of a layer
	all   time.Duration
}

// pull takes an image by tag.
func (p *puller) pull(ctx context.Context, i image) (pulled, error) {
	begin := time.Now()
	if err := p.bytes(ctx, i.Repo+"/manifests/"+i.Tag, i.Manifest); err != nil {
		return pulled{}, fmt.Errorf("manifest: %w", err)
	}
	if err := p.bytes(ctx, i.Repo+"/blobs/"+i.ConfigID.String(), i.Config); err != nil {
		return pulled{}, fmt.Errorf("config: %w", err)
	}
	var all sync.WaitGroup
	firsts, failures := make([]time.Duration, len(i.Layers)), make([]error, len(i.Layers))
	for n, layer := range i.Layers {
		all.Go(func() { firsts[n], failures[n] = p.layer(ctx, i.Repo, layer, begin) })
	}
	all.Wait()
	first := firsts[0]
	for _, f := range firsts {
		first = min(first, f)
	}
	return pulled{first, time.Since(begin)}, errors.Join(failures...)
}

// layer reads a whole blob. It tells when, after begin, the first byte came.
func (p *puller) layer(ctx context.Context, repo string, b blob, begin time.Time) (time.Duration, error) {
	resp, err := p.get(ctx, repo+"/blobs/"+b.Digest.String(), "")
	if err != nil {
		return 0, fmt.Errorf("layer: %w", err)
	}
	defer resp.Body.Close()
	first, err := p.compare(resp.Body, b.content(), 0, b.Size, begin)
	if err != nil {
		return 0, fmt.Errorf("layer of %d bytes: %w", b.Size, err)
	}
	return first, nil
}

// sample is how many bytes of each read are compared.
const sample = 256

// compare reads what content has from offset to end.
func (p *puller) compare(body io.Reader, content pattern, offset, end int64, begin time.Time) (first time.Duration, err error) {
	got, want := make([]byte, p.buffer), make([]byte, sample)
	for offset < end {
		n, err := body.Read(got[:min(int64(len(got)), end-offset)])
		if n > 0 {
			if first == 0 {
				first = time.Since(begin)
			}
			some := min(n, sample)
			_, _ = content.ReadAt(want[:some], offset)
			if !bytes.Equal(got[:some], want[:some]) {
				return first, fmt.Errorf("%w at %d", errWrong, offset)
			}
			offset += int64(n)
		}
		if err != nil && offset < end {
			return first, fmt.Errorf("at %d of %d: %w", offset, end, err)
		}
	}
	return first, nil
}

// piece reads length bytes at offset, by a ranged request. Where a registry
// redirects to is asked from then on, as lazy pullers do. From who answers with the
// whole it reads up to there, as it must.
func (p *puller) piece(ctx context.Context, repo string, b blob, offset, length int64) (first time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // leaves what is behind the piece unread
	begin, path := time.Now(), repo+"/blobs/"+b.Digest.String()
	resp, err := p.get(ctx, path, fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	p.places[path] = resp.Request.URL.String()
	if resp.StatusCode == http.StatusOK {
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			return 0, err
		}
	}
	return p.compare(resp.Body, b.content(), offset, offset+length, begin)
}

// wire is a client as lean as a load generator has to be beside what it
// measures on the same processors: requests are bytes made once, of answers
// only status and length are read.
type wire struct {
	net.Conn
	in       *bufio.Reader
	buffer   []byte
	received *atomic.Int64 // counts bodies as they come; nil: nobody does
}

// dialer is how wires reach a server.
type dialer func(ctx context.Context, addr string) (net.Conn, error)

func dialLocal(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// newWire dials. Big answers want a big buffer.
func newWire(ctx context.Context, dial dialer, addr string, buffer int) (*wire, error) {
	conn, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &wire{Conn: conn, in: bufio.NewReaderSize(conn, 16<<10), buffer: make([]byte, buffer)}, nil
}

// request is a GET as bytes.
func request(host, path string, more ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: %s\r\n", path, host, accept)
	for _, line := range more {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// ask sends a request and reads the answer to its end. want is how many bytes
// its body must have.
func (w *wire) ask(request []byte, want int64) error {
	if _, err := w.Write(request); err != nil {
		return err
	}
	length, err := w.head()
	if err != nil {
		return err
	}
	if length != want {
		return fmt.Errorf("an answer of %d bytes, want %d", length, want)
	}
	buffered := min(int64(w.in.Buffered()), length)
	if _, err := w.in.Discard(int(buffered)); err != nil {
		return err
	}
	// The rest is read from the socket, without a copy.
	for length -= buffered; length > 0; {
		n, err := w.Read(w.buffer[:min(int64(len(w.buffer)), length)])
		if w.received != nil {
			w.received.Add(int64(n))
		}
		if length -= int64(n); err != nil && length > 0 {
			return err
		}
	}
	return nil
}

// head reads an answer's header.
func (w *wire) head() (length int64, err error) {
	var head []byte
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		head = append(head, line...)
	}
	return lengthOf(head)
}

// drop closes at once, without the wait for stray packets that would use up
// this machine's ports.
func (w *wire) drop() {
	if c, ok := w.Conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	w.Close()
}
