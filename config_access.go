package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"entrepot/access"
	"entrepot/store"
)

// The names of the settings of users and their rights, for messages.
const (
	usersVar    = "ENTREPOT_USERS_FILE"
	accessVar   = "ENTREPOT_ACCESS_FILE"
	tokenKeyVar = "ENTREPOT_TOKEN_KEY"
)

// hasAccess reports whether clients have to say who they are.
func (c *Config) hasAccess() bool { return c.UsersFile != "" || c.AccessFile != "" }

func (c *Config) checkAccess(found *problems) {
	if c.UsersFile != "" && !found.concern(usersVar) {
		checkContent(found, usersVar, string(c.UsersFile), access.CheckUsers)
	}
	if c.AccessFile != "" && !found.concern(accessVar, "ENTREPOT_UPSTREAMS", "ENTREPOT_UPSTREAM_", "ENTREPOT_RULE_") {
		checkContent(found, accessVar, string(c.AccessFile), func(content []byte) error { return access.CheckRules(content, c.Names(), readSmallFile) })
	}
	if key, _ := c.TokenKey.Value(); c.TokenKey.IsSet() && !found.concern(tokenKeyVar) && len(key) < access.MinKey {
		found.add(tokenKeyVar, "is too short: want %d characters or more, such as openssl rand -hex 32 makes", access.MinKey)
	}
	if c.TokenKey.IsSet() && c.AccessFile == "" {
		found.add(tokenKeyVar, "has no meaning without %s: only then there are tokens", accessVar)
	}
	if u, err := url.Parse(string(c.URL)); c.URL != "" && (err != nil || u.Path != "") {
		found.add("ENTREPOT_URL", "%s has a path: the registry is at the root, want it without", c.URL)
	}
}

func checkContent(found *problems, variable, path string, check func([]byte) error) {
	content, err := readSmallFile(path)
	if err == nil {
		err = check(content)
	}
	if err != nil {
		found.add(variable, "%s: %v", path, err)
	}
}

// clearLogins is the listener that passwords reach in clear; empty for none.
func (c *Config) clearLogins() string {
	switch {
	case !c.hasAccess():
	case c.PlainListen != "" && !c.PlainListen.isLoopback():
		return plainVar
	case !c.hasTLS() && !c.Listen.isLoopback() && (c.URL == "" || c.URL.isClear()):
		return "ENTREPOT_LISTEN"
	}
	return ""
}

// tokenKeyFile keeps the key of tokens below the data directory, so that those
// given out before a restart hold after it.
const tokenKeyFile = "state/token.key"

// tokenKey tells what tokens are signed with: the setting, which may change, or
// else what was made here once. Where a disk takes nothing more, it is for this
// process alone.
func (c *Config) tokenKey() (func() (string, error), error) {
	if c.TokenKey.IsSet() {
		return c.TokenKey.Value, nil
	}
	path := filepath.Join(string(c.Data), tokenKeyFile)
	content, err := readSmallFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (len(content) < access.MinKey || isReadByAll(path)) {
		content, err = makeTokenKey(path)
	}
	if missing := errors.Is(err, fs.ErrNotExist); err != nil && !(len(content) > 0 && (missing || store.IsBroken(err))) {
		return nil, fmt.Errorf("the key of tokens: %w", err)
	}
	key := strings.TrimSpace(string(content))
	return func() (string, error) { return key, nil }, nil
}

// isReadByAll reports whether everybody on this machine can read a file, as after
// a restore that has not kept its mode. Its group may: volumes are given to one.
func isReadByAll(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Perm()&0o007 != 0
}

// makeTokenKey writes a key that nobody else can read, and gives it also beside an
// error. A file that a crash left
// short is too short to be used, and is made anew.
func makeTokenKey(path string) ([]byte, error) {
	key := []byte(rand.Text() + rand.Text() + "\n") // 52 characters, 256 bits
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	return key, os.WriteFile(path, key, 0o600)
}

// forwarded are the headers by which proxies tell whose request they pass on.
var forwarded = []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip"}

// mayRefresh reports whether a request may have a tag checked now. Its address is
// the client's own only where nobody says to have forwarded it; and where there
// are users, who has no name has no claim on the quota.
func (c *Config) mayRefresh(r *http.Request, user string, users bool) bool {
	for _, name := range forwarded {
		if _, ok := r.Header[name]; ok {
			return false
		}
	}
	return c.RefreshFrom.Contains(r.RemoteAddr) && (user != "" || !users)
}
