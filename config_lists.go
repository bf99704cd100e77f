package main

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/cache"
	"entrepot/oci"
	"entrepot/words"
)

// The lists of the configuration, one inside the other, and what they come to.

// CredentialConfig is an account for the repositories below a path.
type CredentialConfig struct {
	Prefix   PathPrefix `env:"PREFIX" doc:"Repositories there, such as team or team/app, that have an account of their own: the longest prefix counts, of whole parts of the path; m counts from 0"`
	Username Username   `env:"USERNAME" doc:"That account"`
	Password Secret     `env:"PASSWORD" doc:"Its password or token"`
}

// MirrorConfig is another address of an upstream.
type MirrorConfig struct {
	URL          BaseURL  `env:"ITSELF" doc:"Another address of it, asked while those before are in trouble; m counts from 0"`
	First        Switch   `env:"FIRST" envDefault:"false" doc:"It is asked before the registry itself"`
	Username     Username `env:"USERNAME" doc:"Account there; without one it is asked anonymously"`
	Password     Secret   `env:"PASSWORD" doc:"Its password or token"`
	CAFile       CAFile   `env:"CA_FILE" doc:"PEM certificates to trust there, beside the system's"`
	AllowPrivate Switch   `env:"ALLOW_PRIVATE" envDefault:"false" doc:"Its token service and redirects may lead to private, loopback and link-local addresses"`
}

// TagTTLConfig is a TTL for the tags that match.
type TagTTLConfig struct {
	Match Glob     `env:"MATCH" doc:"Tags with a TTL of their own, by a pattern over upstream/repository:tag such as docker.io/library/*:latest; the first that matches counts; n counts from 0"`
	TTL   Lifetime `env:"TTL" doc:"That TTL, such as 1m or 24h; never: they are not checked again once they are held"`
}

// Login is an account; without a name it is none.
type Login struct {
	Username string
	Password Secret
	Variable string // that has the password, without the _FILE that it may end in
}

// newLogin is the account that <variables>USERNAME and <variables>PASSWORD are set to.
func newLogin(variables string, name Username, password Secret) Login {
	return Login{string(name), password, variables + "PASSWORD"}
}

// PrefixLogin is the account for the repositories below a path.
type PrefixLogin struct {
	Prefix string
	Exact  bool // for that repository alone
	Login
}

// MirrorSettings are what is known of another address of an upstream.
type MirrorSettings struct {
	URL          string
	First        bool // before the upstream's own
	Login        Login
	CA           CAFile
	AllowPrivate bool
}

func prefixLogins(variables string, list []CredentialConfig) []PrefixLogin {
	var all []PrefixLogin
	for i, c := range list {
		all = append(all, PrefixLogin{string(c.Prefix), false, newLogin(fmt.Sprintf("%sCREDENTIAL_%d_", variables, i), c.Username, c.Password)})
	}
	return all
}

func mirrorSettings(variables string, list []MirrorConfig) []MirrorSettings {
	var all []MirrorSettings
	for i, m := range list {
		all = append(all, MirrorSettings{
			URL: string(m.URL), First: bool(m.First), Login: newLogin(fmt.Sprintf("%sURL_%d_", variables, i), m.Username, m.Password),
			CA: m.CAFile, AllowPrivate: bool(m.AllowPrivate),
		})
	}
	return all
}

// caFiles are the files of authorities to trust at any of its addresses.
func (u *UpstreamSettings) caFiles() []string {
	all := []string{u.CA.path}
	for _, m := range u.Mirrors {
		all = append(all, m.CA.path)
	}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" })
}

// accounts are the names that the upstream is signed in to with.
func (u *UpstreamSettings) accounts() []string {
	var names []string
	for _, l := range u.logins() {
		if l.Username != "" && !slices.Contains(names, l.Username) {
			names = append(names, l.Username)
		}
	}
	return names
}

func (u *UpstreamSettings) logins() []Login {
	all := []Login{u.Login}
	for _, l := range u.Logins {
		all = append(all, l.Login)
	}
	for _, m := range u.Mirrors {
		all = append(all, m.Login)
	}
	return all
}

// loginSettings names the settings that an account at an upstream comes from, with
// what it is for where that is not all.
func (c *Config) loginSettings(upstream, account string) string {
	var all []string
	for _, u := range c.UpstreamSettings() {
		if u.Name != upstream {
			continue
		}
		scopes := map[string]string{} // of logins, by variable
		for _, l := range u.Logins {
			scopes[l.Variable] = ", for " + l.scope()
		}
		for _, l := range u.logins() {
			if l.Username == account {
				all = append(all, c.passwordSetting(l.Variable)+scopes[l.Variable])
			}
		}
	}
	if len(all) == 0 && c.DockerConfig != "" {
		return "DOCKER_CONFIG"
	}
	return strings.Join(all, "; ")
}

// signInRemedy says where a login would be set for an address of an upstream that
// limits whoever asks it without; empty if one is set, or there is none to be had.
func (c *Config) signInRemedy(upstream, host string) string {
	login := Login{Variable: "ENTREPOT_UPSTREAM_<n>_PASSWORD"}
	switch upstream {
	case oci.DockerHub:
		login.Variable = "ENTREPOT_DOCKERHUB_PASSWORD"
	case "mcr.microsoft.com", "registry.k8s.io": // which know nobody
		return ""
	}
	for _, u := range c.UpstreamSettings() {
		if u.Name != upstream {
			continue
		}
		if u.Login.Variable != "" {
			login = u.Login
		}
		for _, m := range u.Mirrors {
			if at, err := url.Parse(m.URL); err == nil && at.Host == host {
				login = m.Login
			}
		}
	}
	if login.Username != "" {
		return ""
	}
	return "an account there has limits of its own: " + strings.TrimSuffix(login.Variable, "PASSWORD") + "USERNAME"
}

// scope says which repositories a login is for.
func (l PrefixLogin) scope() string {
	if l.Exact {
		return l.Prefix
	}
	return l.Prefix + "/*"
}

// passwordSetting is what a password is set by: the variable itself, or the one that
// names its file.
func (c *Config) passwordSetting(variable string) string {
	if file, ok := strings.CutPrefix(c.sources[variable], "file "); ok {
		return variable + "_FILE=" + file
	}
	return variable
}

// signedInAt are the addresses that passwords are sent to.
func (u *UpstreamSettings) signedInAt() []string {
	var places []string
	if u.Login.Username != "" || len(u.Logins) > 0 {
		places = append(places, u.URL)
	}
	for _, m := range u.Mirrors {
		if m.Login.Username != "" {
			places = append(places, m.URL)
		}
	}
	return places
}

func checkCredentials(found *problems, list string, u UpstreamConfig) {
	seen := map[PathPrefix]string{}
	for i, c := range u.Credential {
		name := func(field string) string { return list + strconv.Itoa(i) + "_" + field }
		switch other := seen[c.Prefix]; {
		case c.Prefix == "" && !found.concern(name("PREFIX")):
			found.add(name("PREFIX"), "is not set, but others of %s are: want the path that the account is for, such as team", name(""))
		case other != "":
			found.add(name("PREFIX"), "%s is already %s: want each prefix once", c.Prefix, other)
		case u.begins(c.Prefix):
			found.add(name("PREFIX"), "%s begins with the name of %s, as no path there does: want the rest of it, such as team", c.Prefix, u.Name)
		case c.Prefix != "":
			seen[c.Prefix] = name("PREFIX")
		}
		if c.Username == "" && !c.Password.IsSet() && !found.concern(name("")) {
			found.add(name("USERNAME"), "is not set, but %s is: want the account for it", name("PREFIX"))
			continue
		}
		checkLogin(found, name("USERNAME"), c.Username, name("PASSWORD"), c.Password)
	}
}

// begins reports that a path is written with the upstream before it.
func (u UpstreamConfig) begins(path PathPrefix) bool {
	first, _, _ := strings.Cut(string(path), "/")
	at, err := url.Parse(string(u.URL))
	return first != "" && (oci.FoldHost(first) == string(u.Name) || err == nil && first == at.Host)
}

func checkMirrors(found *problems, list string, u UpstreamConfig) {
	seen := map[BaseURL]string{u.URL: strings.TrimSuffix(list, "_")}
	for i, m := range u.Mirror {
		itself := list + strconv.Itoa(i)
		name := func(field string) string { return itself + "_" + field }
		switch other := seen[m.URL]; {
		case m.URL == "" && !found.concern(itself):
			found.add(itself, "is not set, but others of %s are: want the address that they are about", name(""))
		case m.URL != "" && other != "":
			found.add(itself, "%s is already %s: want each address once", m.URL, other)
		default:
			seen[m.URL] = itself
		}
		checkLogin(found, name("USERNAME"), m.Username, name("PASSWORD"), m.Password)
		checkClear(found, m.URL, m.CAFile, name("CA_FILE"), itself)
	}
}

// checkClear refuses certificates where there is no TLS.
func checkClear(found *problems, at BaseURL, file CAFile, fileVar, urlVar string) {
	if at.isClear() && file.path != "" {
		found.add(fileVar, "has no meaning for the http:// of %s: want https:// there, or no certificates", urlVar)
	}
}

func (c *Config) checkTagTTLs(found *problems) {
	for i, r := range c.TagTTLRules {
		name := func(field string) string { return fmt.Sprintf("ENTREPOT_TAG_TTL_%d_%s", i, field) }
		if r.Match == "" && !found.concern(name("MATCH")) {
			found.add(name("MATCH"), "is not set, but %s is: want a pattern for the tags that it is for", name("TTL"))
		}
		if !r.TTL.isSet && !found.concern(name("TTL")) {
			found.add(name("TTL"), "is not set, but %s is: want how long those tags are believed", name("MATCH"))
		}
	}
}

// rules are the TTLs of tags by pattern, as the cache takes them.
func (c *Config) rules() []cache.Rule {
	var rules []cache.Rule
	for _, r := range c.TagTTLRules {
		rules = append(rules, cache.Rule{Match: string(r.Match), TTL: r.TTL.Duration()})
	}
	return rules
}

// PathPrefix is the start of a repository's path, of whole parts.
type PathPrefix string

func (p *PathPrefix) UnmarshalText(text []byte) error {
	s := strings.Trim(string(text), "/")
	if _, err := oci.NewRepository("registry.test", s); err != nil {
		return fmt.Errorf("%s is not the start of a repository's path: want one without the registry, such as team or team/app", words.Quote(string(text)))
	}
	*p = PathPrefix(s)
	return nil
}

// Glob is a pattern for upstream/repository:tag, as oci.Matches reads it.
type Glob string

func (g *Glob) UnmarshalText(text []byte) error {
	const want = "want upstream/repository:tag, in which * stands for anything, ? for one character and [0-9] for one of a range, such as docker.io/library/*:latest"
	s := string(text)
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("%s holds a space, or what no name holds: %s", words.Quote(s), want)
	case strings.Contains(s, "@"):
		return fmt.Errorf("%s has a digest, and patterns are compared with tags alone: %s", words.Quote(s), want)
	case strings.ContainsFunc(s, isInNoPattern):
		return fmt.Errorf("%s holds a character that is in no name, so it matches none (there are no {a,b} here, but a setting for each): %s", words.Quote(s), want)
	case !strings.ContainsAny(s[strings.LastIndexByte(s, '/')+1:], ":*?["):
		return fmt.Errorf("%s has no tag and no * at its end, so no tag matches it: %s", words.Quote(s), want)
	case !mayStartWithHost(s):
		return fmt.Errorf("%s does not start with an upstream, as all names that it is compared with do: %s", words.Quote(s), want)
	case otherName(s) != "":
		return fmt.Errorf("%s is compared with names that are written otherwise, so it matches none: want %s", words.Quote(s), otherName(s))
	case hasBadRange(s):
		return fmt.Errorf("%s has a bracket that is no range, which matches nothing: %s", words.Quote(s), want)
	}
	*g = Glob(s)
	return nil
}

// isInNoPattern: beside *, ? and ranges there is what names of upstreams, repositories
// and tags are made of.
func isInNoPattern(r rune) bool {
	isLetter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	return !isLetter && (r < '0' || r > '9') && !strings.ContainsRune("._-:/*?[]", r)
}

// host is the part of a pattern that upstreams' names are compared with; empty if
// there is no telling where that ends.
func (g Glob) host() string {
	host, _, ok := strings.Cut(string(g), "/")
	if !ok || strings.Contains(host, "*") {
		return ""
	}
	return host
}

// mayStartWithHost reports whether a pattern can match a name with an upstream
// before it, as far as that can be seen: alpine:* cannot.
func mayStartWithHost(s string) bool {
	host, _, _ := strings.Cut(s, "/")
	literal, _, isOpen := strings.Cut(host, "*")
	switch {
	case strings.Contains(s, "/") && !isOpen:
		return strings.ContainsAny(host, ".:?[") || host == "localhost"
	case strings.Contains(s, "/"):
		return true
	}
	return isOpen && !strings.Contains(literal, ":")
}

// otherName is a pattern as it has to begin for an upstream that is written
// otherwise, or one of Docker Hub's own images; empty if there is none better.
func otherName(s string) string {
	host, path, ok := strings.Cut(s, "/")
	name, tag, _ := strings.Cut(path, ":")
	folded := oci.FoldHost(host)
	switch {
	case !ok:
		return ""
	case folded == oci.DockerHub && !strings.ContainsAny(name, "/*?["):
		return folded + "/library/" + name + ":" + tag
	case folded != host:
		return folded + "/" + path
	}
	return ""
}

// hasBadRange finds brackets that are not of the form [a-z].
func hasBadRange(s string) bool {
	for {
		i := strings.IndexAny(s, "[]")
		if i < 0 {
			return false
		}
		s = s[i:]
		if len(s) < 5 || s[0] != '[' || s[2] != '-' || s[4] != ']' || s[1] > s[3] {
			return true
		}
		s = s[5:]
	}
}

// Lifetime is how long something is believed: a time span, or for ever.
type Lifetime struct {
	d     time.Duration
	isSet bool
}

const forEver = "never" // is it asked for again

func (l *Lifetime) UnmarshalText(text []byte) error {
	if string(text) == forEver {
		*l = Lifetime{cache.Never, true}
		return nil
	}
	var d Duration
	if err := d.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w, or %s", err, forEver)
	}
	*l = Lifetime{time.Duration(d), true}
	return nil
}

func (l Lifetime) String() string {
	switch {
	case !l.isSet:
		return ""
	case l.d == cache.Never:
		return forEver
	}
	return Duration(l.d).String()
}

// Duration is the time span; cache.Never for ever.
func (l Lifetime) Duration() time.Duration { return l.d }
