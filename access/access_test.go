package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testNames = &oci.Names{Default: oci.DockerHub, Upstreams: []string{"docker.io", "ghcr.io", "registry.test:5000"}}

const testKey = "0123456789abcdef0123456789abcdef"

// nothing is a Source that has nothing, and counts who asks.
type nothing struct {
	oci.Source
	asked []string
}

func (n *nothing) Resolve(_ context.Context, repo oci.Repository, _ string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	n.asked = append(n.asked, repo.String()+" by "+ask.Client)
	return oci.Resolved{}, oci.Outcome{}, oci.ErrManifestUnknown
}

func hashOf(t testing.TB, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

// files are what a gate reads; a test may change them.
type files struct{ users, rules, key string }

func newGate(t testing.TB, f *files) *Gate {
	t.Helper()
	cfg := Config{Source: new(nothing), Names: testNames, Key: func() (string, error) { return f.key, nil }}
	if f.users != "" {
		cfg.ReadUsers = func() ([]byte, error) { return []byte(f.users), nil }
	}
	if f.rules != "" {
		cfg.ReadRules = func() ([]byte, error) { return []byte(f.rules), nil }
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func request(t testing.TB, authorization string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://cache.example:5000/v2/", nil)
	r.RemoteAddr = "192.0.2.1:1234"
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	return r
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestUsersFile(t *testing.T) {
	alice := hashOf(t, "wonderland")
	for name, row := range map[string]struct{ content, want string }{
		"empty":          {"", ""},
		"comments":       {"# who\n\nalice:" + alice + "\r\n", ""},
		"as htpasswd -B": {"alice:" + strings.Replace(alice, "$2a$", "$2y$", 1), ""},
		"MD5":            {"alice:$apr1$x$y", "line 1: the password of alice is not kept as bcrypt"},
		"clear":          {"\nalice:wonderland\n", "line 2"},
		"cut":            {"alice:" + alice[:50], "not kept as bcrypt"},
		"no colon":       {"alice", "not kept as bcrypt"},
		"twice":          {"alice:" + alice + "\nalice:" + alice, "line 2: alice is there already"},
		"too costly":     {"alice:" + strings.Replace(alice, "$04$", "$17$", 1), "cost 17"},
		"no name":        {":" + alice, "is not a user's name"},
		"an address":     {"192.0.2.1:" + alice, "it is an address"},
		"a word":         {"anonymous:" + alice, "it has a meaning"},
		"control":        {"al\x00ice:" + alice, "is not a user's name"},
	} {
		err := CheckUsers([]byte(row.content))
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
		if err != nil && strings.Contains(err.Error(), alice[:20]) {
			t.Errorf("%s: the hash is in %v", name, err)
		}
	}
}

func TestPasswords(t *testing.T) {
	long := strings.Repeat("x", 72)
	g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland") + "\nlong:" + hashOf(t, long) + "\n"})
	for _, row := range []struct {
		user, password string
		want           bool
	}{
		{"alice", "wonderland", true},
		{"alice", "wonderlanD", false},
		{"alice", "", false},
		{"alice", "wonderland\x00x", false},
		{"alice", "wonderland\x00wonderland", false}, // which bcrypt takes for the same
		{"bob", "wonderland", false},
		{"", "", false},
		{"long", long, true},
		{"long", long + "x", false},
	} {
		s, err := g.Admit(request(t, basic(row.user, row.password)), oci.Ping)
		if (err == nil) != row.want || row.want && s.Name() != row.user {
			t.Errorf("%q with %q: %v, want %t", row.user, row.password, err, row.want)
		}
	}
}

// A wrong password costs the same whoever it is for, somebody with a hash that is
// cheaper than others or nobody: an answer that comes sooner would tell who exists.
func TestUnknownUsersTakeAsLong(t *testing.T) {
	costly, err := bcrypt.GenerateFromPassword([]byte("x"), 7)
	if err != nil {
		t.Fatal(err)
	}
	for want, content := range map[int]string{
		1 << 4: "alice:" + hashOf(t, "x"),
		1 << 7: "alice:" + hashOf(t, "x") + "\nbob:" + string(costly) + "\ncarol:" + hashOf(t, "x"),
	} {
		table, err := parseUsers([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		spent := 0
		table.compare = func(hash, password []byte) error {
			cost, err := bcrypt.Cost(hash)
			if err != nil {
				t.Fatal(err)
			}
			spent += 1 << cost
			err = bcrypt.CompareHashAndPassword(hash, password)
			if err != nil && !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
				t.Errorf("nothing is compared: %v", err)
			}
			return err
		}
		for _, user := range []string{"alice", "bob", "carol", "mallory", ""} {
			for _, password := range []string{"wrong", "", "nul\x00", strings.Repeat("x", 73)} {
				if spent = 0; table.matches(user, password) || spent != want {
					t.Errorf("%q of %q costs %d, want %d", password, user, spent, want)
				}
			}
		}
		if !table.matches("alice", "x") {
			t.Error("the right password is not taken")
		}
	}
}

// A credential is compared once, however many ask with it at once and after, and
// whatever else changes in the file; not any more when its user has changed.
func TestPasswordIsComparedOnce(t *testing.T) {
	f := &files{users: "alice:" + hashOf(t, "wonderland")}
	g := newGate(t, f)
	held := len(g.slots)
	var all sync.WaitGroup
	sessions := make([]*Session, 50)
	for i := range sessions {
		all.Go(func() {
			s, err := g.Admit(request(t, basic("alice", "wonderland")), oci.Ping)
			if err != nil {
				t.Error(err)
			}
			sessions[i] = s
		})
	}
	all.Wait()
	for _, s := range sessions {
		if s != sessions[0] {
			t.Fatal("two sessions were made of one credential")
		}
	}
	if len(g.slots) != held {
		t.Error("a slot was not given back")
	}
	line := f.users
	for _, content := range []string{"bob:" + hashOf(t, "x") + "\n" + line, line} {
		f.users = content
		if err := g.ReloadUsers(); err != nil {
			t.Fatal(err)
		}
		if s, err := g.Admit(request(t, basic("alice", "wonderland")), oci.Ping); s != sessions[0] {
			t.Errorf("somebody else's change made alice log in anew (%v)", err)
		}
	}
	f.users = "bob:" + hashOf(t, "wonderland")
	if err := g.ReloadUsers(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Admit(request(t, basic("alice", "wonderland")), oci.Ping); !errors.Is(err, errWrong) {
		t.Errorf("after alice was removed: %v", err)
	}
	f.users = "alice:" + hashOf(t, "changed")
	if err := g.ReloadUsers(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Admit(request(t, basic("alice", "wonderland")), oci.Ping); !errors.Is(err, errWrong) {
		t.Errorf("after a change of the password: %v", err)
	}
	f.users = "alice:nonsense"
	if err := g.ReloadUsers(); err == nil {
		t.Error("nonsense is read")
	}
	if _, err := g.Admit(request(t, basic("alice", "changed")), oci.Ping); err != nil {
		t.Errorf("after a bad file: %v", err)
	}
}

// What is known costs a hash and a look.
func TestKnownCredentialCostsNextToNothing(t *testing.T) {
	g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland"), rules: "rules: [{who: [alice], repositories: ['**']}]", key: testKey})
	s, err := g.Admit(request(t, basic("alice", "wonderland")), oci.Ping)
	if err != nil {
		t.Fatal(err)
	}
	text, err := g.tokens.sign(s.who, scopes{repos: []oci.Repository{{Host: "docker.io", Path: "library/app"}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, authorization := range map[string]string{"password": basic("alice", "wonderland"), "token": "Bearer " + text} {
		r := request(t, authorization)
		if n := testing.AllocsPerRun(100, func() {
			s, err := g.Admit(r, oci.ManifestKind)
			if err != nil || s.may(oci.Repository{Host: "docker.io", Path: "library/app"}, readContent, oci.ManifestKind) != nil {
				t.Errorf("%s: %v", name, err)
			}
		}); n > 0 {
			t.Errorf("a known %s costs %v allocations", name, n)
		}
	}
}

func TestGuessingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland") + "\nbob:" + hashOf(t, "builder")})
		from := func(address, user, password string) error {
			r := request(t, basic(user, password))
			r.RemoteAddr = address
			_, err := g.Admit(r, oci.Ping)
			return err
		}
		const here, neighbour, elsewhere = "[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8:0:1::1]:1"
		if err := from(here, "alice", "wonderland"); err != nil {
			t.Fatal(err)
		}
		for i := range triesAtOnce {
			if err := from(here, "alice", fmt.Sprint(i)); oci.CodeOf(err) != oci.Unauthorized {
				t.Fatalf("try %d: %v", i, err)
			}
		}
		for name, row := range map[string]struct {
			err  error
			want oci.Code
		}{
			"one more":              {from(here, "alice", "x"), oci.TooManyRequests},
			"from the same /64":     {from(neighbour, "bob", "builder"), oci.TooManyRequests},
			"from another":          {from(elsewhere, "alice", "x"), oci.Unauthorized},
			"who is known already":  {from(here, "alice", "wonderland"), -1},
			"somebody else's right": {from(elsewhere, "bob", "builder"), -1},
		} {
			if row.want < 0 {
				if row.err != nil {
					t.Errorf("%s: %v", name, row.err)
				}
			} else if oci.CodeOf(row.err) != row.want {
				t.Errorf("%s: %v, want %v", name, row.err, row.want)
			}
		}
		wait := oci.RetryAfter(from(here, "alice", "x"))
		if wait <= 0 || wait > triesEvery {
			t.Errorf("the client is told to wait for %v", wait)
		}
		time.Sleep(wait) // the bubble's clock
		if err := from(here, "alice", "x"); oci.CodeOf(err) != oci.Unauthorized {
			t.Errorf("after the wait: %v", err)
		}
		if err := from(here, "alice", "x"); oci.CodeOf(err) != oci.TooManyRequests {
			t.Errorf("at once after that: %v", err)
		}
	})
}

// Guesses that come at once are not let pass together before the first has
// failed; right passwords that come at once are.
func TestGuessingAtOnceIsSlowToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var file strings.Builder
		for i := range 30 {
			fmt.Fprintf(&file, "user%d:%s\n", i, hashOf(t, fmt.Sprint(i)))
		}
		g := newGate(t, &files{users: file.String()})
		atOnce := func(n int, password string) map[oci.Code]int {
			var mu sync.Mutex
			codes := map[oci.Code]int{}
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					_, err := g.Admit(request(t, basic(fmt.Sprint("user", i), fmt.Sprint(password, i))), oci.Ping)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						codes[oci.CodeOf(err)]++
					}
				})
			}
			all.Wait()
			return codes
		}
		if codes := atOnce(30, ""); len(codes) > 0 {
			t.Errorf("right passwords: %v", codes)
		}
		want := map[oci.Code]int{oci.Unauthorized: triesAtOnce, oci.TooManyRequests: 30 - triesAtOnce}
		if diff := cmp.Diff(want, atOnce(30, "x")); diff != "" {
			t.Errorf("wrong ones (-want +got):\n%s", diff)
		}
		time.Sleep(triesEvery) // the bubble's clock
		want = map[oci.Code]int{oci.Unauthorized: 1, oci.TooManyRequests: 29}
		if diff := cmp.Diff(want, atOnce(30, "y")); diff != "" {
			t.Errorf("wrong ones later (-want +got):\n%s", diff)
		}
	})
}

// Who cannot have a turn, since very many log in at once, is told so, and has not
// failed.
func TestLoginsWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland")})
		for range cap(g.slots) {
			g.slots <- struct{}{}
		}
		r := request(t, basic("alice", "wonderland"))
		began := time.Now()
		if _, err := g.Admit(r, oci.Ping); oci.CodeOf(err) != oci.Unavailable || time.Since(began) != turnWait {
			t.Errorf("after %v: %v, want UNAVAILABLE after %v", time.Since(began), err, turnWait)
		}
		time.AfterFunc(turnWait/2, func() { <-g.slots })
		if _, err := g.Admit(r, oci.Ping); err != nil || len(g.failures.seen) > 0 {
			t.Errorf("when there is a turn: %v, and %d addresses have failed", err, len(g.failures.seen))
		}
	})
}

func TestTablesAreBounded(t *testing.T) {
	var f failures
	now := time.Now()
	for i := range maxOffenders + 100 {
		r := &http.Request{RemoteAddr: fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)}
		f.take(addressOf(r), now)
	}
	if len(f.seen) > maxOffenders {
		t.Errorf("%d addresses are remembered, want %d at most", len(f.seen), maxOffenders)
	}
	var c recent
	first := key{1}
	c.put(first, new(Session))
	for i := range 3 * generation {
		c.put(key{2, byte(i), byte(i >> 8), byte(i >> 16)}, new(Session))
		c.get(first) // in use
	}
	if n := len(c.young) + len(c.old); n > 2*generation {
		t.Errorf("%d sessions are remembered, want %d at most", n, 2*generation)
	}
	if c.get(first) == nil {
		t.Error("one in use was forgotten")
	}
}

func TestAccessFile(t *testing.T) {
	for name, row := range map[string]struct{ content, want string }{
		"empty":           {"", ""},
		"no YAML":         {"rules: [", "not an access file"},
		"no list":         {"rules: nobody", "not an access file: line 1: want a list here, and not `nobody`"},
		"no text":         {"rules: [{who: [{a: b}]}]\ngroups: [a]", "line 1: want text here, and not a mapping; line 2: want a mapping here, and not a list"},
		"unknown field":   {"rule: []\ngrups: {}", "not an access file: line 1: field rule is not known here; line 2: field grups is not known here"},
		"two documents":   {"rules: []\n---\nrules: []", "want one document"},
		"nobody":          {"rules: [{repositories: ['**']}]", "number 1: who and repositories"},
		"nothing":         {"rules: [{who: [alice]}]", "who and repositories"},
		"write":           {"rules: [{who: [alice], repositories: ['**'], actions: [content/write]}]", "takes no writes"},
		"delete":          {"rules: [{who: [alice], repositories: ['**'], actions: [content/delete]}]", "reserved"},
		"unknown action":  {"rules: [{who: [alice], repositories: ['**'], actions: [pull]}]", "want content/read"},
		"bad user":        {"rules: [{who: ['a b'], repositories: ['**']}]", "is not a user's name"},
		"bad group":       {"rules: [{who: ['group:'], repositories: ['**']}]", "is not a group's name"},
		"bad member":      {"groups: {a: ['b c']}", "is not a user's name"},
		"other upstream":  {"rules: [{who: [alice], repositories: ['quay.io/**']}]", "quay.io is not an upstream"},
		"no upstream":     {"rules: [{who: [alice], repositories: [alpine]}]", "want an upstream"},
		"short Hub name":  {"rules: [{who: [alice], repositories: [docker.io/alpine]}]", "docker.io/library/alpine"},
		"old Hub name":    {"rules: [{who: [alice], repositories: ['index.docker.io/library/*']}]", "is called docker.io here"},
		"stars in a part": {"rules: [{who: [alice], repositories: ['ghcr.io/a**']}]", "a part of its own"},
		"empty part":      {"rules: [{who: [alice], repositories: ['ghcr.io//a']}]", "one slash"},
		"expression":      {"rules: [{who: [alice], repositories: ['ghcr.io/(a|b)']}]", "lower-case letters"},
		"http issuer":     {"oidc: [{issuer: 'http://x.test', audience: a, identities: [{claims: {sub: x}, user: u}]}]", "https://"},
		"no audience":     {"oidc: [{issuer: 'https://x.test', identities: [{claims: {sub: x}, user: u}]}]", "audience must be there"},
		"no claims":       {"oidc: [{issuer: 'https://x.test', audience: a, identities: [{user: u}]}]", "claims must be there"},
		"no identities":   {"oidc: [{issuer: 'https://x.test', audience: a}]", "identities must be there"},
		"bad identity":    {"oidc: [{issuer: 'https://x.test', audience: a, identities: [{claims: {sub: x}, user: ''}]}]", "is not a user's name"},
		"no such CA":      {"oidc: [{issuer: 'https://x.test', audience: a, ca_file: /nonexistent, identities: [{claims: {sub: x}, user: u}]}]", "oidc: https://x.test: ca_file: open /nonexistent"},
		"issuer twice":    {"oidc: [{issuer: 'https://x.test', audience: a, identities: [{claims: {sub: x}, user: u}]}, {issuer: 'https://x.test', audience: a, identities: [{claims: {sub: x}, user: u}]}]", "want each issuer once"},
	} {
		err := CheckRules([]byte(row.content), testNames, os.ReadFile)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

func TestRules(t *testing.T) {
	r, err := parseRules([]byte(`
groups:
  builders: [bob, carol]
rules:
  - {who: [anonymous], repositories: ["docker.io/library/*"], actions: [content/read]}
  - {who: [authenticated], repositories: [ghcr.io/acme/app]}
  - {who: ["group:builders"], repositories: ["ghcr.io/acme/**", "registry.test:5000/*/x-*"]}
  - {who: [dora], repositories: ["**"], actions: [metadata/read]}
`), testNames)
	if err != nil {
		t.Fatal(err)
	}
	both := readContent | readMetadata
	nobody, alice, bob, dora, stranger := Identity{}, Identity{Name: "alice"}, Identity{Name: "bob"}, Identity{Name: "dora"}, Identity{"eve", []string{"builders"}}
	for _, row := range []struct {
		who  Identity
		repo string
		want action
	}{
		{nobody, "docker.io/library/alpine", readContent},
		{alice, "docker.io/library/alpine", readContent},
		{nobody, "docker.io/library/a/b", 0},
		{nobody, "docker.io/libraryx/a", 0},
		{nobody, "docker.io/acme/app", 0},
		{nobody, "ghcr.io/acme/app", 0},
		{alice, "ghcr.io/acme/app", both},
		{alice, "ghcr.io/acme/app2", 0},
		{bob, "ghcr.io/acme/tools/deep/down", both},
		{bob, "ghcr.io/acme", 0},
		{bob, "ghcr.io/acmex/app", 0},
		{bob, "registry.test:5000/team/x-1", both},
		{bob, "registry.test:5000/team/x", 0},
		{bob, "registry.test:5000/a/b/x-1", 0},
		{stranger, "ghcr.io/acme/tools", both}, // a group by certificate
		{dora, "docker.io/library/alpine", both},
		{dora, "registry.test:5000/a/b/c", readMetadata},
	} {
		repo, ok := repositoryOf(row.repo)
		if !ok {
			t.Fatalf("%s is no repository", row.repo)
		}
		if got := r.allowed(row.who, repo); got != row.want {
			t.Errorf("%q with %s: %b, want %b", row.who.Name, row.repo, got, row.want)
		}
	}
}

// A change of the rules holds at once, for tokens that are out too.
func TestRulesChangeUnderATokensFeet(t *testing.T) {
	f := &files{rules: "rules: [{who: [alice], repositories: ['docker.io/library/*']}]", key: testKey}
	g := newGate(t, f)
	repo := oci.Repository{Host: "docker.io", Path: "library/app"}
	text, err := g.tokens.sign(Identity{Name: "alice"}, scopes{repos: []oci.Repository{repo}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		s, err := g.Admit(request(t, "Bearer "+text), oci.ManifestKind)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = s.Resolve(t.Context(), repo, "1", oci.Ask{Client: "192.0.2.1"})
		return err
	}
	_ = ask()
	if diff := cmp.Diff([]string{"docker.io/library/app by alice"}, g.cfg.Source.(*nothing).asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	f.rules = "rules: [{who: [bob], repositories: ['**']}]"
	if err := g.ReloadRules(); err != nil {
		t.Fatal(err)
	}
	if err := ask(); !errors.Is(err, oci.ErrManifestUnknown) || len(g.cfg.Source.(*nothing).asked) != 1 {
		t.Errorf("after the change: %v, and asked was %v", err, g.cfg.Source.(*nothing).asked)
	}
	f.rules = "rules: nonsense"
	if err := g.ReloadRules(); err == nil {
		t.Error("nonsense is read")
	}
	if err := ask(); !errors.Is(err, oci.ErrManifestUnknown) {
		t.Errorf("after a bad file: %v", err)
	}
}

// many is a Catalog, and counts how often it is walked through.
type many struct {
	names  []string
	walked int
}

func (m *many) Repositories(_ context.Context, page oci.Page) ([]string, bool, error) {
	m.walked++
	i, _ := slices.BinarySearch(m.names, page.Last+"\x00")
	rest := m.names[i:]
	if page.N >= 0 && len(rest) > page.N {
		return rest[:page.N], true, nil
	}
	return rest, false, nil
}

// Who may see little of a large catalog costs no more than who may see all.
func TestTheCatalogIsWalkedOnceForAPage(t *testing.T) {
	var m many
	for i := range 5000 {
		m.names = append(m.names, fmt.Sprintf("docker.io/others/%04d", i))
	}
	m.names = append(m.names, "docker.io/public/a", "docker.io/public/b", "docker.io/zoo/x")
	g := newGate(t, &files{rules: "rules: [{who: [anonymous], repositories: ['docker.io/public/*']}]", key: testKey})
	g.cfg.Catalog = &m
	for i, row := range []struct {
		page oci.Page
		want []string
		more bool
	}{
		{oci.Page{N: 1}, []string{"docker.io/public/a"}, true},
		{oci.Page{N: 1, Last: "docker.io/public/a"}, []string{"docker.io/public/b"}, false},
		{oci.Page{N: -1}, []string{"docker.io/public/a", "docker.io/public/b"}, false},
		{oci.Page{N: 1, Last: "docker.io/public/b"}, nil, false},
	} {
		names, more, err := g.anonymous.Repositories(t.Context(), row.page)
		if err != nil || more != row.more || !slices.Equal(names, row.want) || m.walked != i+1 {
			t.Errorf("%+v: %q, more %t, walked %d times (%v), want %q, %t", row.page, names, more, m.walked, err, row.want, row.more)
		}
	}
}

func TestScopes(t *testing.T) {
	for _, row := range []struct {
		params  []string
		want    []string
		catalog bool
	}{
		{nil, nil, false},
		{[]string{""}, nil, false},
		{[]string{"repository:alpine:pull"}, []string{"docker.io/library/alpine"}, false},
		{[]string{"repository:ghcr.io/a/b:pull,push repository:registry.test:5000/x:pull"}, []string{"ghcr.io/a/b", "registry.test:5000/x"}, false},
		{[]string{"repository(plugin):a/b:pull", "registry:catalog:*"}, []string{"docker.io/a/b"}, true},
		{[]string{"repository:a", "repository", "repository:UPPER:pull", "repository:quay.io/a/b:pull", "thing:a:pull", "registry:other:*", "::"}, nil, false},
	} {
		got, err := parseScopes(row.params, testNames)
		if err != nil {
			t.Fatal(err)
		}
		var repos []string
		for _, repo := range got.repos {
			repos = append(repos, repo.String())
		}
		if diff := cmp.Diff(row.want, repos); diff != "" || got.catalog != row.catalog {
			t.Errorf("%q, catalog %t (-want +got):\n%s", row.params, got.catalog, diff)
		}
	}
	if _, err := parseScopes([]string{strings.Repeat("repository:a:pull ", maxScopes+1)}, testNames); err == nil {
		t.Error("any number of scopes fits into a token")
	}
}

// forge signs claims, by default those of a good token.
func forge(t testing.TB, algorithm jose.SignatureAlgorithm, signWith any, change func(map[string]any)) string {
	t.Helper()
	now := time.Now()
	claims := map[string]any{"iss": service, "aud": service, "sub": "alice", "nbf": now.Unix(), "exp": now.Add(time.Minute).Unix(), "repositories": []string{"docker.io/library/app"}}
	if change != nil {
		change(claims)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: signWith}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTokensThatAreNotBelieved(t *testing.T) {
	g := newGate(t, &files{rules: "rules: []", key: testKey})
	keyOf := func(text string) []byte {
		return (&tokens{read: func() (string, error) { return text, nil }}).keys(time.Now())[0]
	}
	right := keyOf(testKey)
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	set := func(name string, value any) func(map[string]any) { return func(c map[string]any) { c[name] = value } }
	good := forge(t, jose.HS256, right, nil)
	head, rest, _ := strings.Cut(good, ".")
	payload, _, _ := strings.Cut(rest, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
	ec := ocitest.NewCA().Certificate().PrivateKey
	address := netip.MustParseAddr("198.51.100.0")
	for name, row := range map[string]struct {
		text string
		want error
	}{
		"good":                       {good, nil},
		"clock a little ahead":       {forge(t, jose.HS256, right, set("nbf", in(5*time.Second))), nil},
		"just ended":                 {forge(t, jose.HS256, right, set("exp", in(-5*time.Second))), nil},
		"ended":                      {forge(t, jose.HS256, right, set("exp", in(-20*time.Second))), errExpired},
		"without end":                {forge(t, jose.HS256, right, func(c map[string]any) { delete(c, "exp") }), errToken},
		"not yet":                    {forge(t, jose.HS256, right, set("nbf", in(time.Minute))), errToken},
		"another audience":           {forge(t, jose.HS256, right, set("aud", "other")), errToken},
		"no audience":                {forge(t, jose.HS256, right, func(c map[string]any) { delete(c, "aud") }), errToken},
		"another issuer":             {forge(t, jose.HS256, right, set("iss", "other")), errToken},
		"another key":                {forge(t, jose.HS256, keyOf("another"+testKey), nil), errToken},
		"the setting itself as key":  {forge(t, jose.HS256, []byte(testKey), nil), errToken},
		"another algorithm":          {forge(t, jose.HS512, append(right, right...), nil), errToken},
		"a public key's algorithm":   {forge(t, jose.ES256, ec, nil), errToken},
		"alg none":                   {none + "." + payload + ".", errToken},
		"alg none with a signature":  {none + "." + rest, errToken},
		"signature cut":              {good[:len(good)-4], errToken},
		"another payload":            {head + "." + payload[:len(payload)-4] + "AAAA" + rest[len(payload):], errToken},
		"a repository that is none":  {forge(t, jose.HS256, right, set("repositories", []string{"../x"})), errToken},
		"repositories of wrong type": {forge(t, jose.HS256, right, set("repositories", "docker.io/library/app")), errToken},
		"nothing":                    {"", errToken},
		"no token":                   {"x.y.z", errToken},
	} {
		r := request(t, "Bearer "+row.text)
		address = address.Next() // each its own: forging is slowed down
		r.RemoteAddr = address.String() + ":1234"
		_, err := g.Admit(r, oci.Ping)
		if !errors.Is(err, row.want) || (err == nil) != (row.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
	if _, _, err := g.token(httptest.NewRecorder(), request(t, "Bearer "+good)); oci.CodeOf(err) != oci.Unauthorized {
		t.Errorf("a token got another token: %v", err)
	}
}

// Forged tokens are failed logins, and as much is told of them as of wrong
// passwords; but they take no try of a password away, and are answered with 401
// always: a key that was changed makes forgeries of honest tokens.
func TestForgedTokensAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, &files{rules: "rules: []", key: testKey})
		reported := 0
		g.cfg.Failed = func(client, _ string, err error) {
			if reported++; client != "192.0.2.1" || !errors.Is(err, errToken) {
				t.Errorf("%s: %v", client, err)
			}
		}
		right := g.tokens.keys(time.Now())[0]
		ask := func(text string) oci.Code {
			_, err := g.Admit(request(t, "Bearer "+text), oci.Ping)
			if err == nil {
				return -1
			}
			return oci.CodeOf(err)
		}
		ended := forge(t, jose.HS256, right, func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() })
		forged := forge(t, jose.HS256, []byte(testKey), nil)
		for range 3 * triesAtOnce {
			if got := ask(ended); got != oci.Unauthorized {
				t.Errorf("one that has ended: %v", got)
			}
		}
		for n := range 2 * triesAtOnce {
			if got := ask(forged); got != oci.Unauthorized {
				t.Errorf("forged token %d: %v, want %v", n+1, got, oci.Unauthorized)
			}
		}
		if reported != triesAtOnce {
			t.Errorf("%d were reported, want %d", reported, triesAtOnce)
		}
		if got := ask(forge(t, jose.HS256, right, nil)); got != -1 {
			t.Errorf("a good one from there: %v", got)
		}
		if wait := g.failures.wait(addressOf(request(t, "")), time.Now()); wait != 0 {
			t.Errorf("a password has to wait for %v", wait)
		}
		time.Sleep(triesEvery)
		if ask(forged); reported != triesAtOnce+1 {
			t.Errorf("%d were reported, want another one after a while", reported)
		}
	})
}

// A token ends when it says, also for who has it in memory.
func TestTokensEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &files{rules: "rules: []", key: testKey}
		g := newGate(t, f)
		text, err := g.tokens.sign(Identity{Name: "alice"}, scopes{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		ask := func() error {
			_, err := g.Admit(request(t, "Bearer "+text), oci.Ping)
			return err
		}
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		before := g.tokens.keys(time.Now())[0]
		f.key = "another key, of which there are many more"
		g.known = recent{}
		if err := ask(); err != nil {
			t.Errorf("after a change of the key tokens that are out are refused: %v", err)
		}
		time.Sleep(tokenLife + tokenLeeway + time.Second) // the bubble's clock
		if err := ask(); !errors.Is(err, errExpired) && !errors.Is(err, errToken) {
			t.Errorf("after its end: %v", err)
		}
		text = forge(t, jose.HS256, before, nil)
		if err := ask(); !errors.Is(err, errToken) {
			t.Errorf("a new one by the key of before: %v, want %v", err, errToken)
		}
	})
}

// A key file that is being written is a short key for a moment: nothing is signed
// with it, and nothing that is signed with it is believed, then or later.
func TestKeysThatAreShortAreNotUsed(t *testing.T) {
	f := &files{rules: "rules: []", key: testKey}
	g := newGate(t, f)
	sign := func() string {
		text, err := g.tokens.sign(Identity{Name: "alice"}, scopes{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := sign()
	f.key = testKey[:MinKey-1]
	meanwhile := sign()
	f.key = "another" + testKey
	short := sha256.Sum256([]byte("entrepot token\n" + testKey[:MinKey-1]))
	for name, row := range map[string]struct {
		text string
		want error
	}{
		"before": {before, nil}, "meanwhile": {meanwhile, nil}, "after": {sign(), nil},
		"by the short key": {forge(t, jose.HS256, short[:], nil), errToken},
	} {
		if _, err := g.Admit(request(t, "Bearer "+row.text), oci.Ping); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
}

func TestChallenges(t *testing.T) {
	withRules := newGate(t, &files{rules: "rules: []", key: testKey})
	for name, row := range map[string]struct {
		gate *Gate
		url  string
		tls  bool
		host string
		err  error
		want string
	}{
		"users alone": {newGate(t, &files{users: "alice:" + hashOf(t, "x")}), "/v2/", false, "", errLogin, `Basic realm="entrepot"`},
		"ping":        {withRules, "/v2/", false, "", errLogin, `Bearer realm="http://cache.example:5000/token",service="entrepot"`},
		"over TLS":    {withRules, "/v2/", true, "", errLogin, `Bearer realm="https://cache.example:5000/token",service="entrepot"`},
		"repository":  {withRules, "/v2/app/tags/list", false, "", errLogin, `Bearer realm="http://cache.example:5000/token",service="entrepot",scope="repository:app:pull"`},
		"mirror": {
			withRules, "/v2/acme/app/tags/list?ns=ghcr.io", false, "", errLogin,
			`Bearer realm="http://cache.example:5000/token",service="entrepot",scope="repository:ghcr.io/acme/app:pull"`,
		},
		"mirror, and an empty ns": {
			withRules, "/v2/acme/app/tags/list?ns=&ns=ghcr.io", false, "", errLogin,
			`Bearer realm="http://cache.example:5000/token",service="entrepot",scope="repository:ghcr.io/acme/app:pull"`,
		},
		"catalog":                {withRules, "/v2/_catalog", false, "", errScope, `Bearer realm="http://cache.example:5000/token",service="entrepot",scope="registry:catalog:*",error="insufficient_scope"`},
		"expired":                {withRules, "/v2/", false, "", errExpired, `Bearer realm="http://cache.example:5000/token",service="entrepot",error="invalid_token"`},
		"a Host that breaks out": {withRules, "/v2/", false, `x",realm="http://evil`, errLogin, `Basic realm="entrepot"`},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://cache.example:5000"+row.url, nil)
		if row.tls {
			r.TLS = new(tls.ConnectionState)
		}
		if row.host != "" {
			r.Host = row.host
		}
		req, err := oci.ParseRequest(r.URL.Path)
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		_ = row.gate.Refuse(r, req, row.err, h)
		if got := h.Get("WWW-Authenticate"); got != row.want {
			t.Errorf("%s:\n%s, want\n%s", name, got, row.want)
		}
	}
	behind := newGate(t, &files{rules: "rules: []", key: testKey})
	behind.cfg.URL = "https://public.example"
	if got := behind.challenge(request(t, ""), oci.Request{}, errLogin); !strings.Contains(got, `"https://public.example/token"`) {
		t.Errorf("behind a load balancer: %s", got)
	}
}

// A request brings one credential or none: of several it would be a guess which
// one counts, and other servers on the way may have guessed otherwise.
func TestWhoIsAdmitted(t *testing.T) {
	g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland"), rules: "rules: [{who: [anonymous], repositories: ['docker.io/public/*']}]", key: testKey})
	right, wrong := basic("alice", "wonderland"), basic("alice", "x")
	bob := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{ocitest.NewCA().Client("bob").Leaf}}}
	for name, row := range map[string]struct {
		lines   []string
		tls     *tls.ConnectionState
		trusted bool
		kind    oci.Kind
		want    string // who it is; an error's text for a refusal
	}{
		"nobody":                              {nil, nil, true, oci.ManifestKind, ""},
		"nobody, at the root":                 {nil, nil, true, oci.Ping, errLogin.Error()},
		"a user":                              {[]string{right}, nil, true, oci.Ping, "alice"},
		"twice the same":                      {[]string{right, right}, nil, true, oci.ManifestKind, "unauthorized: the request has several Authorization headers"},
		"a right one first":                   {[]string{right, wrong}, nil, true, oci.ManifestKind, "unauthorized: the request has several Authorization headers"},
		"a right one last":                    {[]string{wrong, right}, nil, true, oci.ManifestKind, "unauthorized: the request has several Authorization headers"},
		"a certificate":                       {nil, bob, true, oci.Ping, "bob"},
		"a certificate no more":               {nil, bob, false, oci.ManifestKind, ""},
		"a certificate no more, at the root":  {nil, bob, false, oci.Ping, errLogin.Error()},
		"a user beside a certificate no more": {[]string{right}, bob, false, oci.Ping, "alice"},
	} {
		g.cfg.Trusts = func(*tls.ConnectionState) bool { return row.trusted }
		r := request(t, "")
		r.TLS = row.tls
		if row.lines != nil {
			r.Header["Authorization"] = row.lines
		}
		s, err := g.Admit(r, row.kind)
		got := fmt.Sprint(err)
		if err == nil {
			got = s.Name()
		}
		if got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

// A session is shared by all requests with its credential, and remembers what it
// was told last; each repository is its own question all the same.
func TestRightsAreOfEachRepository(t *testing.T) {
	g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland"), rules: "rules: [{who: [alice], repositories: [docker.io/library/app, docker.io/library/tool]}]", key: testKey})
	hub := func(name string) oci.Repository { return oci.Repository{Host: "docker.io", Path: "library/" + name} }
	text, err := g.tokens.sign(Identity{Name: "alice"}, scopes{repos: []oci.Repository{hub("app"), hub("secret")}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		authorization string
		want          map[string]error
	}{
		"password": {basic("alice", "wonderland"), map[string]error{"app": nil, "tool": nil, "secret": oci.ErrBlobUnknown}},
		"token":    {"Bearer " + text, map[string]error{"app": nil, "tool": errScope, "secret": oci.ErrBlobUnknown}},
	} {
		s, err := g.Admit(request(t, row.authorization), oci.BlobKind)
		if err != nil {
			t.Fatal(err)
		}
		for _, repo := range []string{"app", "secret", "tool", "app", "tool", "secret", "app"} {
			if err := s.may(hub(repo), readContent, oci.BlobKind); !errors.Is(err, row.want[repo]) || (err == nil) != (row.want[repo] == nil) {
				t.Errorf("%s, %s: %v, want %v", name, repo, err, row.want[repo])
			}
		}
	}
}

// A token shows the catalog if it was asked for, and nothing else with it.
func TestTokensForTheCatalog(t *testing.T) {
	g := newGate(t, &files{rules: "rules: [{who: [alice], repositories: ['**']}]", key: testKey})
	app := oci.Repository{Host: "docker.io", Path: "library/app"}
	g.cfg.Catalog = &many{names: []string{app.String()}}
	for _, row := range []struct {
		asked         scopes
		catalog, repo error
	}{
		{scopes{repos: []oci.Repository{app}}, errScope, nil},
		{scopes{catalog: true}, nil, errScope},
	} {
		text, err := g.tokens.sign(Identity{Name: "alice"}, row.asked, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s, err := g.Admit(request(t, "Bearer "+text), oci.CatalogKind)
		if err != nil {
			t.Fatal(err)
		}
		names, _, err := s.Repositories(t.Context(), oci.Page{N: -1})
		if !errors.Is(err, row.catalog) || (len(names) > 0) != (row.catalog == nil) {
			t.Errorf("%+v: the catalog is %q (%v), want %v", row.asked, names, err, row.catalog)
		}
		if err := s.may(app, readContent, oci.BlobKind); !errors.Is(err, row.repo) || (err == nil) != (row.repo == nil) {
			t.Errorf("%+v: %s is %v, want %v", row.asked, app, err, row.repo)
		}
	}
}

// Where there are rights, what upstream denies is told as what does not exist; a
// rule of the operator's may be read by whoever it is about.
func TestWhatIsRefusedIsHidden(t *testing.T) {
	withRules := newGate(t, &files{rules: "rules: []", key: testKey})
	withoutRules := newGate(t, &files{users: "alice:" + hashOf(t, "x")})
	denied := &oci.Error{Code: oci.Denied, Detail: "the registry denies it"}
	byRule := &oci.Error{Code: oci.Denied, Detail: "too young", Err: oci.ErrRule}
	down := &oci.Error{Code: oci.Unavailable, Detail: "it cannot be reached"}
	for name, row := range map[string]struct {
		gate *Gate
		req  oci.Request
		err  error
		want error
	}{
		"a manifest":                  {withRules, oci.Request{Kind: oci.ManifestKind, Name: "app"}, denied, oci.ErrManifestUnknown},
		"a blob":                      {withRules, oci.Request{Kind: oci.BlobKind, Name: "app"}, denied, oci.ErrBlobUnknown},
		"tags":                        {withRules, oci.Request{Kind: oci.TagsKind, Name: "app"}, denied, oci.ErrNameUnknown},
		"a repository that is none":   {withRules, oci.Request{Kind: oci.ManifestKind, Name: "app"}, oci.ErrNameUnknown, oci.ErrManifestUnknown},
		"by a rule of the operator's": {withRules, oci.Request{Kind: oci.ManifestKind, Name: "app"}, byRule, byRule},
		"what is no denial":           {withRules, oci.Request{Kind: oci.ManifestKind, Name: "app"}, down, down},
		"nothing of a repository":     {withRules, oci.Request{Kind: oci.CatalogKind}, denied, denied},
		"a name that means nothing":   {withRules, oci.Request{Kind: oci.ManifestKind, Name: "quay.io/a/b"}, denied, denied},
		"where there are users alone": {withoutRules, oci.Request{Kind: oci.ManifestKind, Name: "app"}, denied, denied},
	} {
		if got := row.gate.Refuse(request(t, ""), row.req, row.err, http.Header{}); !errors.Is(got, row.want) {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}

func TestCertificatesAsIdentity(t *testing.T) {
	ca := ocitest.NewCA()
	g := newGate(t, &files{rules: "rules: [{who: ['group:ops'], repositories: ['**']}]", key: testKey})
	for name, row := range map[string]struct {
		user string
		want string
	}{
		"a user":     {"alice", "alice"},
		"a word":     {"anonymous", ""},
		"a machine":  {"*.example", ""},
		"an address": {"192.0.2.1", ""},
	} {
		r := request(t, "")
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{ca.Client(row.user, "ops").Leaf}}}
		s, err := g.Admit(r, oci.Ping)
		got := ""
		if err == nil {
			got = s.Name()
		}
		if got != row.want {
			t.Errorf("%s is %q, want %q (%v)", name, got, row.want, err)
		}
		if err == nil && s.may(oci.Repository{Host: "ghcr.io", Path: "a/b"}, readContent, oci.BlobKind) != nil {
			t.Errorf("%s may not what its group may", name)
		}
	}
}

// A connection that was opened with a certificate may stand for longer than
// that holds.
func TestCertificatesEnd(t *testing.T) {
	leaf := ocitest.NewCA().Client("alice").Leaf
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, &files{rules: "rules: []", key: testKey})
		leaf := *leaf
		leaf.NotAfter = time.Now().Add(time.Minute) // by the bubble's clock
		r := request(t, "")
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{&leaf}}}
		if s, err := g.Admit(r, oci.Ping); err != nil || s.Name() != "alice" {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(time.Minute + time.Second)
		if _, err := g.Admit(r, oci.Ping); !errors.Is(err, errLogin) {
			t.Errorf("after its end: %v, want %v", err, errLogin)
		}
	})
}

func TestTokenServiceSpeaksBothWays(t *testing.T) {
	g := newGate(t, &files{users: "alice:" + hashOf(t, "wonderland"), rules: "rules: []", key: testKey})
	post := func(form string) *http.Request {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://cache.example/token", strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	get := func(query, authorization string) *http.Request {
		r := request(t, authorization)
		r.URL.RawQuery = query
		return r
	}
	put := request(t, basic("alice", "wonderland"))
	put.Method = http.MethodPut
	wrongType := post("grant_type=password&username=alice&password=wonderland")
	wrongType.Header.Set("Content-Type", "text/plain")
	for name, row := range map[string]struct {
		r    *http.Request
		want int
	}{
		"GET":                      {get("service=entrepot&scope=repository:a:pull&account=alice&client_id=docker&offline_token=true", basic("alice", "wonderland")), 200},
		"POST":                     {post("grant_type=password&service=entrepot&client_id=x&access_type=offline&username=alice&password=wonderland"), 200},
		"nobody":                   {get("service=entrepot", ""), 401},
		"wrong password":           {get("", basic("alice", "x")), 401},
		"wrong password by POST":   {post("grant_type=password&username=alice&password=x"), 401},
		"another service":          {get("service=other", basic("alice", "wonderland")), 403},
		"a refresh token":          {post("grant_type=refresh_token&refresh_token=x"), 403},
		"malformed query":          {get("scope=%zz", basic("alice", "wonderland")), 403},
		"another type":             {wrongType, 403},
		"a body that is too large": {post("grant_type=password&username=alice&password=wonderland&x=" + strings.Repeat("a", maxTokenBody)), 403},
		"PUT":                      {put, 405},
	} {
		w := httptest.NewRecorder()
		_, _ = g.ServeToken(w, row.r)
		if w.Code != row.want || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s %v, want %d", name, w.Code, w.Body, w.Header(), row.want)
		}
		if (w.Code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d with challenge %q", name, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
}

// A client that announces a body and does not send it is not waited for long,
// whether a body means anything or not.
func TestTokenServiceDoesNotWaitForABody(t *testing.T) {
	for method, want := range map[string]string{http.MethodPost: "HTTP/1.1 403 ", http.MethodGet: "HTTP/1.1 401 "} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(t, &files{rules: "rules: []", key: testKey})
			network := ocitest.NewNetwork()
			l := network.Listen("cache.example")
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = g.ServeToken(w, r) })} //nolint:gosec // a test's
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = server.Serve(l)
			}()
			conn, err := network.DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			fmt.Fprintf(conn, "%s /token HTTP/1.1\r\nHost: cache.example\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ngrant_type=", method)
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), want) || time.Since(began) > tokenBodyWait {
				t.Errorf("%s: after %v %q (%v), want %s", method, time.Since(began), answer, err, want)
			}
			conn.Close()
			server.Close()
			<-ended
		})
	}
}

func FuzzAuthorization(f *testing.F) {
	g := newGate(f, &files{users: "alice:" + hashOf(f, "wonderland"), rules: "rules: []", key: testKey})
	hour := time.Now().Truncate(time.Hour)
	right := forge(f, jose.HS256, g.tokens.keys(time.Now())[0], func(c map[string]any) {
		c["nbf"], c["exp"] = hour.Unix(), hour.Add(2*time.Hour).Unix() // the same in each process of a fuzz
	})
	believed := map[string]string{basic("alice", "wonderland"): "alice", "Bearer " + right: "alice"}
	for _, seed := range append(slices.Collect(maps.Keys(believed)), "Basic", "Basic !", "Bearer a.b.c", "bearer  "+right, "Negotiate x", "Basic "+base64.StdEncoding.EncodeToString([]byte("alice")), "Bearer "+respelled(right)) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		g.failures = failures{}
		s, err := g.Admit(request(t, line), oci.Ping)
		if err != nil {
			if code := oci.CodeOf(err); code != oci.Unauthorized {
				t.Fatalf("%q: %v", line, err)
			}
			return
		}
		_, value, _ := strings.Cut(line, " ")
		for known := range believed {
			if _, v, _ := strings.Cut(known, " "); strings.TrimLeft(value, " ") == v {
				return
			}
		}
		if raw, err := base64.StdEncoding.DecodeString(strings.TrimLeft(value, " ")); err == nil && string(raw) == "alice:wonderland" {
			return // base64 that says the same
		}
		if sameToken(strings.TrimLeft(value, " "), right) {
			return
		}
		t.Fatalf("%q is %q", line, s.Name())
	})
}

// respelled has another last character, and the same signature.
func respelled(token string) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(token) - 1
	return token[:last] + string(letters[strings.IndexByte(letters, token[last])^1])
}

// sameToken reports whether two tokens differ at most in the bits of their
// signatures' last characters that stand for nothing.
func sameToken(a, b string) bool {
	read := func(token string) (signed string, signature []byte) {
		at := strings.LastIndexByte(token, '.')
		if at < 0 {
			return token, nil
		}
		signature, _ = base64.RawURLEncoding.DecodeString(token[at+1:])
		return token[:at], signature
	}
	signed, signature := read(a)
	wantSigned, want := read(b)
	return signed == wantSigned && bytes.Equal(signature, want)
}

func FuzzScopes(f *testing.F) {
	f.Add("repository:library/alpine:pull registry:catalog:*")
	f.Add("repository(x):ghcr.io/a:5000/b:pull,push")
	f.Fuzz(func(t *testing.T, param string) {
		got, err := parseScopes([]string{param}, testNames)
		if err != nil {
			return
		}
		for _, repo := range got.repos {
			back, ok := repositoryOf(repo.String())
			if !ok || back != repo || !slices.Contains(testNames.Upstreams, repo.Host) {
				t.Fatalf("%q leads to %q", param, repo)
			}
		}
	})
}

func FuzzAccessFile(f *testing.F) {
	f.Add([]byte("groups: {a: [b]}\nrules: [{who: [anonymous, 'group:a'], repositories: ['docker.io/**', '*/x/*'], actions: [content/read]}]"))
	f.Add([]byte("oidc: [{issuer: 'https://x.test', audience: a, identities: [{claims: {sub: 'x*'}, user: u, groups: [g]}]}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := parseRules(content, testNames)
		if err != nil {
			return
		}
		if got := r.allowed(Identity{}, oci.Repository{Host: "docker.io", Path: "library/app"}); got != 0 && !r.forAnonymous() {
			t.Fatalf("nobody may %b", got)
		}
	})
}

func FuzzUsers(f *testing.F) {
	f.Add([]byte("alice:" + hashOf(f, "x") + "\n# c\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		table, err := parseUsers(content)
		if err != nil {
			return
		}
		for name := range table.hashes {
			if checkName(name) != nil {
				t.Fatalf("%q is a user", name)
			}
		}
	})
}

func BenchmarkAdmitKnownToken(b *testing.B) {
	g := newGate(b, &files{rules: "rules: []", key: testKey})
	r := request(b, "Bearer "+forge(b, jose.HS256, g.tokens.keys(time.Now())[0], nil))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := g.Admit(r, oci.ManifestKind); err != nil {
				b.Error(err)
			}
		}
	})
}
