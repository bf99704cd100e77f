package ocitest

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// token is a bearer token that was given out.
type token struct {
	account string
	repos   map[string]bool // that it may pull from
	expires time.Time
	uses    int
}

const service = "registry.docker.io"

// admit checks who asks and what they may. It answers by itself, and reports
// false, where they may not.
func (a *answer) admit() bool {
	switch a.habits.Auth {
	case TokenAuth:
		return a.admitToken()
	case BasicAuth:
		return a.admitBasic()
	}
	return true
}

func (a *answer) admitBasic() bool {
	name, password, ok := a.req.BasicAuth()
	if !ok || !a.hub.login(name, password) {
		a.Header().Set("Www-Authenticate", `Basic realm="ocitest"`)
		a.refuse(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return false
	}
	a.hub.note(func() { a.rec.Account = name })
	if a.rec.Repo != "" && !a.hub.mayRead(name, a.rec.Repo, true) {
		a.refuse(http.StatusForbidden, "DENIED", "requested access to the resource is denied")
		return false
	}
	return true
}

func (a *answer) admitToken() bool {
	account, err := a.hub.useToken(a.req.Header.Get("Authorization"), a.rec.Repo, a.habits)
	if err == "" {
		a.hub.note(func() { a.rec.Account = account })
		return true
	}
	realm := a.habits.Realm
	if realm == "" {
		realm = a.hub.TokenURL() + "/token"
	}
	challenge := fmt.Sprintf(`Bearer realm=%q,service=%q`, realm, service)
	if a.rec.Repo != "" {
		challenge += fmt.Sprintf(`,scope="repository:%s:pull"`, a.rec.Repo)
	}
	if err != "missing" {
		challenge += fmt.Sprintf(`,error=%q`, err)
	}
	a.Header().Set("Www-Authenticate", challenge)
	a.refuse(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

// useToken says whose token this is, or why it is not good.
func (h *Hub) useToken(header, repo string, habits Habits) (account, refusal string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	value, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return "", "missing"
	}
	t := h.tokens[value]
	if t == nil || h.cfg.Now().After(t.expires) || habits.TokenUses > 0 && t.uses >= habits.TokenUses {
		return "", "invalid_token"
	}
	if repo != "" && !t.repos[repo] {
		return "", "insufficient_scope"
	}
	t.uses++
	return t.account, ""
}

func (h *Hub) login(name, password string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	want, ok := h.users[name]
	return ok && want != "" && want == password
}

// mayRead reports whether an account may pull from a repository. missing is the
// answer for one that does not exist.
func (h *Hub) mayRead(account, repo string, missing bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[repo]
	if r == nil {
		return missing
	}
	return r.readers == nil || r.readers[account]
}

// serveToken gives out tokens, per the distribution token specification: GET
// with basic auth or anonymously, POST with a password or refresh token.
func (h *Hub) serveToken(a *answer) {
	if a.req.URL.Path != "/token" {
		http.NotFound(a, a.req)
		return
	}
	account, ok := h.tokenAccount(a)
	if !ok {
		a.refuse(http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	h.note(func() { a.rec.Account = account })
	scopes := a.req.URL.Query()["scope"]
	if a.req.Method == http.MethodPost {
		scopes = strings.Fields(a.req.PostFormValue("scope"))
	}
	if a.habits.FirstScopeOnly && len(scopes) > 1 {
		scopes = scopes[:1]
	}
	repos := map[string]bool{}
	for _, scope := range scopes {
		if repo, pull := parseScope(scope); pull && (a.habits.HidePrivate || h.mayRead(account, repo, a.habits.NameUnknown)) {
			repos[repo] = true
		}
	}
	if a.habits.DenyToken != 0 && len(scopes) > 0 && len(repos) == 0 {
		a.refuse(a.habits.DenyToken, "DENIED", "requested access to the resource is denied")
		return
	}
	a.json(h.issue(account, repos, a.habits))
}

// tokenAccount says who asks for a token; false for a wrong password.
func (h *Hub) tokenAccount(a *answer) (string, bool) {
	if a.req.Method == http.MethodPost {
		a.req.Body = http.MaxBytesReader(a, a.req.Body, 64<<10)
		name := a.req.PostFormValue("username")
		if a.req.PostFormValue("grant_type") == "refresh_token" {
			name, ok := strings.CutPrefix(a.req.PostFormValue("refresh_token"), "refresh-")
			return name, ok
		}
		return name, h.login(name, a.req.PostFormValue("password"))
	}
	name, password, ok := a.req.BasicAuth()
	return name, !ok || h.login(name, password)
}

// IdentityToken is a refresh token for an account, as a credential helper gives.
func (h *Hub) IdentityToken(account string) string { return "refresh-" + account }

func (h *Hub) issue(account string, repos map[string]bool, habits Habits) map[string]any {
	life := habits.TokenLife
	switch {
	case life == 0 && habits.NoExpiresIn:
		life = time.Minute
	case life == 0:
		life = 5 * time.Minute
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.serial++
	value := fmt.Sprintf("token-%d", h.serial)
	h.tokens[value] = &token{account: account, repos: repos, expires: h.cfg.Now().Add(life)}
	body := map[string]any{"issued_at": h.cfg.Now().UTC().Format(time.RFC3339)}
	if habits.TokenField != "access_token" {
		body["token"] = value
	}
	if habits.TokenField != "token" {
		body["access_token"] = value
	}
	if !habits.NoExpiresIn {
		body["expires_in"] = int(life.Seconds())
	}
	return body
}

// parseScope reads "repository:<name>:<actions>".
func parseScope(scope string) (repo string, pull bool) {
	kind, rest, _ := strings.Cut(scope, ":")
	i := strings.LastIndexByte(rest, ':')
	if kind != "repository" || i < 0 {
		return "", false
	}
	for action := range strings.SplitSeq(rest[i+1:], ",") {
		pull = pull || action == "pull" || action == "*"
	}
	return rest[:i], pull
}
