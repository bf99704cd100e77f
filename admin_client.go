package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"entrepot/store"
	"entrepot/words"
)

// adminClient asks the admin API: of a running server, or of a data directory
// that this process has opened itself.
type adminClient struct {
	http  *http.Client
	base  string // URL, to which a route's name is added
	token string
	where string // for messages
	rest  error  // why no server is asked, where this process answers itself
	close func() error
}

// aboutTimeout is how long a server may take to say that it is one.
const aboutTimeout = 5 * time.Second

// maxAdminLine bounds a line of an answer.
const maxAdminLine = 16 << 20

// connect finds who can answer for the data directory: the server that was
// named, or the one of ENTREPOT_ADMIN_LISTEN if it has that directory, or else
// this process, if no other has it open.
func connect(ctx context.Context, cfg *Config, version, server string) (*adminClient, error) {
	token, err := cfg.AdminToken.Value()
	if err != nil {
		return nil, fmt.Errorf("ENTREPOT_ADMIN_TOKEN: %w", err)
	}
	if server != "" {
		return connectNamed(ctx, server, token)
	}
	running, unreached := connectServer(ctx, cfg, token)
	if running != nil {
		return running, nil
	}
	return openAtRest(ctx, cfg, version, unreached)
}

func connectNamed(ctx context.Context, server, token string) (*adminClient, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, usageError{"--server: want the address of an admin listener, such as cache.example:5001 or http://127.0.0.1:5001"}
	}
	client := newAdminClient(u.Scheme+"://"+u.Host, token)
	if _, err := client.about(ctx); err != nil {
		return nil, err
	}
	return client, nil
}

// connectServer asks the server of ENTREPOT_ADMIN_LISTEN. It is not the one if
// it has another data directory, unless there is none here and nobody said which.
func connectServer(ctx context.Context, cfg *Config, token string) (*adminClient, error) {
	if cfg.AdminListen == "" {
		return nil, errors.New("ENTREPOT_ADMIN_LISTEN is empty")
	}
	host, port := cfg.AdminListen.reachable()
	if port == "0" {
		return nil, fmt.Errorf("ENTREPOT_ADMIN_LISTEN=%s leaves the port open", cfg.AdminListen)
	}
	client := newAdminClient("http://"+net.JoinHostPort(host, port), token)
	about, err := client.about(ctx)
	if err != nil {
		return nil, err
	}
	_, missing := os.Stat(string(cfg.Data))
	if isSameDir(about.Data, string(cfg.Data)) || missing != nil && cfg.sources["ENTREPOT_DATA"] == "" {
		return client, nil
	}
	return nil, fmt.Errorf("the server at %s has another data directory, %s", client.where, words.Printable(about.Data))
}

// isSameDir reports whether a server's directory is ours, whatever its name.
func isSameDir(theirs, ours string) bool {
	a, aerr := os.Stat(theirs)
	b, berr := os.Stat(ours)
	if aerr == nil && berr == nil {
		return os.SameFile(a, b)
	}
	absolute, err := filepath.Abs(ours)
	return err == nil && absolute == theirs
}

func newAdminClient(base, token string) *adminClient {
	return &adminClient{
		http: &http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true}, // and no proxy
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		base: base + adminPrefix, token: token, where: base, close: func() error { return nil },
	}
}

// openAtRest opens the data directory in this process. unreached is why no
// server has it.
func openAtRest(ctx context.Context, cfg *Config, version string, unreached error) (*adminClient, error) {
	dir := string(cfg.Data)
	if _, err := os.Stat(filepath.Join(dir, "VERSION")); err != nil { // Open would make one
		return nil, fmt.Errorf("ENTREPOT_DATA=%s is no data directory, and no server can be asked: %w; set ENTREPOT_DATA, or name a server by --server", dir, unreached)
	}
	disk, err := store.Open(ctx, store.Config{Dir: dir, LockWait: 1, Shares: cfg.shares()})
	if err != nil {
		return nil, fmt.Errorf("%w; nor can a server be asked: %w", err, unreached)
	}
	api := newAdminAPI(disk, nil, cfg, version)
	return &adminClient{
		http: &http.Client{Transport: handlerTransport{api}},
		base: "http://localhost" + adminPrefix, where: dir, rest: unreached, close: disk.Close,
	}, nil
}

// about asks who answers.
func (c *adminClient) about(ctx context.Context) (aboutJSON, error) {
	ctx, cancel := context.WithTimeout(ctx, aboutTimeout)
	defer cancel()
	var about aboutJSON
	result, err := c.get(ctx, "about", nil, nil)
	if err == nil {
		err = json.Unmarshal(result, &about)
	}
	return about, err
}

// listener is told of an answer's lines as they come.
type listener struct {
	item     func(json.RawMessage) error
	progress func(json.RawMessage)
}

func (c *adminClient) get(ctx context.Context, route string, query url.Values, l *listener) (json.RawMessage, error) {
	u := c.base + route
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return c.ask(ctx, http.MethodGet, u, nil, l)
}

func (c *adminClient) post(ctx context.Context, route string, body any, l *listener) (json.RawMessage, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, http.MethodPost, c.base+route, text, l)
}

// ask returns the result at the end of an answer. An *adminError is what the
// server says against it.
func (c *adminClient) ask(ctx context.Context, method, u string, body []byte, l *listener) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s does not answer: %w", c.where, shortest(ctx, err))
	}
	defer resp.Body.Close()
	result, err := readAnswer(resp.Body, l)
	refusal, refused := errors.AsType[*adminError](err)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil:
		return result, nil
	case refused && refusal.Code == "TOKEN":
		return nil, fmt.Errorf("%s asks for a token: set ENTREPOT_ADMIN_TOKEN, or ENTREPOT_ADMIN_TOKEN_FILE, to the one it has", c.where)
	case refused:
		return nil, &adminError{words.Printable(refusal.Code), words.Printable(refusal.Message)}
	case resp.StatusCode == http.StatusServiceUnavailable:
		return nil, fmt.Errorf("the server at %s is starting or stopping: try again in a moment", c.where)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("what answers at %s is not the admin API of Entrepôt: %s", c.where, words.Printable(resp.Status))
	}
	return nil, fmt.Errorf("the answer of %s: %w", c.where, err)
}

// shortest is the part of a network error that a person wants: what is around it
// says again who was asked.
func shortest(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

var errCutAnswer = errors.New("it was cut before its end")

// readAnswer reads lines up to the one that ends an answer.
func readAnswer(r io.Reader, l *listener) (json.RawMessage, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxAdminLine)
	for lines.Scan() {
		var line adminLine[json.RawMessage]
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, err
		}
		switch {
		case line.Error != nil:
			return nil, line.Error
		case line.Result != nil:
			return line.Result, nil
		case line.Item != nil && l != nil && l.item != nil:
			if err := l.item(line.Item); err != nil {
				return nil, err
			}
		case line.Progress != nil && l != nil && l.progress != nil:
			l.progress(line.Progress)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return nil, errCutAnswer
}

// handlerTransport asks a handler in this process. The answer is read while it
// is written.
type handlerTransport struct{ handler http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, out := io.Pipe()
	w := &pipeWriter{header: http.Header{}, out: out, begun: make(chan struct{})}
	go func() {
		t.handler.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		_ = out.Close()
	}()
	<-w.begun
	return &http.Response{
		StatusCode: w.status, Status: http.StatusText(w.status), Header: w.header, Body: body, Request: r,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1,
	}, nil
}

// pipeWriter is the handler's side.
type pipeWriter struct {
	header http.Header
	out    *io.PipeWriter
	begun  chan struct{}
	status int // set before begun is closed
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		close(w.begun)
	}
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(p)
}
