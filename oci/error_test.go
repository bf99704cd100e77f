package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestEveryCodeHasARow(t *testing.T) {
	seen := map[string]Code{}
	for c := range numCodes {
		row := c.Row()
		if row.Wire == "" || row.Message == "" || http.StatusText(row.Status) == "" || row.Status < 400 {
			t.Errorf("code %d: row %+v", c, row)
		}
		key := fmt.Sprint(row.Wire, row.Status)
		if other, dup := seen[key]; dup {
			t.Errorf("codes %d and %d cannot be told apart: %s", other, c, key)
		}
		seen[key] = c
		if row.Retryable && row.Status < 500 && row.Status != http.StatusTooManyRequests {
			t.Errorf("%s is the client's fault and cannot be retryable", row.Wire)
		}
	}
}

// TestWrittenErrorsReadBack: an answer of ours, read as an upstream's, gives
// the code back. Three mean something else when an upstream says them.
func TestWrittenErrorsReadBack(t *testing.T) {
	others := map[Code]Code{
		Internal:     Unavailable,     // its trouble, not ours
		Unauthorized: Denied,          // its challenge is not the client's to answer
		NotFound:     ManifestUnknown, // the thing that was asked for
	}
	for c := range numCodes {
		w := httptest.NewRecorder()
		sent := Errorf(c, "because of %d", c)
		status := WriteError(w, fmt.Errorf("wrapped: %w", sent))
		if status != c.Row().Status || w.Code != status {
			t.Errorf("%s: status %d, returned %d; want %d", c, w.Code, status, c.Row().Status)
		}
		want, ok := others[c]
		if !ok {
			want = c
		}
		got := ReadError(w.Code, w.Header(), w.Body.Bytes(), ManifestUnknown, now)
		if got.Code != want || got.Detail != sent.Detail {
			t.Errorf("%s (%d) read back as %s (%d) with %q", c, status, got.Code, got.Code.Row().Status, got.Detail)
		}
	}
}

func TestWriteErrorHeaders(t *testing.T) {
	for c := range numCodes {
		w := httptest.NewRecorder()
		for _, name := range []string{"Content-Range", "Docker-Content-Digest", "Etag", "Last-Modified"} {
			w.Header().Set(name, "of the answer that it was going to be")
		}
		w.Header().Set("Content-Length", "12345")
		w.Header().Set("Content-Type", "application/octet-stream")
		status := WriteError(w, &Error{Code: c})
		h := w.Header()
		if h.Get("Content-Type") != "application/json" || h.Get("Content-Length") != strconv.Itoa(w.Body.Len()) || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: headers %v, body %s", c, h, w.Body)
		}
		if h.Get("Docker-Content-Digest") != "" || h.Get("Etag") != "" || h.Get("Last-Modified") != "" {
			t.Errorf("%s: headers of content are left: %v", c, h)
		}
		if got := h.Get("Content-Range") != ""; got != (status == http.StatusRequestedRangeNotSatisfiable) {
			t.Errorf("%s: Content-Range is there: %v", c, got)
		}
		if got := h.Get("Retry-After") != ""; got != (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable) {
			t.Errorf("%s (%d): Retry-After is there: %v", c, status, got)
		}
	}
}

func TestRetryAfterIsWholeSeconds(t *testing.T) {
	for wait, want := range map[time.Duration]string{
		0: "5", -time.Second: "5", time.Nanosecond: "1", time.Second: "1", 1500 * time.Millisecond: "2", time.Hour: "3600",
	} {
		for _, code := range []Code{TooManyRequests, Unavailable} {
			w := httptest.NewRecorder()
			WriteError(w, &Error{Code: code, RetryAfter: wait})
			if got := w.Header().Get("Retry-After"); got != want {
				t.Errorf("%s after %v: got %q, want %q", code, wait, got, want)
			}
		}
	}
}

// TestWriteErrorAnswersHead: a HEAD is told the same without a body.
func TestWriteErrorAnswersHead(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		WriteError(w, Errorf(ManifestUnknown, "no such tag"))
	}))
	defer server.Close()
	res, err := http.Head(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || len(body) != 0 || res.StatusCode != http.StatusNotFound || res.ContentLength <= 0 {
		t.Errorf("got %d, length %d, body %q, %v", res.StatusCode, res.ContentLength, body, err)
	}
}

// TestOurOwnTextStaysWithUs: an error that is no Error, and the cause of one
// that is, are for our log.
func TestOurOwnTextStaysWithUs(t *testing.T) {
	secret := errors.New("open /data/secret: permission denied")
	for _, err := range []error{secret, &Error{Code: Unavailable, Err: secret}} {
		w := httptest.NewRecorder()
		WriteError(w, err)
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("the client reads %s", w.Body)
		}
		if !errors.Is(err, secret) {
			t.Errorf("the cause of %v is lost", err)
		}
	}
}

func TestErrorsAreEqualByCode(t *testing.T) {
	err := fmt.Errorf("fill: %w", Errorf(BlobUnknown, "no %s", "blob"))
	if !errors.Is(err, ErrBlobUnknown) || errors.Is(err, ErrManifestUnknown) || errors.Is(err, Errorf(BlobUnknown, "other")) {
		t.Errorf("%v compares wrongly", err)
	}
	if !IsUnknown(err) || IsRetryable(err) || CodeOf(err) != BlobUnknown {
		t.Errorf("%v is misjudged", err)
	}
	if CodeOf(io.EOF) != Internal || IsUnknown(io.EOF) || RetryAfter(io.EOF) != 0 {
		t.Error("an error without code is misjudged")
	}
	cause := Errorf(Unavailable, "dial: %w", io.ErrUnexpectedEOF)
	if !errors.Is(cause, io.ErrUnexpectedEOF) || cause.Error() != "unavailable: dial: unexpected EOF" {
		t.Errorf("got %v", cause)
	}
}

// TestReadErrorOfUpstreams: what each kind of answer means to a client.
func TestReadErrorOfUpstreams(t *testing.T) {
	wire := func(code, message string) string {
		quoted, _ := json.Marshal(message)
		return fmt.Sprintf(`{"errors":[{"code":%q,"message":%s,"detail":{"x":1}}]}`, code, quoted)
	}
	for name, test := range map[string]struct {
		status  int
		body    string
		unknown Code
		want    Code
		detail  string
	}{
		"tag":                  {404, wire("MANIFEST_UNKNOWN", "no tag"), ManifestUnknown, ManifestUnknown, "no tag"},
		"repository":           {404, wire("NAME_UNKNOWN", "no repo"), BlobUnknown, NameUnknown, "no repo"},
		"404 in HTML":          {404, "<html>", BlobUnknown, BlobUnknown, "blob unknown to registry"},
		"404 without body":     {404, "", ManifestUnknown, ManifestUnknown, "manifest unknown to registry"},
		"404 of another kind":  {404, wire("DENIED", "x"), ManifestUnknown, ManifestUnknown, "x"},
		"404 said by a 400":    {400, wire("MANIFEST_UNKNOWN", "x"), ManifestUnknown, BadUpstream, "x"},
		"challenge":            {401, wire("UNAUTHORIZED", "log in"), ManifestUnknown, Denied, "log in"},
		"forbidden":            {403, wire("DENIED", "no"), ManifestUnknown, Denied, "no"},
		"forbidden in XML":     {403, "<?xml?>", BlobUnknown, Denied, "requested access to the resource is denied"},
		"quota":                {429, wire("TOOMANYREQUESTS", "limit"), ManifestUnknown, TooManyRequests, "limit"},
		"abuse":                {429, "Too Many Requests (HAP429)\n", ManifestUnknown, TooManyRequests, "too many requests"},
		"head refused":         {405, "", ManifestUnknown, Unsupported, "the operation is unsupported"},
		"head not implemented": {501, "", ManifestUnknown, Unsupported, "the operation is unsupported"},
		"range":                {416, "", BlobUnknown, RangeInvalid, "requested range cannot be satisfied"},
		"bad gateway":          {502, "<html>", BlobUnknown, BadUpstream, "upstream registry answered nonsense"},
		"unavailable":          {503, "", BlobUnknown, Unavailable, "upstream registry unavailable"},
		"gateway timeout":      {504, "", BlobUnknown, Timeout, "upstream registry did not answer in time"},
		"request timeout":      {408, "", BlobUnknown, Timeout, "upstream registry did not answer in time"},
		"internal":             {500, wire("UNKNOWN", "x"), BlobUnknown, Unavailable, "x"},
		"odd 5xx":              {599, "", BlobUnknown, Unavailable, "upstream registry unavailable"},
		"bad name":             {400, wire("NAME_INVALID", "x"), BlobUnknown, NameInvalid, "x"},
		"odd 4xx":              {418, "", BlobUnknown, BadUpstream, "upstream registry answered nonsense"},
		"a redirect":           {302, "", BlobUnknown, BadUpstream, "upstream registry answered nonsense"},
		"a success":            {204, "", BlobUnknown, BadUpstream, "upstream registry answered nonsense"},
		"no errors in it":      {404, `{"errors":[]}`, BlobUnknown, BlobUnknown, "blob unknown to registry"},
		"terminal codes":       {403, wire("DENIED", "a\x1b[31mb\r\nc\u009bd\u202ee"), BlobUnknown, Denied, "a[31mbcde"},
	} {
		got := ReadError(test.status, http.Header{}, []byte(test.body), test.unknown, now)
		if got.Code != test.want || got.Detail != test.detail || got.RetryAfter != 0 {
			t.Errorf("%s: got %s (%d) %q after %v, want %s (%d) %q", name, got.Code, got.Code.Row().Status, got.Detail, got.RetryAfter,
				test.want, test.want.Row().Status, test.detail)
		}
	}
}

func TestRetryAfterOfUpstreams(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"":                               0,
		"60":                             time.Minute,
		"0":                              0,
		"-5":                             0,
		"soon":                           0,
		"1.5":                            0,
		"100000":                         24 * time.Hour,
		"9223372036854775807":            24 * time.Hour,
		"9300000000":                     24 * time.Hour, // overflows a Duration
		"-9300000000":                    0,
		"Sun, 01 Mar 2026 12:01:00 GMT":  time.Minute,
		"Sun, 01 Mar 2026 11:00:00 GMT":  0,
		"Wed, 01 Mar 2999 12:00:00 GMT":  24 * time.Hour,
		"Sunday, 01-Mar-26 12:01:00 GMT": time.Minute,
	} {
		got := ReadError(429, http.Header{"Retry-After": {value}}, nil, BlobUnknown, now).RetryAfter
		if got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}

// A date is by the clock of the upstream, which may be wrong.
func TestARetryAfterIsByItsOwnClock(t *testing.T) {
	for date, want := range map[string]time.Duration{
		"Sun, 01 Mar 2026 11:55:00 GMT": 6 * time.Minute,
		"Sun, 01 Mar 2026 12:00:30 GMT": 30 * time.Second,
		"Sun, 01 Mar 2026 12:30:00 GMT": 0,
		"Sun, 01 Mar 1970 00:00:00 GMT": MaxRetryAfter,
		"yesterday":                     time.Minute,
		"":                              time.Minute,
	} {
		h := http.Header{"Retry-After": {"Sun, 01 Mar 2026 12:01:00 GMT"}, "Date": {date}}
		if got := ReadError(429, h, nil, BlobUnknown, now).RetryAfter; got != want {
			t.Errorf("with the Date %q: got %v, want %v", date, got, want)
		}
	}
}

func TestLongMessagesAreCutBetweenCharacters(t *testing.T) {
	for n := range 4 {
		message := strings.Repeat("x", n) + strings.Repeat("€", 100)
		body := fmt.Sprintf(`{"errors":[{"code":"DENIED","message":%q}]}`, message)
		got := ReadError(403, http.Header{}, []byte(body), BlobUnknown, now).Detail
		if !utf8.ValidString(got) || len(got) > 200 || !strings.HasPrefix(got, message[:n+3]) {
			t.Errorf("got %q", got)
		}
	}
}

// FuzzReadError: whatever an upstream answers, the client gets a sound answer,
// and reading that one gives the same code.
func FuzzReadError(f *testing.F) {
	f.Add(404, "", []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"}]}`), true)
	f.Add(429, "60", []byte("Too Many Requests (HAP429)"), false)
	f.Add(503, "Sun, 01 Mar 2026 12:01:00 GMT", []byte("<html>"), false)
	f.Add(403, "-1", []byte(`{"errors":[{"code":"DENIED","message":"a\u001b[31m\u009b\ud800"}]}`), true)
	f.Add(400, "9999999999999999999", []byte(`{"errors":[{"code":"RANGE_INVALID"}]}`), true)
	f.Add(0, "", []byte(`{"errors":[{"detail":{"a":[1]}}]}`), true)
	f.Add(204, "9300000000", []byte(nil), true)
	f.Fuzz(func(t *testing.T, status int, retryAfter string, body []byte, blob bool) {
		unknown := ManifestUnknown
		if blob {
			unknown = BlobUnknown
		}
		e := ReadError(status, http.Header{"Retry-After": {retryAfter}}, body, unknown, now)
		if e.Code == Internal || e.Code == Unauthorized || e.RetryAfter < 0 || e.RetryAfter > 24*time.Hour {
			t.Errorf("got %+v", e)
		}
		if IsUnknown(e) != (status == http.StatusNotFound) {
			t.Errorf("status %d became %s: unknown is what upstream says with a 404", status, e.Code)
		}
		if e.Detail == "" || len(e.Detail) > 300 || !utf8.ValidString(e.Detail) || strings.ContainsFunc(e.Detail, unicode.IsControl) {
			t.Errorf("detail %q", e.Detail)
		}
		w := httptest.NewRecorder()
		WriteError(w, e)
		if !json.Valid(w.Body.Bytes()) || bytes.ContainsAny(w.Body.Bytes(), "\r\n") {
			t.Errorf("body %s", w.Body)
		}
		if again := ReadError(w.Code, w.Header(), w.Body.Bytes(), unknown, now); again.Code != e.Code {
			t.Errorf("%s (%d) became %s (%d)", e.Code, e.Code.Row().Status, again.Code, again.Code.Row().Status)
		}
	})
}

func TestAboutNamesOnce(t *testing.T) {
	cause := errors.New("disk /var/x on fire")
	for _, row := range []struct {
		err  error
		want string // the message that a client reads
	}{
		{ErrManifestUnknown, "a/b:1: manifest unknown to registry"},
		{fmt.Errorf("manifest: %w", Errorf(Denied, "not today")), "a/b:1: not today"},
		{Errorf(Unavailable, "docker.io/a/b:1 is not held"), "docker.io/a/b:1 is not held"},
		{cause, "a/b:1: internal error"},
		{&Error{Code: TooManyRequests, RetryAfter: time.Hour, Err: cause}, "a/b:1: too many requests; come again in 1h0m0s"},
		{&Error{Code: TooManyRequests, Detail: "slow down", RetryAfter: 2500 * time.Millisecond}, "a/b:1: slow down; come again in 3s"},
		{&Error{Code: TooManyRequests, Detail: "spent: there are more in 5h", When: ": there are more in 5h", RetryAfter: time.Minute}, "a/b:1: spent: there are more in 5h"},
		{ReadError(429, http.Header{"Retry-After": {"60"}}, []byte(`{"errors":[{"message":"100 pulls in 6 hours"}]}`), BlobUnknown, now), "a/b:1: 100 pulls in 6 hours; come again in 1m0s"},
		{&Error{Code: TooManyRequests, Detail: "slow down"}, "a/b:1: slow down"},
		{&Error{Code: Unavailable, Detail: "it is down", RetryAfter: time.Minute}, "a/b:1: it is down"},
	} {
		told := About("a/b:1", row.err)
		w := httptest.NewRecorder()
		WriteError(w, told)
		if !strings.Contains(w.Body.String(), `"message":"`+row.want+`"`) {
			t.Errorf("%v: %s, want %q", row.err, w.Body, row.want)
		}
		if told.Code != CodeOf(row.err) || told.RetryAfter != RetryAfter(row.err) || !errors.Is(told, row.err) {
			t.Errorf("%v became %+v", row.err, told)
		}
	}
}

// Why something failed is told without what was being done, and what clients may not
// read, by whoever says that himself.
func TestReason(t *testing.T) {
	secret := errors.New("secret")
	for _, row := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("resolve docker.io/library/alpine:1: %w", &Error{Code: Unavailable, Detail: "registry.test: no answer in time", Err: secret}), "registry.test: no answer in time"},
		{&Error{Code: TooManyRequests, Err: secret}, "too many requests"},
		{errors.New("it is a day too early"), "it is a day too early"},
	} {
		if got := Reason(row.err); got != row.want {
			t.Errorf("%v: %q, want %q", row.err, got, row.want)
		}
	}
}

// Operators who know what was being done read the causes without a code, and without
// the time to come again where it stands beside them.
func TestWhy(t *testing.T) {
	refused := errors.New("192.0.2.1:443 refuses the connection")
	down := &Error{Code: Unavailable, Detail: "registry.test: it cannot be reached", Err: refused}
	const when = "; it is tried again in 8s"
	for _, row := range []struct {
		err           error
		want, lasting string
	}{
		{fmt.Errorf("resolve docker.io/library/alpine:1: %w", &Error{Code: Unavailable, Detail: down.Detail + when, When: when, Err: down}), down.Detail + ": " + refused.Error() + when, down.Detail + ": " + refused.Error()},
		{ErrManifestUnknown, "manifest unknown to registry", "manifest unknown to registry"},
		{refused, refused.Error(), refused.Error()},
	} {
		if got, lasting := Why(row.err), LastingWhy(row.err); got != row.want || lasting != row.lasting {
			t.Errorf("%v: %q and %q, want %q and %q", row.err, got, lasting, row.want, row.lasting)
		}
	}
}

// What operators read of an error has all its causes, and each once.
func TestCauses(t *testing.T) {
	refused := errors.New("192.0.2.1:443 refuses the connection")
	first := &Error{Code: Unavailable, Detail: "registry.test: it cannot be reached", Err: refused}
	for _, row := range []struct {
		err  error
		want string
	}{
		{refused, "192.0.2.1:443 refuses the connection"},
		{Errorf(Unavailable, "upstream: %w", refused), "unavailable: upstream: 192.0.2.1:443 refuses the connection"},
		{fmt.Errorf("resolve: %w", first), "resolve: unavailable: registry.test: it cannot be reached: 192.0.2.1:443 refuses the connection"},
		{&Error{Code: Unavailable, Detail: first.Detail + "; it is tried again in 8s", Err: first}, "unavailable: registry.test: it cannot be reached: 192.0.2.1:443 refuses the connection; it is tried again in 8s"},
		{&Error{Code: Unavailable, Detail: first.Detail, Err: &Error{Code: Unavailable, Detail: first.Detail}}, "unavailable: registry.test: it cannot be reached"},
		{&Error{Code: Denied, Detail: "no", Err: fmt.Errorf("token: %w", first)}, "denied: no: token: unavailable: registry.test: it cannot be reached: 192.0.2.1:443 refuses the connection"},
	} {
		if got := Causes(row.err); got != row.want {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}
