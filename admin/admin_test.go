package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"entrepot/store"

	"github.com/google/go-cmp/cmp"
)

// wantRefusal expects an error as JSON.
func wantRefusal(t *testing.T, w *httptest.ResponseRecorder) Error {
	t.Helper()
	var line answerLine[json.RawMessage]
	if err := json.Unmarshal(w.Body.Bytes(), &line); err != nil || line.Error == nil || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %s: want an error as JSON", w.Code, w.Body)
		return Error{}
	}
	if w.Code != statusOf(line.Error.Code) {
		t.Errorf("status %d for %s", w.Code, line.Error.Code)
	}
	return *line.Error
}

func newTestAPI(t *testing.T) *API {
	t.Helper()
	dir := t.TempDir()
	disk, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(Config{Disk: disk, Version: "v1", Data: dir, Upstreams: []string{"docker.io"}})
}

var times = regexp.MustCompile(`"since":"[^"]+"`)

func withoutTimes(s string) string { return times.ReplaceAllString(s, `"since":"SINCE"`) }

func askAPI(t *testing.T, api http.Handler, method, route, contentType, body string) *httptest.ResponseRecorder {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequestWithContext(t.Context(), method, Prefix+route, r)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	w := httptest.NewRecorder()
	api.ServeHTTP(w, req)
	return w
}

func TestBadRequestsToTheAdminAPI(t *testing.T) {
	api := newTestAPI(t)
	const asJSON = "application/json"
	for _, row := range []struct{ method, route, contentType, body, code string }{
		{"GET", "nonsense", "", "", "NOT_FOUND"},
		{"GET", "", "", "", "NOT_FOUND"},
		{"GET", "about/", "", "", "NOT_FOUND"},
		{"GET", "status", "", "", "NOT_RUNNING"},
		{"GET", "status?hours=6", "", "", "NOT_RUNNING"},
		{"POST", "about", asJSON, "{}", "METHOD"},
		{"HEAD", "about", "", "", "METHOD"},
		{"GET", "verify", "", "", "METHOD"},
		{"DELETE", "prune", "", "", "METHOD"},
		{"GET", "about", "", "{}", "BAD_REQUEST"},
		{"GET", "images", "", "", "BAD_REQUEST"},
		{"GET", "images?repository=../etc", "", "", "BAD_REQUEST"},
		{"GET", "evictions", "", "", "BAD_REQUEST"},
		{"GET", "evictions?n=0", "", "", "BAD_REQUEST"},
		{"GET", "evictions?n=1001", "", "", "BAD_REQUEST"},
		{"POST", "verify", "", "{}", "BAD_REQUEST"}, // a form of a web page could send it
		{"POST", "verify", "text/plain", "{}", "BAD_REQUEST"},
		{"POST", "verify", asJSON, "", "BAD_REQUEST"},
		{"POST", "verify", asJSON, `{"fast":true}`, "BAD_REQUEST"},
		{"POST", "verify", asJSON, `{"x":"` + strings.Repeat("x", maxBody) + `"}`, "BAD_REQUEST"},
		{"POST", "prune", asJSON, `{"unusedSeconds":-1}`, "BAD_REQUEST"},
		{"POST", "prune", asJSON, `{"unusedSeconds":9223372036854775807}`, "BAD_REQUEST"},
		{"POST", "pin", asJSON, `{"repository":"docker.io/library/alpine"}`, "BAD_REQUEST"},
		{"POST", "pin", asJSON, `{"repository":"docker.io/library/alpine","all":true}`, "BAD_REQUEST"},
		{"POST", "unpin", asJSON, `{"repository":"docker.io/library/alpine","all":true}`, "BAD_REQUEST"},
		{"POST", "pin", asJSON, `{"repository":"docker.io/../x","reference":"1"}`, "BAD_REQUEST"},
		{"POST", "pin", asJSON, `{"repository":"docker.io/x","reference":"../../x"}`, "BAD_REQUEST"},
		{"POST", "remove", asJSON, `{"repository":"docker.io/x"}`, "BAD_REQUEST"},
		{"POST", "remove", asJSON, `{"repository":"docker.io/x","reference":"1","all":true}`, "BAD_REQUEST"},
		{"POST", "remove", asJSON, `{"repository":"docker.io/x","reference":"sha256:` + strings.Repeat("0", 64) + `"}`, "NOT_HELD"},
		{"POST", "remove", asJSON, `{"repository":"docker.io/x","reference":"sha256:0"}`, "BAD_REQUEST"},
		{"POST", "remove", asJSON, `{"repository":"docker.io/x","reference":"1"}`, "NOT_HELD"},
		{"POST", "remove", asJSON, `{"repository":"docker.io/x","all":true}`, "NOT_HELD"},
		{"POST", "unpin", asJSON, `{"repository":"docker.io/x","reference":"1"}`, "NOT_HELD"},
	} {
		w := askAPI(t, api, row.method, row.route, row.contentType, row.body)
		if got := wantRefusal(t, w); got.Code != row.code {
			t.Errorf("%s %s %.60s: %d %s, want %s", row.method, row.route, row.body, w.Code, w.Body, row.code)
		}
	}
}

func TestAnAnswerIsLinesWithAnEnd(t *testing.T) {
	api := newTestAPI(t)
	for _, row := range []struct{ method, route, body, want string }{
		{"POST", "pin", `{"repository":"docker.io/library/x","reference":"1"}`, `{"result":{"repository":"docker.io/library/x","reference":"1","since":"SINCE","bytes":0,"missing":-1}}`},
		{"GET", "pins", "", `{"item":{"repository":"docker.io/library/x","reference":"1","since":"SINCE","bytes":0,"missing":-1}}` + "\n" + `{"result":{"count":1}}`},
		{"POST", "unpin", `{"repository":"docker.io/library/x","reference":"1"}`, `{"result":{"repository":"docker.io/library/x","reference":"1"}}`},
		{"GET", "repositories", "", `{"result":{"count":0}}`},
		{"GET", "images?repository=docker.io/library/x", "", `{"result":{"count":0}}`},
		{"GET", "evictions?n=3", "", `{"result":{"count":0}}`},
		{"POST", "verify", "{}", `{"progress":{"files":0,"bytes":0,"total":0,"damaged":0,"unreadable":0}}` + "\n" + `{"result":{"files":0,"bytes":0,"total":0,"damaged":0,"unreadable":0}}`},
		{"POST", "prune", "{}", `{"progress":{"done":1}}` + "\n" + `{"result":{"blobs":0,"fills":0,"records":0,"bytes":0}}`},
	} {
		contentType := ""
		if row.method == "POST" {
			contentType = "application/json; charset=utf-8"
		}
		w := askAPI(t, api, row.method, row.route, contentType, row.body)
		if diff := cmp.Diff(row.want, withoutTimes(strings.TrimSpace(w.Body.String()))); diff != "" || w.Code != 200 || w.Header().Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("%s: %d %s (-want +got):\n%s", row.route, w.Code, w.Header().Get("Content-Type"), diff)
		}
	}
}

// A name that leads nowhere is refused with where names may lead.
func TestNamesOfNoUpstream(t *testing.T) {
	for _, row := range []struct {
		upstreams []string
		want      string
	}{
		{nil, "ENTREPOT_OWN_NAMES); it has no upstream"},
		{[]string{"ghcr.io", "docker.io"}, "; its upstreams are ghcr.io, docker.io; did you mean docker.io?"},
		{[]string{"ghcr.io", "quay.io"}, "; its upstreams are ghcr.io, quay.io"},
	} {
		api := newTestAPI(t)
		api.cfg.Upstreams = row.upstreams
		got := wantRefusal(t, askAPI(t, api, "GET", "images?repository=dokcer.io/x", "", ""))
		if got.Code != "BAD_REQUEST" || !strings.HasSuffix(got.Message, row.want) {
			t.Errorf("of %v: %+v, want %q", row.upstreams, got, row.want)
		}
	}
}

// One verify at a time: a second one would only slow the disk down.
func TestHeavyWorkIsDoneByOneAtATime(t *testing.T) {
	api := newTestAPI(t)
	for name, route := range routes() {
		if !route.marks.has(alone) {
			continue
		}
		api.alone[name] <- struct{}{}
		if got := wantRefusal(t, askAPI(t, api, route.method, name, "application/json", strings.Repeat("{}", boolInt(route.method == "POST")))); got.Code != "BUSY" {
			t.Errorf("%s beside another: %s", name, got.Code)
		}
		<-api.alone[name]
	}
	for range maxRequests {
		api.asked <- struct{}{}
	}
	if got := wantRefusal(t, askAPI(t, api, "GET", "about", "", "")); got.Code != "BUSY" {
		t.Errorf("one request too many: %s", got.Code)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The work may hold locks of the store while it tells how far it is.
func TestASlowClientDoesNotHoldUpTheWork(t *testing.T) {
	reader, writer := net.Pipe() // which nobody reads
	defer reader.Close()
	w := &stuckWriter{ResponseRecorder: httptest.NewRecorder(), stuck: writer}
	x := &exchange{w: w, r: httptest.NewRequestWithContext(t.Context(), "POST", Prefix+"verify", nil), control: http.NewResponseController(w)}
	err := x.telling(func(tell func(any)) error {
		for n := range 1000 {
			tell(Files{n})
		}
		return writer.Close() // ends the client
	})
	if err != nil {
		t.Error(err)
	}
}

type stuckWriter struct {
	*httptest.ResponseRecorder
	stuck net.Conn
}

func (w *stuckWriter) Write(p []byte) (int, error) { return w.stuck.Write(p) }

func TestReadAnswer(t *testing.T) {
	for _, row := range []struct {
		name, text, want string
		items            int
		err              error // any if errors.ErrUnsupported
	}{
		{"result", `{"result":{"count":0}}`, `{"count":0}`, 0, nil},
		{"items", "{\"item\":1}\n{\"item\":2}\n{\"result\":2}\n", "2", 2, nil},
		{"progress that nobody wants", "{\"progress\":1}\n{\"result\":2}", "2", 0, nil},
		{"an error after items", "{\"item\":1}\n" + `{"error":{"code":"X","message":"y"}}`, "", 1, &Error{"X", "y"}},
		{"cut between lines", "{\"item\":1}\n", "", 1, errCutAnswer},
		{"empty", "", "", 0, errCutAnswer},
		{"cut in a line", "{\"item\":1}\n{\"resu", "", 1, errors.ErrUnsupported},
		{"no JSON", "<html>", "", 0, errors.ErrUnsupported},
		{"a long line", `{"item":"` + strings.Repeat("x", maxLine) + `"}`, "", 0, errors.ErrUnsupported},
	} {
		items := 0
		got, err := readAnswer(strings.NewReader(row.text), &Listener{Item: func(json.RawMessage) error { items++; return nil }})
		if string(got) != row.want || items != row.items || (err != nil) != (row.err != nil) {
			t.Errorf("%s: %s, %d items, %v", row.name, got, items, err)
		}
		if row.err != nil && !errors.Is(row.err, errors.ErrUnsupported) && err.Error() != row.err.Error() {
			t.Errorf("%s: %v, want %v", row.name, err, row.err)
		}
	}
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte(`{"item":{"repository":"docker.io/x","pinned":true}}` + "\n" + `{"result":{"count":1}}`))
	f.Add([]byte(`{"error":{"code":"PINNED","message":"x"}}`))
	f.Add([]byte(`{"progress":null,"item":null,"result":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readAnswer(bytes.NewReader(b), &Listener{Item: func(raw json.RawMessage) error {
			if !json.Valid(raw) {
				t.Errorf("item %q is no JSON", raw)
			}
			return nil
		}})
		if (err == nil) != json.Valid(got) {
			t.Errorf("%q: %q, %v", b, got, err)
		}
	})
}
