package main

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"entrepot/admin"

	"github.com/rs/zerolog"
)

const testToken = "0123456789abcdef"

// Every route, asked by everybody: who may, and that no other gets behind the
// guard. A new route has its rows by itself.
func TestTheAdminAPIAnswersOnlyWhoMayAsk(t *testing.T) {
	for _, row := range []struct {
		name          string
		listen, token string
		host          string
		header        http.Header
		want          int // 418 is what stands behind the guard
	}{
		{name: "this machine", listen: "127.0.0.1:5001", host: "127.0.0.1:5001", want: 418},
		{name: "this machine by name", listen: "localhost:5001", host: "LocalHost:5001", want: 418},
		{name: "this machine by IPv6", listen: "[::1]:5001", host: "[::1]:5001", want: 418},
		{name: "a name that leads here", listen: "127.0.0.1:5001", host: "rebound.example:5001", want: 403},
		{name: "a web page", listen: "127.0.0.1:5001", host: "127.0.0.1:5001", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, want: 403},
		{name: "an old browser's web page", listen: "127.0.0.1:5001", host: "127.0.0.1:5001", header: http.Header{"Origin": {"http://evil.example"}}, want: 403},
		{name: "a page of a neighbour", listen: "127.0.0.1:5001", host: "127.0.0.1:5001", header: http.Header{"Sec-Fetch-Site": {"same-site"}}, want: 403},
		{name: "a name that is configured", listen: "127.0.0.1:5001", host: "cache.internal:5001", want: 418},
		{name: "everywhere without a token", listen: ":5001", host: "127.0.0.1:5001", want: 403},
		{name: "one interface without a token", listen: "192.0.2.1:5001", host: "192.0.2.1:5001", want: 403},
		{name: "everywhere, no token given", listen: ":5001", token: testToken, host: "cache.example:5001", want: 401},
		{name: "everywhere, the token", listen: ":5001", token: testToken, host: "cache.example:5001", header: bearer("Bearer " + testToken), want: 418},
		{name: "scheme in lower case", listen: ":5001", token: testToken, host: "cache.example", header: bearer("bearer " + testToken), want: 418},
		{name: "another token", listen: ":5001", token: testToken, host: "cache.example", header: bearer("Bearer " + testToken + "x"), want: 401},
		{name: "part of the token", listen: ":5001", token: testToken, host: "cache.example", header: bearer("Bearer " + testToken[:8]), want: 401},
		{name: "another scheme", listen: ":5001", token: testToken, host: "cache.example", header: bearer("Basic " + testToken), want: 401},
		{name: "nothing but a scheme", listen: ":5001", token: testToken, host: "cache.example", header: bearer("Bearer "), want: 401},
		{name: "this machine, no token given", listen: "127.0.0.1:5001", token: testToken, host: "127.0.0.1:5001", want: 401},
		{name: "a web page with the token", listen: ":5001", token: testToken, host: "cache.example", header: http.Header{"Authorization": {"Bearer " + testToken}, "Sec-Fetch-Site": {"cross-site"}}, want: 403},
	} {
		t.Run(row.name, func(t *testing.T) {
			pairs := []string{"ENTREPOT_ADMIN_LISTEN=" + row.listen, "ENTREPOT_OWN_NAMES=cache.internal:5000"}
			if row.token != "" {
				pairs = append(pairs, "ENTREPOT_ADMIN_TOKEN="+row.token)
			}
			var log syncBuffer
			guard := newAdminGuard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }), mustLoad(t, pairs...), zerolog.New(&log))
			for _, route := range admin.Routes() {
				r := httptest.NewRequestWithContext(t.Context(), route.Method, route.Path, nil)
				r.Host = row.host
				maps.Copy(r.Header, row.header)
				w := httptest.NewRecorder()
				guard.ServeHTTP(w, r)
				want := row.want
				if w.Code != want {
					t.Errorf("%s %s: %d, want %d", route.Method, route.Path, w.Code, want)
				}
				if w.Code == http.StatusUnauthorized && !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Bearer") {
					t.Errorf("%s: 401 without a challenge", route.Path)
				}
				if w.Code != http.StatusTeapot && (!strings.HasPrefix(w.Body.String(), `{"error":{"code":"`) || w.Header().Get("Content-Type") != "application/json") {
					t.Errorf("%d %s: want an error as JSON", w.Code, w.Body)
				}
			}
			if n := strings.Count(log.String(), "\n"); n > 1 || strings.Contains(log.String(), testToken) {
				t.Errorf("the log has %d lines:\n%s", n, &log)
			}
		})
	}
}

// TestTheAdminListenerTellsStrangersNothing: where other machines can reach it only
// probes are answered without the token; on loopback metrics and profiles are, to
// who asks by a name that no stranger decides about and comes from no web page. A
// new route fails here until it is among those.
func TestTheAdminListenerTellsStrangersNothing(t *testing.T) {
	tell := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	const probe, told, api = "a probe", "what only tells", "the API"
	kinds := map[string]string{"/healthz": probe, "/readyz": probe, "/metrics": told, profilePrefix: told, admin.Prefix: api}
	slow := map[string]bool{profilePrefix + "profile": true, profilePrefix + "trace": true}
	var ready readiness
	ready.ready.Store(true)
	for _, listen := range []string{"127.0.0.1:5001", ":5001", "192.0.2.1:5001"} {
		for _, token := range []string{"", testToken} {
			pairs := []string{"ENTREPOT_ADMIN_LISTEN=" + listen}
			if token != "" {
				pairs = append(pairs, "ENTREPOT_ADMIN_TOKEN="+token)
			}
			cfg := mustLoad(t, pairs...)
			guard := func(h http.Handler) http.Handler { return newTellingGuard(h, cfg, zerolog.Nop()) }
			routes := adminRoutes(tell, &ready, newAdminGuard(tell, cfg, zerolog.Nop()), guard, unseen)
			for path := range profiles() {
				routes[path] = nil
			}
			for path := range routes {
				kind := kinds[path]
				if kind == "" && strings.HasPrefix(path, profilePrefix) {
					kind = told
				}
				if kind == "" {
					t.Fatalf("%s has no row: who may use it?", path)
				}
				for _, who := range []struct {
					name, host string
					header     http.Header
					token      bool // shown, and the right one
					stranger   bool
				}{
					{name: "here", host: "127.0.0.1:5001"},
					{name: "here, by name", host: "localhost:5001"},
					{name: "a wrong token", host: "127.0.0.1:5001", header: bearer("Bearer " + testToken + "x")},
					{name: "the token", host: "127.0.0.1:5001", header: bearer("Bearer " + testToken), token: true},
					{name: "a name that leads here", host: "rebound.example:5001", stranger: true},
					{name: "a web page", host: "127.0.0.1:5001", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, stranger: true},
					{name: "an old browser's web page", host: "127.0.0.1:5001", header: http.Header{"Origin": {"http://evil.example"}}, stranger: true},
				} {
					shown := token != "" && who.token
					isOpen := kind == probe || !who.stranger && (shown || listen == "127.0.0.1:5001" && (kind == told || token == ""))
					if isOpen && slow[path] {
						continue
					}
					r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
					r.Host = who.host
					maps.Copy(r.Header, who.header)
					w := httptest.NewRecorder()
					muxOf(adminRoutes(tell, &ready, newAdminGuard(tell, cfg, zerolog.Nop()), guard, unseen)).ServeHTTP(w, r)
					if got := w.Code == http.StatusOK || w.Code == http.StatusTeapot; got != isOpen {
						t.Errorf("at %s, token %q: %s asked by %s: %d", listen, token, path, who.name, w.Code)
					}
				}
			}
		}
	}
}

func bearer(value string) http.Header { return http.Header{"Authorization": {value}} }
