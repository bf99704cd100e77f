package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"entrepot/words"
)

// Client asks the admin API: of a running server, or of a data directory
// that this process has opened itself.
type Client struct {
	http  *http.Client
	base  string // URL, to which a route's name is added
	token string
	where string // for messages
	rest  error  // why no server is asked, where this process answers itself
	close func() error
}

// aboutTimeout is how long a server may take to say that it is one.
const aboutTimeout = 5 * time.Second

// maxLine bounds a line of an answer.
const maxLine = 16 << 20

// NewClient asks the server whose admin listener has the URL base.
func NewClient(base, token string) *Client {
	return &Client{
		http: &http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true}, // and no proxy
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		base: base + Prefix, token: token, where: base, close: func() error { return nil },
	}
}

// AtRest asks api in this process, which has opened the data directory dir and
// gives it back by end. unreached is why no server has it.
func AtRest(api http.Handler, dir string, unreached error, end func() error) *Client {
	return &Client{
		http: &http.Client{Transport: handlerTransport{api}},
		base: "http://localhost" + Prefix, where: dir, rest: unreached, close: end,
	}
}

// Where is who is asked, for messages: a URL, or a data directory.
func (c *Client) Where() string { return c.where }

// Unreached is why no server is asked; nil where one is.
func (c *Client) Unreached() error { return c.rest }

// Close gives the data directory back, if this process had it.
func (c *Client) Close() error { return c.close() }

// About asks who answers.
func (c *Client) About(ctx context.Context) (About, error) {
	ctx, cancel := context.WithTimeout(ctx, aboutTimeout)
	defer cancel()
	var about About
	result, err := c.Get(ctx, "about", nil, nil)
	if err == nil {
		err = json.Unmarshal(result, &about)
	}
	return about, err
}

// Listener is told of an answer's lines as they come.
type Listener struct {
	Item     func(json.RawMessage) error
	Progress func(json.RawMessage)
}

// Get asks a question, and returns the result at the end of the answer. An *Error
// is what is said against it.
func (c *Client) Get(ctx context.Context, route string, query url.Values, l *Listener) (json.RawMessage, error) {
	u := c.base + route
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return c.ask(ctx, http.MethodGet, u, nil, l)
}

// Post is Get for what changes something.
func (c *Client) Post(ctx context.Context, route string, body any, l *Listener) (json.RawMessage, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, http.MethodPost, c.base+route, text, l)
}

// ask returns the result at the end of an answer. An *Error is what the
// server says against it.
func (c *Client) ask(ctx context.Context, method, u string, body []byte, l *Listener) (json.RawMessage, error) {
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
	refusal, refused := errors.AsType[*Error](err)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil:
		return result, nil
	case refused && refusal.Code == "TOKEN":
		return nil, fmt.Errorf("%s asks for a token: set ENTREPOT_ADMIN_TOKEN, or ENTREPOT_ADMIN_TOKEN_FILE, to the one it has", c.where)
	case refused:
		return nil, &Error{words.Printable(refusal.Code), words.Printable(refusal.Message)}
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
func readAnswer(r io.Reader, l *Listener) (json.RawMessage, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var line answerLine[json.RawMessage]
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, err
		}
		switch {
		case line.Error != nil:
			return nil, line.Error
		case line.Result != nil:
			return line.Result, nil
		case line.Item != nil && l != nil && l.Item != nil:
			if err := l.Item(line.Item); err != nil {
				return nil, err
			}
		case line.Progress != nil && l != nil && l.Progress != nil:
			l.Progress(line.Progress)
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
