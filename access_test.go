package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/admin"
	"entrepot/internal/ocitest"
	"entrepot/oci"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"
)

const testTokenKey = "0123456789abcdef0123456789abcdef"

const testRules = `
groups:
  admins: [root]
rules:
  - who: [alice]
    repositories: [docker.io/library/app, docker.io/library/absent]
  - who: ["group:admins"]
    repositories: ["**"]
  - who: [anonymous]
    repositories: ["docker.io/public/*"]
`

// usersFile is an htpasswd file, at the least cost.
func usersFile(t *testing.T, users map[string]string) []byte {
	t.Helper()
	var b []byte
	for name, password := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		b = fmt.Appendf(b, "%s:%s\n", name, hash)
	}
	return b
}

// protected is a program with users and rights, and two upstreams.
type protected struct {
	*program
	hub, other *ocitest.Hub
	app        ocitest.Image
	dir        string // with the files users and rules
	pairs      []string
}

func startProtected(t *testing.T, pairs ...string) *protected {
	t.Helper()
	return startProtectedBefore(t, ocitest.Habits{}, pairs...)
}

// startProtectedBefore stands before upstreams of these habits.
func startProtectedBefore(t *testing.T, habits ocitest.Habits, pairs ...string) *protected {
	t.Helper()
	upstream := ocitest.Config{Habits: habits}
	p := &protected{hub: ocitest.NewHub(t, upstream), other: ocitest.NewHub(t, upstream), app: ocitest.RandomImage(1, 3000, 300), dir: t.TempDir()}
	for _, name := range []string{"library/app", "library/secret", "public/tool"} {
		p.hub.Push(name, "1", p.app)
	}
	p.other.Push("team/app", "1", p.app)
	users, rules := filepath.Join(p.dir, "users"), filepath.Join(p.dir, "rules")
	replaceFile(t, users, usersFile(t, map[string]string{"alice": "wonderland", "root": "toor"}))
	replaceFile(t, rules, []byte(testRules))
	p.pairs = append([]string{
		"ENTREPOT_UPSTREAMS=docker.io,ghcr.io", "ENTREPOT_UPSTREAM_1_NAME=ghcr.io", "ENTREPOT_UPSTREAM_1_URL=" + p.other.URL(),
		"ENTREPOT_USERS_FILE=" + users, "ENTREPOT_ACCESS_FILE=" + rules,
	}, pairs...)
	if !slices.ContainsFunc(pairs, func(pair string) bool { return strings.HasPrefix(pair, "ENTREPOT_TOKEN_KEY") }) {
		p.pairs = append(p.pairs, "ENTREPOT_TOKEN_KEY="+testTokenKey)
	}
	p.program = startProgram(t, p.hub, p.pairs...)
	return p
}

// credential is what a request brings; nil for nothing.
type credential func(*http.Request)

func login(user, password string) credential {
	return func(r *http.Request) { r.SetBasicAuth(user, password) }
}

// twice is a credential in a header of its own beside itself.
func twice(c credential) credential {
	return func(r *http.Request) {
		c(r)
		r.Header["Authorization"] = append(r.Header["Authorization"], r.Header["Authorization"]...)
	}
}

func token(text string) credential {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+text) }
}

func (p *protected) ask(t *testing.T, client *http.Client, method, path string, who credential) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, p.registry+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if who != nil {
		who(r)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

// newToken asks for a token as clients do.
func (p *protected) newToken(t *testing.T, client *http.Client, who credential, scopes ...string) string {
	t.Helper()
	status, body, _ := p.ask(t, client, http.MethodGet, "/token?"+url.Values{"service": {"entrepot"}, "scope": scopes}.Encode(), who)
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK || answer.Token == "" {
		t.Fatalf("no token: %d %s", status, body)
	}
	return answer.Token
}

// forge makes a token, by default a good one of alice's for library/app.
func forge(t *testing.T, change func(claims map[string]any), algorithm jose.SignatureAlgorithm, key any) string {
	t.Helper()
	now := time.Now()
	claims := map[string]any{
		"iss": "entrepot", "aud": "entrepot", "sub": "alice", "repositories": []string{"docker.io/library/app"},
		"nbf": now.Unix(), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
	}
	if change != nil {
		change(claims)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func signingKey(text string) []byte {
	sum := sha256.Sum256([]byte("entrepot token\n" + text))
	return sum[:]
}

// stopped ends the program before its test ends.
func (p *protected) stopped(t *testing.T) {
	t.Helper()
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
}

// routesBeside are those of the registry's address that are not the API's.
var routesBeside = map[string]string{tokenRoute: "/token", healthzRoute: "/healthz"}

// registryRoutes are paths of each route at the registry's address, of alice's
// repository where the route has one. A new route fails here until it has a row.
func registryRoutes(t *testing.T, app ocitest.Image) map[string][]string {
	t.Helper()
	digest := app.Digest.String()
	rows := map[string][]string{
		oci.Ping.String():        {"/v2/", "/v2"},
		oci.CatalogKind.String(): {"/v2/_catalog"},
	}
	for kind, routes := range routesOf(app) {
		for _, route := range routes {
			rows[kind.String()] = append(rows[kind.String()], "/v2/library/app/"+route)
		}
	}
	manifest := oci.ManifestKind.String()
	rows[manifest] = append(rows[manifest], "/v2/app/manifests/"+digest, "/v2/docker.io/app/manifests/1", "/v2/app/manifests/1?ns=docker.io")
	for kind, path := range routesBeside {
		rows[kind] = []string{path}
	}
	for _, kind := range kindLabels {
		if len(rows[kind]) == 0 && kind != none && kind != readyzRoute {
			t.Errorf("the route %s has no row: who may use it?", kind)
		}
	}
	return rows
}

// clientFrom connects from an address of its own, 127.0.1.n, for whom failures of
// others do not count.
func clientFrom(t *testing.T, n int) *http.Client {
	t.Helper()
	client := newClient(t)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n))}}
	client.Transport.(*http.Transport).DialContext = dialer.DialContext
	return client
}

// Every route, asked by everybody.
func TestAccessMatrix(t *testing.T) {
	p := startProtected(t)
	client := newClient(t)
	const scope = "repository:library/app:pull"
	who := map[string]credential{
		"nobody":                      nil,
		"wrong password":              login("alice", "hunter2"),
		"no such user":                login("mallory", "wonderland"),
		"no password":                 login("alice", ""),
		"malformed":                   func(r *http.Request) { r.Header.Set("Authorization", "Basic !") },
		"unknown scheme":              func(r *http.Request) { r.Header.Set("Authorization", "Digest x") },
		"two headers":                 twice(login("alice", "wonderland")),
		"expired token":               token(forge(t, func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() }, jose.HS256, signingKey(testTokenKey))),
		"token by another key":        token(forge(t, nil, jose.HS256, signingKey("another"))),
		"token of another repository": token(p.newToken(t, client, login("alice", "wonderland"), "repository:library/other:pull")),
		"token of another upstream":   token(p.newToken(t, client, login("alice", "wonderland"), "repository:ghcr.io/library/app:pull")),
		"token without scope":         token(p.newToken(t, client, login("alice", "wonderland"))),
		"token of nobody":             token(p.newToken(t, client, nil, scope)),
		"token":                       token(p.newToken(t, client, login("alice", "wonderland"), scope)),
		"token with the catalog":      token(p.newToken(t, client, login("alice", "wonderland"), scope+" registry:catalog:*")),
		"alice":                       login("alice", "wonderland"),
		"admin":                       login("root", "toor"),
	}
	from := 0 // no address asks more often than its failures are answered with 401
	for kind, paths := range registryRoutes(t, p.app) {
		for _, path := range paths {
			for _, name := range slices.Sorted(maps.Keys(who)) {
				from++
				client := clientFrom(t, 1+from%250)
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					status, body, header := p.ask(t, client, method, path, who[name])
					if want := matrixWant(name, kind, method); status != want {
						t.Errorf("%s %s by %s: %d %s, want %d", method, path, name, status, body, want)
					}
					challenge := `Bearer realm="` + p.registry + `/token",service="entrepot"`
					if kind == tokenRoute {
						challenge = "Basic realm="
					}
					if (status == http.StatusUnauthorized) != strings.HasPrefix(header.Get("Www-Authenticate"), challenge) {
						t.Errorf("%s %s by %s: %d with the challenge %q", method, path, name, status, header.Get("Www-Authenticate"))
					}
				}
			}
		}
	}
	for name, credential := range who {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/", nil)
		if credential != nil {
			credential(r)
		}
		_, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if parts := strings.Split(secret, "."); len(secret) > 8 && strings.Contains(p.log.String(), parts[len(parts)-1]) {
			t.Errorf("the credential of %s is in the log", name)
		}
	}
	for _, path := range []string{"/", "/metrics", "/token/x", "/readyz", profilePrefix, admin.Prefix} {
		if status, _, _ := p.ask(t, client, http.MethodGet, path, login("root", "toor")); status != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, status)
		}
	}
}

// matrixWant is the status that a route answers to who is called so.
func matrixWant(name, kind, method string) int {
	const ok, login = http.StatusOK, http.StatusUnauthorized
	isToken := strings.HasPrefix(name, "token") && name != "token by another key"
	switch {
	case kind == healthzRoute:
		return ok
	case kind == tokenRoute && method != http.MethodGet:
		return http.StatusMethodNotAllowed
	case kind == tokenRoute: // no token gets another one
		if name == "nobody" || name == "alice" || name == "admin" {
			return ok
		}
		return login
	case kind == oci.UploadKind.String():
		return http.StatusMethodNotAllowed
	case name == "alice" || name == "admin" || name == "token with the catalog":
		return ok
	case name == "nobody" && kind == oci.CatalogKind.String(): // which shows what nobody may see
		return ok
	case kind == oci.Ping.String() && isToken:
		return ok
	case name == "token" && kind != oci.CatalogKind.String():
		return ok
	}
	return login
}

// Each request of a client has its line in the log, its series and its span, by
// whatever route: also those that are not the API's, and who asked for a token.
func TestEveryRouteIsSeen(t *testing.T) {
	c := newCollector(t)
	p := startProtected(t, "ENTREPOT_ACCESS_LOG=true", "ENTREPOT_TRACE_ENDPOINT="+c.URL, "ENTREPOT_TRACE_RATIO=100%")
	client := newClient(t)
	paths := map[string]string{readyzRoute: p.admin + "/readyz"}
	for kind, rows := range registryRoutes(t, p.app) {
		paths[kind] = p.registry + rows[0]
	}
	for _, address := range paths {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("alice", "wonderland")
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for kind := range paths {
		for counted := ""; !strings.Contains(counted, `entrepot_requests_total{kind="`+kind+`"`) && t.Context().Err() == nil; { // it comes after the answer
			_, counted, _ = get(t, client, p.admin+"/metrics")
		}
	}
	p.stopped(t)
	for kind := range paths {
		line := regexp.MustCompile(`.*"kind":"` + kind + `",.*"status":[245]0[0-9],.*"message":"request".*`).FindString(p.log.String())
		if line == "" {
			t.Errorf("%s has no line", kind)
		}
		if kind == tokenRoute && !strings.Contains(line, `"user":"alice"`) {
			t.Errorf("the token's line does not say whose it is: %s", line)
		}
		if !c.knows("entrepot.kind", kind) {
			t.Errorf("%s is not traced", kind)
		}
	}
}

// What may not be seen looks like what does not exist, whether it exists, is
// held, or neither, by each route and whatever upstream says of what it lacks; and
// nothing is asked to find out.
func TestDeniedLooksLikeMissing(t *testing.T) {
	for name, habits := range map[string]ocitest.Habits{
		"401, as Docker Hub":             {},
		"403, as GHCR":                   {DenyToken: http.StatusForbidden, NoExpiresIn: true},
		"NAME_UNKNOWN":                   {NameUnknown: true, Referrers: true},
		"NAME_UNKNOWN, no referrers":     {NameUnknown: true},
		"NAME_UNKNOWN to whoever asks":   {Auth: ocitest.NoAuth, Referrers: true},
		"whoever asks, and no referrers": {Auth: ocitest.NoAuth},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProtectedBefore(t, habits)
			client := newClient(t)
			p.pull(t, asUser(t, "root", "toor"), "library/secret", "1", p.app)
			alice := login("alice", "wonderland")
			bearer := token(p.newToken(t, client, alice, "repository:library/secret:pull", "repository:library/nothing:pull", "repository:ghcr.io/team/app:pull", "repository:ghcr.io/team/nothing:pull", "repository:library/absent:pull"))
			for kind, routes := range routesOf(p.app) {
				for _, route := range routes {
					for _, method := range []string{http.MethodGet, http.MethodHead} {
						for who, credential := range map[string]credential{"password": alice, "token": bearer} {
							p.wantAlike(t, client, kind, method, route, who, credential)
						}
					}
				}
			}
		})
	}
}

// routesOf are the routes of a repository, each below its name.
func routesOf(app ocitest.Image) map[oci.Kind][]string {
	digest, blob := app.Digest.String(), app.Blobs[0].Digest.String()
	return map[oci.Kind][]string{
		oci.ManifestKind:  {"manifests/1", "manifests/" + digest},
		oci.BlobKind:      {"blobs/" + blob},
		oci.TagsKind:      {"tags/list", "tags/list?n=0", "tags/list?n=1&last=0"},
		oci.ReferrersKind: {"referrers/" + digest, "referrers/" + digest + "?artifactType=x/y"},
		oci.UploadKind:    {"blobs/uploads/"},
	}
}

// wantAlike compares the answers about what may not be seen with that about what
// does not exist. Each names what was asked for, as it was asked for.
func (p *protected) wantAlike(t *testing.T, client *http.Client, kind oci.Kind, method, route, name string, who credential) {
	t.Helper()
	answer := func(repo string) string {
		status, body, header := p.ask(t, client, method, "/v2/"+repo+"/"+route, who)
		header.Del("Date")
		if length, err := strconv.Atoi(header.Get("Content-Length")); err == nil && status >= 400 {
			header.Set("Content-Length", strconv.Itoa(length-len(repo)))
		}
		return fmt.Sprintf("%d %s %v", status, strings.ReplaceAll(body, repo, "NAME"), header)
	}
	want := answer("library/absent") // which she might see
	status := map[oci.Kind]string{oci.ReferrersKind: "200 ", oci.UploadKind: "405 "}[kind]
	if !strings.HasPrefix(want, cmp.Or(status, "404 ")) {
		t.Fatalf("%s %s of what does not exist: %s", method, route, want)
	}
	p.hub.Reset()
	p.other.Reset()
	for _, repo := range []string{"library/secret", "library/nothing", "ghcr.io/team/app", "ghcr.io/team/nothing"} {
		if got := answer(repo); got != want {
			t.Errorf("%s %s of %s by %s:\n%s\nwant, as of what does not exist:\n%s", method, route, repo, name, got, want)
		}
	}
	if asked := append(p.hub.Lines(), p.other.Lines()...); len(asked) > 0 {
		t.Errorf("to deny it upstreams were asked %v", asked)
	}
}

// asUser is a client that brings a password with each request.
func asUser(t *testing.T, user, password string) *http.Client {
	t.Helper()
	client := newClient(t)
	client.Transport = withLogin{client.Transport, user, password}
	return client
}

type withLogin struct {
	http.RoundTripper
	user, password string
}

func (l withLogin) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(l.user, l.password)
	return l.RoundTripper.RoundTrip(r)
}

func TestListsShowWhatMayBeRead(t *testing.T) {
	p := startProtected(t)
	for _, name := range []string{"library/app", "library/secret", "public/tool", "ghcr.io/team/app"} {
		p.pull(t, asUser(t, "root", "toor"), name, "1", p.app)
	}
	client := newClient(t)
	for name, row := range map[string]struct {
		who  credential
		want []string
	}{
		"nobody": {nil, []string{"docker.io/public/tool"}},
		"alice":  {login("alice", "wonderland"), []string{"docker.io/library/app", "docker.io/public/tool"}},
		"admin":  {login("root", "toor"), []string{"docker.io/library/app", "docker.io/library/secret", "docker.io/public/tool", "ghcr.io/team/app"}},
	} {
		var got []string
		for path := "/v2/_catalog?n=1"; path != ""; { // page by page
			status, body, header := p.ask(t, client, http.MethodGet, path, row.who)
			var page struct{ Repositories []string }
			if err := json.Unmarshal([]byte(body), &page); err != nil || status != http.StatusOK || len(page.Repositories) > 1 {
				t.Fatalf("%s: %d %s", name, status, body)
			}
			got = append(got, page.Repositories...)
			path = ""
			if m := regexp.MustCompile(`^<([^>]+)>`).FindStringSubmatch(header.Get("Link")); m != nil {
				path = m[1]
			}
		}
		if diff := gocmp.Diff(row.want, got); diff != "" {
			t.Errorf("%s sees (-want +got):\n%s", name, diff)
		}
	}
}

// Who somebody is holds at each address: over TLS by certificate or password, and
// without it by password alone.
func TestEachAddressAsksWhoItIs(t *testing.T) {
	ca, dir := ocitest.NewCA(), t.TempDir()
	chain, key := pairFiles(t, dir, "tls", ca.Certificate())
	p := startProtected(t, "ENTREPOT_TLS_CERT_FILE="+chain, "ENTREPOT_TLS_KEY_FILE="+key, "ENTREPOT_TLS_CLIENT_CA_FILE="+writeFile(t, string(ca.PEM)), "ENTREPOT_PLAIN_LISTEN=127.0.0.1:0")
	plain := *p.program
	plain.registry = p.plain
	const mine, others = "/v2/library/app/manifests/1", "/v2/library/secret/manifests/1"
	for name, row := range map[string]struct {
		at           *program
		client       *http.Client
		who          credential
		mine, others int
	}{
		"nobody over TLS":                    {p.program, tlsClient(t, ca, true), nil, 401, 401},
		"nobody in clear":                    {&plain, newClient(t), nil, 401, 401},
		"alice's password over TLS":          {p.program, tlsClient(t, ca, true), login("alice", "wonderland"), 200, 404},
		"alice's password in clear":          {&plain, newClient(t), login("alice", "wonderland"), 200, 404},
		"alice's certificate":                {p.program, tlsClient(t, ca, true, ca.Client("alice")), nil, 200, 404},
		"alice's certificate by HTTP/1.1":    {p.program, tlsClient(t, ca, false, ca.Client("alice")), nil, 200, 404},
		"a group's certificate":              {p.program, tlsClient(t, ca, true, ca.Client("eve", "admins")), nil, 200, 200},
		"somebody's certificate":             {p.program, tlsClient(t, ca, true, ca.Client("mallory")), nil, 404, 404},
		"a certificate and a wrong password": {p.program, tlsClient(t, ca, true, ca.Client("alice")), login("alice", "hunter2"), 401, 401},
	} {
		at := &protected{program: row.at}
		for path, want := range map[string]int{mine: row.mine, others: row.others} {
			if status, body, _ := at.ask(t, row.client, http.MethodGet, path, row.who); status != want {
				t.Errorf("%s: %s: %d %s, want %d", name, path, status, body, want)
			}
		}
	}
}

// Who came in by an authority that is not there any more is nobody, on a connection
// that stands too; where a certificate is required, with users or without, that
// connection ends. An authority that was issued anew is the same one.
func TestAConnectionDoesNotOutliveItsAuthority(t *testing.T) {
	type starter func(t *testing.T, pairs ...string) *protected
	alone := func(t *testing.T, pairs ...string) *protected {
		t.Helper()
		hub := ocitest.NewHub(t, ocitest.Config{})
		hub.Push("library/app", "1", ocitest.RandomImage(1, 3000))
		return &protected{program: startProgram(t, hub, pairs...), hub: hub}
	}
	required := "ENTREPOT_TLS_CLIENT_AUTH=required"
	for name, row := range map[string]struct {
		start  starter
		more   []string
		status int
		closed bool
	}{
		"users":                       {startProtected, nil, http.StatusUnauthorized, false},
		"users, and it is required":   {startProtected, []string{required}, http.StatusForbidden, true},
		"nobody, and it is required":  {alone, []string{required}, http.StatusForbidden, true},
		"nobody, and it may be there": {alone, nil, http.StatusOK, false}, // as without any
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %v", name, h2), func(t *testing.T) {
				ca, next, dir := ocitest.NewCA(), ocitest.NewCA(), t.TempDir()
				chain, key := pairFiles(t, dir, "tls", ca.Certificate())
				clients := filepath.Join(dir, "clients.crt")
				replaceFile(t, clients, ca.PEM)
				p := row.start(t, append(row.more, "ENTREPOT_TLS_CERT_FILE="+chain, "ENTREPOT_TLS_KEY_FILE="+key, "ENTREPOT_TLS_CLIENT_CA_FILE="+clients, "ENTREPOT_LOG_LEVEL=info")...)
				client := tlsClient(t, ca, h2, ca.Client("alice"))
				const path = "/v2/library/app/manifests/1"
				reload := func(authority []byte) {
					told := strings.Count(p.log.String(), `"what":"TLS certificate"`)
					replaceFile(t, clients, authority)
					p.log.awaitTimes(t, `"what":"TLS certificate"`, told+1)
				}
				if status, body, _ := p.ask(t, client, http.MethodGet, path, nil); status != http.StatusOK {
					t.Fatalf("%d %s", status, body)
				}
				reload(ca.Reissued().PEM)
				if status, body, _ := p.ask(t, client, http.MethodGet, path, nil); status != http.StatusOK {
					t.Errorf("when the authority was issued anew: %d %s", status, body)
				}
				reload(next.PEM)
				if status, body, _ := p.ask(t, client, http.MethodGet, path, nil); status != row.status {
					t.Errorf("when it is another one: %d %s, want %d", status, body, row.status)
				}
				if !row.closed {
					return
				}
				if resp, err := client.Get(p.registry + path); err == nil {
					resp.Body.Close()
					t.Errorf("the connection was not closed: %s", resp.Status)
				}
			})
		}
	}
}

// Rights are for what a repository has, by its upstream's word. That a manifest in
// another one lists a layer is not that: anybody may push such a manifest.
func TestWhatIsHeldForOneRepositoryIsNotReadThroughAnother(t *testing.T) {
	p := startProtected(t)
	secret := ocitest.RandomImage(2, 3000, 300)
	p.other.Push("team/secret", "1", secret)
	p.pull(t, asUser(t, "root", "toor"), "ghcr.io/team/secret", "1", secret)
	layer := secret.Blobs[len(secret.Blobs)-1]
	claim := ocitest.Bytes("application/vnd.oci.image.manifest.v1+json", fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, layer.Digest, layer.Size))
	p.hub.PushManifest("public/claim", "1", claim)
	client := newClient(t)
	if status, body, _ := p.ask(t, client, http.MethodGet, "/v2/public/claim/manifests/1", nil); status != http.StatusOK {
		t.Fatalf("the manifest: %d %s", status, body)
	}
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		if status, _, _ := p.ask(t, client, method, "/v2/public/claim/blobs/"+layer.Digest.String(), nil); status != http.StatusNotFound {
			t.Errorf("%s of the secret layer by nobody: %d, want 404", method, status)
		}
	}
}

// While a client pulls, users and rights change: no request of hers fails, and
// who is new may log in. Tokens outlive a restart, since their key is kept.
func TestUsersAndRightsChangeUnderLoad(t *testing.T) {
	t.Parallel()
	p := startProtected(t, "ENTREPOT_LOG_LEVEL=info")
	client := newClient(t)
	path := "/v2/library/app/manifests/1"
	done := make(chan struct{})
	var clients sync.WaitGroup
	for _, who := range []credential{login("alice", "wonderland"), token(p.newToken(t, client, login("alice", "wonderland"), "repository:library/app:pull"))} {
		clients.Go(func() {
			client := newClient(t)
			for !isOver(done) {
				if status, body, _ := p.ask(t, client, http.MethodGet, path, who); status != http.StatusOK {
					t.Errorf("%d %s", status, body)
					return
				}
			}
		})
	}
	hash, err := bcrypt.GenerateFromPassword([]byte("builder"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	users := usersFile(t, map[string]string{"alice": "wonderland", "root": "toor"})
	replaceFile(t, filepath.Join(p.dir, "users"), fmt.Appendf(users, "bob:%s\n", hash))
	p.log.await(t, `"what":"users"`)
	replaceFile(t, filepath.Join(p.dir, "rules"), []byte(testRules+"  - {who: [bob], repositories: ['docker.io/library/app']}\n"))
	p.log.await(t, `"what":"rights"`)
	if status, body, _ := p.ask(t, client, http.MethodGet, path, login("bob", "builder")); status != http.StatusOK {
		t.Errorf("bob, who is new: %d %s", status, body)
	}
	replaceFile(t, filepath.Join(p.dir, "rules"), []byte("rules: nonsense"))
	p.log.await(t, "what was read before stays")
	close(done)
	clients.Wait()
}

func TestTokensOutliveARestart(t *testing.T) {
	data := "ENTREPOT_DATA=" + t.TempDir()
	p := startProtected(t, data, "ENTREPOT_TOKEN_KEY_FILE="+writeFile(t, testTokenKey))
	p.stopped(t)
	unset := slices.DeleteFunc(slices.Clone(p.pairs), func(pair string) bool { return strings.HasPrefix(pair, "ENTREPOT_TOKEN_KEY") })
	first := &protected{program: startProgram(t, p.hub, append(unset, data)...)}
	client := newClient(t)
	text := first.newToken(t, client, login("alice", "wonderland"))
	first.stopped(t)
	second := &protected{program: startProgram(t, p.hub, append(unset, data)...)}
	if status, body, _ := second.ask(t, client, http.MethodGet, "/v2/", token(text)); status != http.StatusOK {
		t.Errorf("after a restart: %d %s", status, body)
	}
	info, err := os.Stat(filepath.Join(strings.TrimPrefix(data, "ENTREPOT_DATA="), tokenKeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is kept as %v (%v)", info.Mode(), err)
	}
}

// A key that is short, or that everybody here could have read, is made anew.
func TestTokenKeysThatAreNotBelieved(t *testing.T) {
	for name, row := range map[string]struct {
		content string
		mode    os.FileMode
		kept    bool
	}{
		"ours":            {testTokenKey, 0o600, true},
		"of a group":      {testTokenKey, 0o660, true},
		"readable by all": {testTokenKey, 0o644, false},
		"writable by all": {testTokenKey, 0o602, false},
		"short":           {testTokenKey[1:], 0o600, false},
		"empty":           {"", 0o600, false},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, tokenKeyFile)
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(row.content), 0o600), os.Chmod(path, row.mode)); err != nil {
			t.Fatal(err)
		}
		read, err := (&Config{Data: Dir(dir)}).tokenKey()
		if err != nil {
			t.Fatal(err)
		}
		key, _ := read()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if (key == row.content) != row.kept || len(key) < 32 || !row.kept && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: the key is %q, with mode %v", name, key, info.Mode())
		}
	}
}

// Users without rights: a password with each request, and everything for all
// who have one.
func TestUsersAlone(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 3000, 300)
	hub.Push("library/app", "1", image)
	users := filepath.Join(t.TempDir(), "users")
	replaceFile(t, users, usersFile(t, map[string]string{"alice": "wonderland"}))
	p := &protected{program: startProgram(t, hub, "ENTREPOT_USERS_FILE="+users)}
	p.pull(t, asUser(t, "alice", "wonderland"), "app", "1", image)
	client := newClient(t)
	for path, want := range map[string]int{"/v2/": 401, "/v2/app/manifests/1": 401, "/v2/_catalog": 401, "/token": 404, "/v2/quay.io/x/manifests/1": 401} {
		status, _, header := p.ask(t, client, http.MethodGet, path, nil)
		if status != want || (status == 401) != (header.Get("Www-Authenticate") == `Basic realm="entrepot"`) {
			t.Errorf("%s: %d with challenge %q, want %d", path, status, header.Get("Www-Authenticate"), want)
		}
	}
	_, _, _ = p.ask(t, client, http.MethodGet, "/v2/", login("alice", "hunter2"))
	if log := p.log.String(); !strings.Contains(log, "a login failed") || strings.Contains(log, "hunter2") || strings.Contains(log, "wonderland") {
		t.Errorf("the log does not tell of the login that failed, or tells too much:\n%s", log)
	}
	if !strings.Contains(p.log.String(), `"user":"alice"`) {
		t.Error("the log does not tell who asked")
	}
}
