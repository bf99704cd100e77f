package proxy

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"entrepot/oci"
)

// Whatever a stranger sends: no panic, one record, a status that we know, and
// an error in OCI JSON.
func FuzzRequest(f *testing.F) {
	for _, s := range []struct{ method, path, query, rng, match string }{
		{"GET", "/v2/", "", "", ""},
		{"HEAD", byTag(), "ns=docker.io", "", ""},
		{"GET", byDigest(), "", "bytes=0-", `"` + manifestDigest.String() + `"`},
		{"GET", theBlob(), "", "bytes=1-2,-3", ""},
		{"GET", theBlob(), "ns=%zz", "bytes=9-1", "*"},
		{"POST", "/v2/library/hello/blobs/uploads/", "digest=x", "", ""},
		{"GET", "/v2/library/hello/tags/list", "n=1&last=v1", "", ""},
		{"GET", "/v2/library/hello/referrers/" + manifestDigest.String(), "artifactType=%22", "", ""},
		{"GET", "/v2/_catalog", "n=0", "", ""},
		{"GET", "/v2/../../etc/passwd", "", "", ""},
		{"TRACE", "//v2/%2e%2e/", "", "", ""},
	} {
		f.Add(s.method, s.path, s.query, s.rng, s.match)
	}
	statuses := map[int]bool{200: true, 206: true, 304: true, 400: true, 404: true, 405: true, 416: true}
	g := helloRegistry(f)
	f.Fuzz(func(t *testing.T, method, path, query, rng, match string) {
		seen := 0
		h := New(g, Config{Names: testNames(), Catalog: g, Observe: func(_ context.Context, r Record) {
			if seen++; r.Err != nil && r.Status < 400 {
				t.Errorf("recorded %d with %v", r.Status, r.Err)
			}
		}})
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, &http.Request{
			Method: method, URL: &url.URL{Path: path, RawQuery: query}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Range": {rng}, "If-None-Match": {match}}, Body: http.NoBody, Host: "cache.example", RemoteAddr: "192.0.2.1:1234",
		})
		g.took()
		resp := rec.Result()
		if seen != 1 {
			t.Errorf("observed %d times", seen)
		}
		if !statuses[resp.StatusCode] {
			t.Errorf("status %d", resp.StatusCode)
		}
		for name, values := range resp.Header {
			if strings.ContainsAny(name+strings.Join(values, ""), "\r\n") {
				t.Errorf("%s: %q", name, values)
			}
		}
		checkBody(t, method, resp)
	})
}

func checkBody(t *testing.T, method string, resp *http.Response) {
	t.Helper()
	body, _ := io.ReadAll(resp.Body)
	switch {
	case method == http.MethodHead || resp.StatusCode == http.StatusNotModified:
		if len(body) > 0 {
			t.Errorf("%d bytes that nobody may send", len(body))
		}
		return
	case resp.ContentLength != int64(len(body)):
		t.Errorf("Content-Length %d, %d bytes", resp.ContentLength, len(body))
	}
	contentType := resp.Header.Get("Content-Type")
	if resp.StatusCode >= 400 {
		var e struct {
			Errors []struct{ Code string }
		}
		if err := json.Unmarshal(body, &e); err != nil || len(e.Errors) != 1 || contentType != "application/json" {
			t.Errorf("no OCI error: %s %q", contentType, body)
		}
	}
	if mediaType, params, err := mime.ParseMediaType(contentType); err == nil && mediaType == "multipart/byteranges" {
		mr := multipart.NewReader(strings.NewReader(string(body)), params["boundary"])
		for {
			p, err := mr.NextRawPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatalf("multipart: %v in %q", err, body)
			}
			if !strings.HasPrefix(p.Header.Get("Content-Range"), "bytes ") {
				t.Errorf("part without Content-Range: %v", p.Header)
			}
		}
	}
}

// Our reading of a query agrees with net/url's, wherever net/url takes it.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "ns=docker.io", "n=1&last=a%20b", "ns=&ns=x", "n&n=2", "a=b;c=d", "artifactType=%zz", "+ns=1", "n%73=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := parseQuery(raw)
		want, urlErr := url.ParseQuery(raw)
		if err != nil {
			if urlErr == nil || oci.CodeOf(err) != oci.NameInvalid {
				t.Fatalf("%q: refused with %v", raw, err)
			}
			return
		}
		if urlErr != nil {
			return // a semicolon, which means nothing to us
		}
		for name, value := range map[string]string{"ns": got.ns, "n": got.n, "last": got.last, "artifactType": got.artifactType} {
			first := want.Get(name)
			if name != "n" && first == "" && len(want[name]) > 1 {
				continue // we take the first that is not empty
			}
			if value != first {
				t.Errorf("%q: %s is %q, want %q", raw, name, value, first)
			}
		}
		if got.hasN != want.Has("n") {
			t.Errorf("%q: has n: %v", raw, got.hasN)
		}
	})
}
