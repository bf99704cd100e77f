package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"entrepot/oci"
)

// Credentials tells what to sign in with to pull from a repository; a zero
// AuthConfig means anonymously. One that comes with an error is used, and the
// error told. It is asked before every request that needs
// them, so that a changed secret counts at once, and must therefore be quick;
// what it is asked for is only needed when upstream wants to know.
type Credentials func(ctx context.Context, repo oci.Repository) (authn.AuthConfig, error)

// PasswordFrom signs in with a name and a password that is read each time, as
// from a file, so that a changed one counts at once and is tried whatever came of
// the one before. While it cannot be read, what read gives beside the error is
// used, or else the last one.
func PasswordFrom(username string, read func() (string, error)) Credentials {
	var mu sync.Mutex // guards last
	var last authn.AuthConfig
	return func(context.Context, oci.Repository) (authn.AuthConfig, error) {
		password, err := read()
		mu.Lock()
		defer mu.Unlock()
		if err == nil || password != "" {
			last = authn.AuthConfig{Username: username, Password: password}
		}
		if err != nil {
			err = fmt.Errorf("password of %s: %w", username, err)
		}
		return last, err
	}
}

// PrefixCredential is what to sign in with to the repositories below a path.
type PrefixCredential struct {
	Prefix      string      // whole components: "team" is no prefix of "teams/x"; empty: every repository
	Exact       bool        // the repository of that path alone
	Credentials Credentials // nil: anonymously
}

// ByPrefix signs in with the credentials of the longest prefix that a
// repository's path has, or of the path itself, and anonymously where it has none of them.
func ByPrefix(list []PrefixCredential) Credentials {
	sorted := slices.Clone(list)
	for i := range sorted {
		sorted[i].Prefix = strings.Trim(sorted[i].Prefix, "/")
	}
	slices.SortStableFunc(sorted, func(a, b PrefixCredential) int { return b.weight() - a.weight() })
	return func(ctx context.Context, repo oci.Repository) (authn.AuthConfig, error) {
		for _, p := range sorted {
			if !p.covers(repo.Path) {
				continue
			}
			if p.Credentials == nil {
				break
			}
			return p.Credentials(ctx, repo)
		}
		return authn.AuthConfig{}, nil
	}
}

func (p PrefixCredential) covers(path string) bool {
	rest, ok := strings.CutPrefix(path, p.Prefix)
	return ok && (rest == "" || !p.Exact && (p.Prefix == "" || rest[0] == '/'))
}

// weight orders by length, and at the same length the exact one first.
func (p PrefixCredential) weight() int {
	if p.Exact {
		return 2*len(p.Prefix) + 1
	}
	return 2 * len(p.Prefix)
}

// keychainLife is how long an answer of a keychain is kept: a credential helper
// is a process of its own.
const keychainLife = time.Minute

// DockerConfig reads the login for an upstream from the config.json in dir, with
// its credential helpers, through go-containerregistry's keychain. That keychain
// finds its directory in the environment, so dir has to be what DOCKER_CONFIG
// says there. The result is nil if there is no login for that upstream now, which
// is then anonymous until the next start. The file is read again later, so a
// changed login counts within a minute; while that takes long or fails, the one
// that was read last is used.
func DockerConfig(ctx context.Context, dir, upstream string) (Credentials, error) {
	registry, err := name.NewRegistry(upstream)
	if err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", upstream, err)
	}
	file := filepath.Join(dir, "config.json")
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", upstream, err)
	}
	k := &keychain{upstream: upstream, resolve: func() (authn.AuthConfig, error) { return resolveLogin(file, registry) }}
	auth, err := k.lookup(ctx)
	if err != nil || auth == (authn.AuthConfig{}) {
		return nil, err
	}
	return func(ctx context.Context, _ oci.Repository) (authn.AuthConfig, error) { return k.lookup(ctx) }, nil
}

// keychainGrace is how long a question waits for a login to be read again.
const keychainGrace = time.Second

// keychain remembers what go-containerregistry's keychain says of a registry.
// At most one look-up runs at a time, since a helper may hang and cannot be
// stopped.
type keychain struct {
	upstream string
	resolve  func() (authn.AuthConfig, error) // may hang

	mu      sync.Mutex // guards what follows
	known   bool       // auth is what was read once
	auth    authn.AuthConfig
	err     error     // why auth is not of the last look-up
	looked  time.Time // when that ended
	running *lookup
}

type lookup struct {
	done   chan struct{} // closed when what follows is set
	waited atomic.Bool   // keychainGrace is over: who has another answer waits no longer
	auth   authn.AuthConfig
	err    error
}

// lookup gives the login as of a minute ago at most, or else the last one that
// is known, beside the error why it is not newer.
func (k *keychain) lookup(ctx context.Context) (authn.AuthConfig, error) {
	k.mu.Lock()
	auth, known, err := k.auth, k.known, k.err
	if known && k.running == nil && time.Since(k.looked) < keychainLife {
		k.mu.Unlock()
		return auth, err
	}
	if k.running == nil {
		k.running = &lookup{done: make(chan struct{})}
		go k.run(k.running)
	}
	l := k.running
	k.mu.Unlock()
	err = l.await(ctx, known)
	if err == nil {
		return l.auth, nil
	}
	return auth, fmt.Errorf("credentials of %s: %w", k.upstream, err)
}

// errHelperSilent is a credential helper that was not waited for.
var errHelperSilent = errors.New("the credential helper does not answer")

// await waits for the answer: briefly, if there is another.
func (l *lookup) await(ctx context.Context, briefly bool) error {
	var over <-chan time.Time // never, unless briefly
	if briefly {
		if l.waited.Load() {
			return errHelperSilent
		}
		grace := time.NewTimer(keychainGrace)
		defer grace.Stop()
		over = grace.C
	}
	select {
	case <-l.done:
		return l.err
	case <-over:
		l.waited.Store(true)
		return errHelperSilent
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *keychain) run(l *lookup) {
	l.auth, l.err = k.resolve()
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.err == nil {
		k.auth, k.known = l.auth, true
	}
	k.looked, k.running = time.Now(), nil
	if k.err = l.err; k.err != nil {
		k.err = fmt.Errorf("credentials of %s: %w", k.upstream, l.err)
	}
	close(l.done)
}

func resolveLogin(file string, registry name.Registry) (authn.AuthConfig, error) {
	// Without this file the keychain would look for logins elsewhere, among
	// them those of the person who started us.
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return authn.AuthConfig{}, nil
	}
	authenticator, err := authn.DefaultKeychain.Resolve(registry)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	auth, err := authenticator.Authorization()
	if err != nil {
		return authn.AuthConfig{}, err
	}
	return *auth, nil
}

// credential is a login in the form that requests need. The zero value is
// nobody's.
type credential struct {
	id                 credentialID
	username, password string
	identity           string // a refresh token, for POST
	registry           string // a bearer token that needs no exchange
}

// credentialID names a credential without holding it.
type credentialID [16]byte

func (c credential) anonymous() bool { return c.id == credentialID{} }

// account names whose quota a request costs that is made with c: passwords and
// tokens change, accounts stay. It is text that can be shown.
func (c credential) account() string {
	switch {
	case c.anonymous():
		return ""
	case c.isNameless():
		return tokenAccount
	}
	return strings.ToValidUTF8(c.username, "\uFFFD")
}

// tokenAccount is the account of tokens without a name, of which an upstream has one
// at a time: that which Docker's configuration has for it.
const tokenAccount = "token"

func (c credential) isNameless() bool { return c.username == "" || c.username == "<token>" }

// String says what c is, and of whom: its secrets are kept out of whatever is printed.
func (c credential) String() string {
	if c.isNameless() {
		return "the token"
	}
	return "the password of " + c.account()
}

// GoString does so for %#v.
func (c credential) GoString() string { return c.String() }

// newCredential reads the forms that Docker's config has: a name and password,
// both in Auth, an identity token (helpers mark it by the name "<token>"), or a
// registry token.
func newCredential(a authn.AuthConfig) credential {
	c := credential{username: a.Username, password: a.Password, identity: a.IdentityToken, registry: a.RegistryToken}
	if c.username == "" && c.password == "" && a.Auth != "" {
		if text, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			c.username, c.password, _ = strings.Cut(string(text), ":")
		}
	}
	if c.username == "<token>" && c.identity == "" {
		c.identity = c.password
	}
	if c == (credential{}) {
		return c
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", c.username, c.password, c.identity, c.registry))
	c.id = credentialID(sum[:])
	return c
}

// basic is the value of an Authorization header. An identity token stands in
// for the password where it cannot be posted.
func (c credential) basic() string {
	password := c.password
	if password == "" {
		password = c.identity
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.username+":"+password))
}
