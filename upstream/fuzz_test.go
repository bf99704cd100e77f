package upstream

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/ratelimit"
)

// A realm decides who is dialled, and who may see a password.
func FuzzRealm(f *testing.F) {
	for _, s := range []string{"https://auth.docker.io/token", "http://auth.docker.io/token", "https://u:p@auth.docker.io", "//auth", "https:///x", "https://a.test:443#x", "https://registry.test@evil.test/", `https://evil.test\@registry.test/`, "https://[::1]:1/", "ftp://x"} {
		f.Add(s)
	}
	from := &url.URL{Scheme: "https", Host: "registry.test"}
	f.Fuzz(func(t *testing.T, realm string) {
		u, err := parseRealm(from, realm)
		if err != nil {
			if oci.CodeOf(err) != oci.BadUpstream {
				t.Errorf("%q: %v", realm, err)
			}
			return
		}
		if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
			t.Errorf("%q is taken as %#v", realm, u)
		}
		// What was judged is where the request goes: written and read again it
		// has the same host, and only hosts of our domain see the password.
		again, err := url.Parse(u.String())
		if err != nil || originOf(again) != originOf(u) {
			t.Errorf("%q leads to %q, or to %v (%v)", realm, originOf(u), again, err)
		}
		if host := strings.ToLower(u.Hostname()); related("registry.test", host) && host != "registry.test" && !strings.HasSuffix(host, ".registry.test") {
			t.Errorf("%q may see the password of registry.test", host)
		}
	})
}

// FuzzAnswers has an upstream, or its token service, answer anything to each
// question.
func FuzzAnswers(f *testing.F) {
	const index = "application/vnd.oci.image.index.v1+json"
	d := ocitest.Blob(1, 10).Digest
	for _, s := range []struct {
		status, contentType, body string
		token                     bool
	}{
		{"200", "application/json", `{"name":"a","tags":["1","2","~"]}`, false},
		{"200", index, `{"schemaVersion":2,"mediaType":"` + index + `","manifests":[{"digest":"` + d.String() + `","size":3,"annotations":{"a":"b"}}]}`, false},
		{"200", "application/json", `{"token":"abc","expires_in":"60"}`, true},
		{"200", "application/json", `{"access_token":"a\nb","expires_in":1e400}`, true},
		{"429", "application/json", `{"errors":[{"code":"TOOMANYREQUESTS","message":"x"}]}`, false},
		{"404", "text/html", `<html>`, false},
		{"206", index, `{}`, true},
	} {
		f.Add(s.status, s.contentType, []byte(s.body), s.token)
	}
	var answer atomic.Pointer[http.HandlerFunc]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) }))
	f.Cleanup(server.Close)
	base := localhost(server.URL)
	statuses := map[string]int{"200": 200, "206": 206, "301": 301, "401": 401, "403": 403, "404": 404, "405": 405, "416": 416, "429": 429, "500": 500, "503": 503}
	f.Fuzz(func(t *testing.T, status, contentType string, body []byte, token bool) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case token && r.URL.Path != "/token" && r.Header.Get("Authorization") == "":
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+base+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			case token && r.URL.Path != "/token":
				if strings.ContainsAny(r.Header.Get("Authorization"), "\r\n\x00") {
					t.Errorf("the token that was sent is %q", r.Header.Get("Authorization"))
				}
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header()["Content-Type"] = []string{contentType}
			if code := statuses[status]; code != 0 {
				w.WriteHeader(code)
			}
			_, _ = w.Write(body)
		})
		answer.Store(&h)
		c, err := newClient(Config{Name: "docker.io", URL: base, Limits: ratelimit.Limits{Rate: -1}}, dialer{}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		coded := func(question string, err error) {
			if err != nil && oci.CodeOf(err) == oci.Internal {
				t.Errorf("%s: an error without a place in the table: %v", question, err)
			}
		}
		list, _, err := c.Tags(t.Context(), alpine, oci.Page{N: -1}, oci.Ask{})
		coded("tags", err)
		for _, tag := range list.Tags {
			if !oci.ValidTag(tag) {
				t.Errorf("the tag %q passed", tag)
			}
		}
		referrers, _, err := c.Referrers(t.Context(), alpine, d, "", oci.Ask{})
		coded("referrers", err)
		for _, r := range referrers.Manifests {
			if r.Digest.IsZero() {
				t.Errorf("a referrer without a digest passed: %+v", r)
			}
		}
		if res, _, err := c.Resolve(t.Context(), alpine, "1", oci.Ask{}); err == nil && (res.Digest.IsZero() || res.Size < -1) {
			t.Errorf("resolved to %+v", res)
		} else {
			coded("resolve", err)
		}
		if m, _, err := c.Manifest(t.Context(), alpine, d, oci.Ask{}); err == nil && m.Digest != d {
			t.Errorf("the manifest is %s", m.Digest)
		} else {
			coded("manifest", err)
		}
	})
}
