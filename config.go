package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"entrepot/access"
	"entrepot/oci"

	"github.com/caarlos0/env/v11"
	"golang.org/x/net/http/httpproxy"
)

// Config is everything that can be set, and each field is one variable: env
// names it, envDefault is its default, doc is its line in the README, and empty
// is what an empty value means, which otherwise is an error. A list of structs
// is numbered from 0, and may hold another; ITSELF in one is what stands at the
// number, with nothing behind it. A Secret may also come from a file, named by NAME_FILE.
//
// Nothing else in the program reads the environment.
type Config struct {
	Listen            Address          `env:"ENTREPOT_LISTEN" envDefault:":5000" doc:"Where the registry listens: only /v2/ and /healthz"`
	PlainListen       Address          `env:"ENTREPOT_PLAIN_LISTEN" empty:"no such listener" doc:"Where the registry listens without TLS as well, once ENTREPOT_LISTEN has it"`
	TLSCertFile       File             `env:"ENTREPOT_TLS_CERT_FILE" doc:"PEM file of the certificate that makes ENTREPOT_LISTEN speak TLS, with its chain; read again when it changes"`
	TLSKeyFile        File             `env:"ENTREPOT_TLS_KEY_FILE" doc:"PEM file of its key"`
	TLSPFXFile        File             `env:"ENTREPOT_TLS_PFX_FILE" doc:"PKCS#12 file of both instead"`
	TLSPFXPassword    Secret           `env:"ENTREPOT_TLS_PFX_PASSWORD" doc:"Its password"`
	TLSACMEDomains    HostNames        `env:"ENTREPOT_TLS_ACME_DOMAINS" doc:"Names to get a certificate for by ACME instead, by which its terms are agreed to; the authority must reach port 443 here, or port 80 at ENTREPOT_PLAIN_LISTEN"`
	TLSACMEEmail      EmailAddress     `env:"ENTREPOT_TLS_ACME_EMAIL" doc:"Where its authority may write to"`
	TLSACMEDirectory  SecureURL        `env:"ENTREPOT_TLS_ACME_DIRECTORY" doc:"Its authority's directory, if not Let's Encrypt's"`
	TLSACMECAFile     File             `env:"ENTREPOT_TLS_ACME_CA_FILE" doc:"PEM file of authorities to trust there instead of the system's"`
	TLSClientCAFile   File             `env:"ENTREPOT_TLS_CLIENT_CA_FILE" doc:"PEM file of the authorities whose certificates tell who a client is: the common name is the user, organizations are groups"`
	TLSClientAuth     ClientAuth       `env:"ENTREPOT_TLS_CLIENT_AUTH" envDefault:"optional" doc:"required: no connection to ENTREPOT_LISTEN without such a certificate"`
	UsersFile         File             `env:"ENTREPOT_USERS_FILE" doc:"htpasswd file, bcrypt alone (htpasswd -B), of those who may log in; read again when it changes. Without it and ENTREPOT_ACCESS_FILE nobody has to"`
	AccessFile        File             `env:"ENTREPOT_ACCESS_FILE" doc:"YAML file of who may read which repositories, and of CI systems whose tokens are taken; read again when it changes"`
	TokenKey          Secret           `env:"ENTREPOT_TOKEN_KEY" doc:"What tokens for clients are signed with, 32 characters or more, the same for all replicas; without it one is made in the data directory"`
	URL               BaseURL          `env:"ENTREPOT_URL" doc:"Where clients reach the registry, such as https://cache.example, if not at the Host that they send, as behind a load balancer that ends TLS"`
	AdminListen       Address          `env:"ENTREPOT_ADMIN_LISTEN" envDefault:"127.0.0.1:5001" empty:"no such listener" doc:"Where the admin API, pprof, metrics and health listen; keep it away from clients"`
	AdminToken        Secret           `env:"ENTREPOT_ADMIN_TOKEN" doc:"Who has it may use the admin API, and from other machines pprof and metrics there; without it only this machine may; at least 16 characters"`
	MetricsListen     Address          `env:"ENTREPOT_METRICS_LISTEN" empty:"no such listener" doc:"/metrics and /readyz alone, for scrapers and probes in a container"`
	Data              Dir              `env:"ENTREPOT_DATA" envDefault:"./data" doc:"The data directory"`
	CacheSize         Size             `env:"ENTREPOT_CACHE_SIZE" envDefault:"0" doc:"Hard cap on what the data directory holds, such as 200GiB; 0 is no cap"`
	MinFree           Headroom         `env:"ENTREPOT_MIN_FREE" envDefault:"5%" doc:"Disk space not to use up, a size or per cent of the disk"`
	ScrubRate         Size             `env:"ENTREPOT_SCRUB_RATE" envDefault:"16MiB" doc:"Bytes per second of what is held that are read again, once a week, to find damage; 0 is none"`
	Memory            Size             `env:"ENTREPOT_MEMORY" envDefault:"64MiB" doc:"The memory tier for manifests and small blobs"`
	Upstreams         UpstreamNames    `env:"ENTREPOT_UPSTREAMS" envDefault:"docker.io,mcr.microsoft.com,ghcr.io,quay.io,registry.k8s.io,gcr.io,public.ecr.aws" doc:"The registries to pull from; no other is ever asked"`
	DefaultUpstream   UpstreamName     `env:"ENTREPOT_DEFAULT_UPSTREAM" envDefault:"docker.io" doc:"The registry of names without one"`
	OwnNames          HostNames        `env:"ENTREPOT_OWN_NAMES" doc:"Names, with their port, that clients have for this cache where it differs from the Host they send, as behind a load balancer"`
	DockerHubUsername Username         `env:"ENTREPOT_DOCKERHUB_USERNAME" doc:"Account at Docker Hub"`
	DockerHubPassword Secret           `env:"ENTREPOT_DOCKERHUB_PASSWORD" doc:"Its personal access token, or password"`
	Upstream          []UpstreamConfig `envPrefix:"ENTREPOT_UPSTREAM_"`
	Rule              []RuleConfig     `envPrefix:"ENTREPOT_RULE_"`
	Policy            []PolicyConfig   `envPrefix:"ENTREPOT_POLICY_"`
	PolicyDryRun      Switch           `env:"ENTREPOT_POLICY_DRY_RUN" envDefault:"false" doc:"The policy refuses nothing: what it would refuse is logged and counted"`
	TagTTL            Lifetime         `env:"ENTREPOT_TAG_TTL" envDefault:"5m" doc:"How long a checked tag is served without asking its upstream again; never: it is not asked again"`
	TagTTLRules       []TagTTLConfig   `envPrefix:"ENTREPOT_TAG_TTL_"`
	NegativeTTL       Duration         `env:"ENTREPOT_NEGATIVE_TTL" envDefault:"30s" doc:"How long an upstream's 404, and its 401 or 403 to one credential, is repeated without asking it again; a token service is spared longer: for what it has refused it is asked again after a minute, later after ten at most, of what a login that is refused is for by one repository a minute, or at once by entrepot refresh"`
	RefreshFrom       Networks         `env:"ENTREPOT_REFRESH_FROM" envDefault:"127.0.0.0/8,::1/128" empty:"nobody" doc:"Networks of the clients whose Cache-Control: no-cache has a tag checked now; not what a proxy forwarded, and not who has no name where there are users"`
	ForeignHosts      ForeignHosts     `env:"ENTREPOT_FOREIGN_HOSTS" doc:"Hosts that layers may be fetched from which a manifest places elsewhere by its urls, as those of old Windows images, and to which such hosts may redirect: mcr.microsoft.com,go.microsoft.com,*.data.mcr.microsoft.com, the last of which stands for all hosts of a domain"`
	QuotaReserve      Portion          `env:"ENTREPOT_QUOTA_RESERVE" envDefault:"10%" doc:"The last part of an upstream's quota, which is kept for clients who wait for what is not held: warming, checks of tags that cost a pull, and the new images of tags whose old ones are held, which are served as stale, leave it alone; a forced check does not"`
	QueueWait         Duration         `env:"ENTREPOT_QUEUE_WAIT" envDefault:"10s" doc:"How long what has to be asked of an upstream waits for its turn until the client is told 429; two thirds of ENTREPOT_HEADER_TIMEOUT at most"`
	Warm              ImageNames       `env:"ENTREPOT_WARM" doc:"Images to have here before a client asks, with commas between them, named as clients do: alpine:3.20,ghcr.io/me/app:latest"`
	WarmFile          File             `env:"ENTREPOT_WARM_FILE" doc:"File with such images instead, one in a line, # for comments; read again when it changes; a line that is no image is left out, and told of"`
	WarmPlatforms     PlatformNames    `env:"ENTREPOT_WARM_PLATFORMS" envDefault:"native" doc:"Their platforms, such as linux/amd64,linux/arm/v7; native: Linux on the server's own architecture; all"`
	WarmEvery         Duration         `env:"ENTREPOT_WARM_EVERY" envDefault:"0s" doc:"How often what they name is checked, by HEAD; 0s: each before its TTL ends"`
	WarmWindow        DayWindow        `env:"ENTREPOT_WARM_WINDOW" doc:"The time of day in which their layers are fetched, such as 22:00-06:00; checks go on always, and where a tag has moved bring the manifest that it names now"`
	Offline           Switch           `env:"ENTREPOT_OFFLINE" envDefault:"false" doc:"Never contact an upstream: serve what is held"`
	Streams           Count            `env:"ENTREPOT_STREAMS" envDefault:"4" doc:"Transfers at once for one big blob, each over a connection of its own, 1 to 64"`
	StreamThreshold   Size             `env:"ENTREPOT_STREAM_THRESHOLD" envDefault:"32MiB" doc:"The size from which a blob is big"`
	Prefetch          Switch           `env:"ENTREPOT_PREFETCH" envDefault:"true" doc:"Once a client takes a layer, fetch the others of its image too"`
	CheckWait         Duration         `env:"ENTREPOT_CHECK_WAIT" envDefault:"2s" doc:"How long a held tag waits for its upstream to confirm it until it is served as stale; half of ENTREPOT_HEADER_TIMEOUT at most"`
	HeaderTimeout     Duration         `env:"ENTREPOT_HEADER_TIMEOUT" envDefault:"15s" doc:"How long a client waits for the headers of an answer until it is told 504, at least 1s"`
	ClientRate        Rate             `env:"ENTREPOT_CLIENT_RATE" envDefault:"0" doc:"Requests per second that one client may send over time: a user, an address, or a /64 of IPv6; it may send 100 at once, or four seconds' worth; what is more waits up to 5 s, and then is told 429; 0: any number"`
	ClientTransfers   Bound            `env:"ENTREPOT_CLIENT_TRANSFERS" envDefault:"0" doc:"Blobs that one client may have on their way at once; others wait up to 10 s, and then are told 429; 0: any number"`
	MaxConnections    Bound            `env:"ENTREPOT_MAX_CONNECTIONS" envDefault:"16384" doc:"Connections of clients at once, at each of the registry's addresses; beyond it those that are idle are closed, and new ones wait and are told 503; 0: any number"`
	ShutdownTimeout   Duration         `env:"ENTREPOT_SHUTDOWN_TIMEOUT" envDefault:"8s" doc:"How long running answers may take after SIGTERM until they are cut (containers are killed after 10 s)"`
	TraceEndpoint     CollectorURL     `env:"ENTREPOT_TRACE_ENDPOINT" doc:"OpenTelemetry collector that traces go to by OTLP over HTTP, such as http://127.0.0.1:4318; without it nothing is traced"`
	TraceRatio        Portion          `env:"ENTREPOT_TRACE_RATIO" envDefault:"100%" doc:"The part of the requests that is traced; where a client sends a traceparent, that says"`
	AccessLog         Switch           `env:"ENTREPOT_ACCESS_LOG" envDefault:"false" doc:"A line in the log for each request, at level info"`
	LogLevel          LogLevel         `env:"ENTREPOT_LOG_LEVEL" envDefault:"info" doc:"debug (a line per request), info, warn or error"`
	LogFormat         LogFormat        `env:"ENTREPOT_LOG_FORMAT" envDefault:"auto" doc:"console, json, or auto: console on a terminal"`

	HTTPProxy    ProxyURL `env:"HTTP_PROXY" alias:"http_proxy" empty:"no proxy" doc:"Proxy for upstreams with an http:// URL"`
	HTTPSProxy   ProxyURL `env:"HTTPS_PROXY" alias:"https_proxy" empty:"no proxy" doc:"Proxy for upstreams with an https:// URL, which is all unless set otherwise"`
	NoProxy      string   `env:"NO_PROXY" alias:"no_proxy" empty:"no exception" doc:"Hosts, domains and networks to reach without a proxy"`
	DockerConfig Dir      `env:"DOCKER_CONFIG" empty:"none" doc:"Directory of a Docker config.json whose logins, and credential helpers, are used for upstreams without a password here; not read unless set"`

	sources map[string]string // where each variable got its value, unless it is the default
	fitted  map[string]bool   // those whose default is shorter here, as ENTREPOT_HEADER_TIMEOUT wants it
}

// UpstreamConfig adds an upstream, or overrides one of the list.
type UpstreamConfig struct {
	Name         UpstreamName `env:"NAME" doc:"Adds or overrides an upstream; n counts from 0"`
	URL          BaseURL      `env:"URL" doc:"Where it is, if not at https://NAME; may be http://"`
	Username     Username     `env:"USERNAME" doc:"Account there"`
	Password     Secret       `env:"PASSWORD" doc:"Its password or token"`
	CAFile       CAFile       `env:"CA_FILE" doc:"PEM certificates to trust there, beside the system's"`
	AllowPrivate Switch       `env:"ALLOW_PRIVATE" envDefault:"false" doc:"Its token service and redirects may lead to private, loopback and link-local addresses"`
	Offline      Switch       `env:"OFFLINE" envDefault:"false" doc:"Never contact it: serve what is held"`
	KeepDeleted  Switch       `env:"KEEP_DELETED" envDefault:"true" doc:"A tag that it has deleted is served as long as it is held, as stale; off: it is answered as it is there, and forgotten, once a check has said so: by 404, or by 401 to a login that is good, as many registries answer for what is deleted and for what is private. A refused login, and 403 by the registry, say nothing about a tag. Content by digest is served either way"`
	Rate         Rate         `env:"RATE" doc:"Requests per second to it, and to its token service, such as 5 or 0.5, with bursts of twice as many; 0: no bound; not set: what is known to suit it"`
	Share        Share        `env:"SHARE" doc:"Its share of ENTREPOT_CACHE_SIZE, such as 30%: while it holds more, its content is the first to go"`

	Credential []CredentialConfig `envPrefix:"CREDENTIAL_"`
	Mirror     []MirrorConfig     `envPrefix:"URL_"`
}

// UpstreamSettings are what is known of one upstream after all variables that
// speak of it are put together.
type UpstreamSettings struct {
	Name         string
	URL          string // empty: the well-known place
	Login        Login  // for every repository that Logins does not cover
	Logins       []PrefixLogin
	Mirrors      []MirrorSettings // in the order in which they are asked
	CA           CAFile
	AllowPrivate bool
	Offline      bool
	DropDeleted  bool
	Rate         float64 // requests per second; 0: what suits it, below 0: no bound
	Share        float64 // of the data directory; 0 for none
}

// readConfig reads the environment. It goes on after a problem and returns all
// of them; the variables concerned are then at their defaults.
func readConfig(environ []string) (*Config, problems) {
	var found problems
	vars := settingVars(env.ToMap(environ), &found)
	c := new(Config)
	if err := env.ParseWithOptions(c, env.Options{Environment: plainValues(vars)}); err != nil {
		found.add("ENTREPOT_", "%v", err) // every value has been parsed alone before
	}
	c.sources = map[string]string{}
	eachValue(c, func(name string, s setting, v any) {
		switch set := vars[name]; {
		case !set.isSet:
		case set.file != "":
			*v.(*Secret) = set.secret
			c.sources[name] = "file " + set.file
		default:
			c.sources[name] = "environment"
			if set.text == "" {
				zero(v)
			}
		}
	})
	c.fitWaits()
	c.check(&found)
	slices.SortStableFunc(found, func(a, b problem) int { return cmp.Compare(a.name, b.name) })
	return c, found
}

// loadConfig is readConfig for those who need all of it to be right.
func loadConfig(environ []string) (*Config, error) {
	c, found := readConfig(environ)
	if len(found) > 0 {
		return nil, found
	}
	return c, nil
}

// check finds what is wrong between settings that are each well formed.
func (c *Config) check(found *problems) {
	for _, pair := range [][2]string{
		{"ENTREPOT_ADMIN_LISTEN", "ENTREPOT_LISTEN"},
		{"ENTREPOT_METRICS_LISTEN", "ENTREPOT_LISTEN"},
		{"ENTREPOT_METRICS_LISTEN", "ENTREPOT_ADMIN_LISTEN"},
		{"ENTREPOT_PLAIN_LISTEN", "ENTREPOT_LISTEN"},
		{"ENTREPOT_PLAIN_LISTEN", "ENTREPOT_ADMIN_LISTEN"},
		{"ENTREPOT_PLAIN_LISTEN", "ENTREPOT_METRICS_LISTEN"},
	} {
		listen := map[string]Address{"ENTREPOT_LISTEN": c.Listen, "ENTREPOT_PLAIN_LISTEN": c.PlainListen, "ENTREPOT_ADMIN_LISTEN": c.AdminListen, "ENTREPOT_METRICS_LISTEN": c.MetricsListen}
		if a, b := listen[pair[0]], listen[pair[1]]; a.overlaps(b) && !found.concern(pair[:]...) {
			found.add(pair[0], "%s is taken by %s (%s): want another port", a, pair[1], b)
		}
	}
	if c.HeaderTimeout < Duration(time.Second) && !found.concern("ENTREPOT_HEADER_TIMEOUT") {
		found.add("ENTREPOT_HEADER_TIMEOUT", "%s would refuse what an upstream is about to answer: want 1s or more", c.HeaderTimeout)
	}
	for _, w := range c.boundedWaits() {
		if *w.wait > w.most && !found.concern(w.name, "ENTREPOT_HEADER_TIMEOUT") {
			found.add(w.name, "%s is too long for a client that has its answer after ENTREPOT_HEADER_TIMEOUT=%s: want %s or less, or more there", *w.wait, c.HeaderTimeout, w.most)
		}
	}
	if c.QueueWait > 0 && c.QueueWait < leastQueueWait && !c.fitted["ENTREPOT_QUEUE_WAIT"] && !found.concern("ENTREPOT_QUEUE_WAIT") {
		found.add("ENTREPOT_QUEUE_WAIT", "%s is over before any turn comes: want %s or more, or 0s to wait for none", c.QueueWait, leastQueueWait)
	}
	if bool(c.AccessLog) && (c.LogLevel == "warn" || c.LogLevel == "error") {
		found.add("ENTREPOT_ACCESS_LOG", "has lines of level info, which ENTREPOT_LOG_LEVEL=%s leaves out: want info or debug there", c.LogLevel)
	}
	if c.CacheSize > 0 && c.CacheSize < minCacheSize && !found.concern("ENTREPOT_CACHE_SIZE") {
		found.add("ENTREPOT_CACHE_SIZE", "%s holds next to nothing: want %s or more, or 0 for no cap", c.CacheSize, Size(minCacheSize))
	}
	c.checkTLS(found)
	c.checkAccess(found)
	c.checkAdminToken(found)
	c.checkTagTTLs(found)
	c.checkUpstreams(found)
	c.checkDockerHub(found)
	c.checkRules(found)
	c.checkPolicy(found)
	c.checkWarm(found)
}

// leastQueueWait is the shortest wait that can be meant: five turns of twenty a second.
const leastQueueWait = Duration(250 * time.Millisecond)

// boundedWait is a wait that an answer's deadline leaves so much room for.
type boundedWait struct {
	name string
	wait *Duration
	most Duration
}

func (c *Config) boundedWaits() []boundedWait {
	return []boundedWait{
		{"ENTREPOT_QUEUE_WAIT", &c.QueueWait, c.HeaderTimeout * 2 / 3},
		{"ENTREPOT_CHECK_WAIT", &c.CheckWait, c.HeaderTimeout / 2},
	}
}

// fitWaits shortens the waits that are not set to what room there is.
func (c *Config) fitWaits() {
	c.fitted = map[string]bool{}
	for _, w := range c.boundedWaits() {
		if c.sources[w.name] == "" && *w.wait > w.most {
			*w.wait, c.fitted[w.name] = w.most, true
		}
	}
}

// minCacheSize is the least that the store takes for a budget.
const minCacheSize = 4 << 20

// checkAdminToken refuses what could be guessed, and what no header can carry.
func (c *Config) checkAdminToken(found *problems) {
	if !c.AdminToken.IsSet() || found.concern("ENTREPOT_ADMIN_TOKEN") {
		return
	}
	if token, _ := c.AdminToken.Value(); len(token) < 16 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		found.add("ENTREPOT_ADMIN_TOKEN", "cannot be used: want 16 characters or more of ASCII, without spaces, such as openssl rand -hex 16 makes")
	}
}

func (c *Config) checkUpstreams(found *problems) {
	seen := map[UpstreamName]string{}
	for i, u := range c.Upstream {
		name := func(field string) string { return fmt.Sprintf("ENTREPOT_UPSTREAM_%d_%s", i, field) }
		switch other := seen[u.Name]; {
		case u.Name == "" && !found.concern(name("NAME")):
			found.add(name("NAME"), "is not set, but others of ENTREPOT_UPSTREAM_%d_ are: want the upstream's name, such as ghcr.io", i)
		case other != "":
			found.add(name("NAME"), "%s is already %s: want each upstream once", u.Name, other)
		case u.Name != "":
			seen[u.Name] = name("NAME")
		}
		checkLogin(found, name("USERNAME"), u.Username, name("PASSWORD"), u.Password)
		checkCredentials(found, name("CREDENTIAL_"), u)
		checkMirrors(found, name("URL_"), u)
		if u.Share > 0 && c.CacheSize == 0 && !found.concern("ENTREPOT_CACHE_SIZE") {
			found.add(name("SHARE"), "is a share of ENTREPOT_CACHE_SIZE, which is no cap: want one there, or no share")
		}
		checkClear(found, u.URL, u.CAFile, name("CA_FILE"), name("URL"))
	}
	if found.concern("ENTREPOT_UPSTREAMS", "ENTREPOT_UPSTREAM_") {
		return // half of the names are unknown
	}
	names := c.upstreamNames()
	if !slices.Contains(names, string(c.DefaultUpstream)) && !found.concern("ENTREPOT_DEFAULT_UPSTREAM") {
		found.add("ENTREPOT_DEFAULT_UPSTREAM", "%s is not an upstream: want one of %s, or add it to ENTREPOT_UPSTREAMS", c.DefaultUpstream, strings.Join(names, ", "))
	}
	for _, own := range c.OwnNames {
		if slices.Contains(names, own) {
			found.add("ENTREPOT_OWN_NAMES", "%s is an upstream, so it cannot be a name of this cache too", own)
		}
	}
}

func (c *Config) checkDockerHub(found *problems) {
	const username, password = "ENTREPOT_DOCKERHUB_USERNAME", "ENTREPOT_DOCKERHUB_PASSWORD"
	checkLogin(found, username, c.DockerHubUsername, password, c.DockerHubPassword)
	if c.DockerHubUsername == "" || found.concern("ENTREPOT_UPSTREAMS", "ENTREPOT_UPSTREAM_") {
		return
	}
	if !slices.Contains(c.upstreamNames(), oci.DockerHub) {
		found.add(username, "is set, but %s is not an upstream: add it to ENTREPOT_UPSTREAMS", oci.DockerHub)
	}
	for i, u := range c.Upstream {
		if u.Name == oci.DockerHub && u.Username != "" {
			found.add(username, "is set, and ENTREPOT_UPSTREAM_%d_USERNAME as well, for the same upstream: want one of them", i)
		}
	}
}

func checkLogin(found *problems, usernameVar string, username Username, passwordVar string, password Secret) {
	if found.concern(usernameVar, passwordVar) {
		return
	}
	if username == "" && password.IsSet() {
		found.add(passwordVar, "is set without %s: want both", usernameVar)
	}
	if username != "" && !password.IsSet() {
		found.add(usernameVar, "is set without %s or %s_FILE: want both", passwordVar, passwordVar)
	}
}

// upstreamNames are all names of the closed set, those of the list first.
func (c *Config) upstreamNames() []string {
	var names []string
	for _, u := range c.UpstreamSettings() {
		names = append(names, u.Name)
	}
	return names
}

// UpstreamSettings puts together what all variables say of each upstream, in
// the order in which they name them.
func (c *Config) UpstreamSettings() []UpstreamSettings {
	var all []UpstreamSettings
	for _, name := range c.Upstreams {
		all = append(all, UpstreamSettings{Name: string(name)})
	}
	for n, u := range c.Upstream {
		variables := fmt.Sprintf("ENTREPOT_UPSTREAM_%d_", n)
		i := slices.IndexFunc(all, func(s UpstreamSettings) bool { return s.Name == string(u.Name) })
		if i < 0 {
			all, i = append(all, UpstreamSettings{}), len(all)
		}
		all[i] = UpstreamSettings{
			Name: string(u.Name), URL: string(u.URL), Login: newLogin(variables, u.Username, u.Password),
			Logins: prefixLogins(variables, u.Credential), Mirrors: mirrorSettings(variables, u.Mirror),
			CA: u.CAFile, AllowPrivate: bool(u.AllowPrivate), Share: u.Share.Fraction(),
			Offline: bool(u.Offline), DropDeleted: !bool(u.KeepDeleted), Rate: u.Rate.perSecond(),
		}
	}
	for i := range all {
		if all[i].Name == oci.DockerHub && c.DockerHubUsername != "" {
			all[i].Login = newLogin("ENTREPOT_DOCKERHUB_", c.DockerHubUsername, c.DockerHubPassword)
		}
	}
	c.addRuleLogins(all)
	return all
}

// offline are the upstreams that are not to be asked.
func (c *Config) offline() (names []string) {
	for _, u := range c.UpstreamSettings() {
		if u.Offline || bool(c.Offline) {
			names = append(names, u.Name)
		}
	}
	return names
}

// Names decides which repository a client means.
func (c *Config) Names() *oci.Names {
	return &oci.Names{Default: string(c.DefaultUpstream), Upstreams: c.upstreamNames(), Own: c.ownHosts(), OwnPorts: c.ownPorts(), Rules: c.nameRules()}
}

// ownHosts are the names that clients have for this cache, as far as they are set. One
// that is an upstream's as well means that.
func (c *Config) ownHosts() []string {
	all := slices.Clone([]string(c.OwnNames))
	if u, err := url.Parse(string(c.URL)); err == nil && u.Host != "" {
		for _, host := range []string{u.Host, u.Hostname()} {
			if host == u.Host || u.Port() == "443" || u.Port() == "80" {
				all = append(all, host)
			}
		}
	}
	return slices.DeleteFunc(all, func(host string) bool { return slices.Contains(c.upstreamNames(), oci.FoldHost(host)) })
}

// ownPorts are those that clients ask the registry at.
func (c *Config) ownPorts() (ports []string) {
	for _, a := range []Address{c.Listen, c.PlainListen} {
		if _, port := a.split(); port != "" && port != "0" {
			ports = append(ports, port)
		}
	}
	return ports
}

// dataPath is the data directory, absolute where that can be found out.
func (c *Config) dataPath() string {
	if absolute, err := filepath.Abs(string(c.Data)); err == nil {
		return absolute
	}
	return string(c.Data)
}

// Proxy tells which forward proxy a request takes; nil for none.
func (c *Config) Proxy() func(*http.Request) (*url.URL, error) {
	proxyFor := (&httpproxy.Config{
		HTTPProxy: string(c.HTTPProxy), HTTPSProxy: string(c.HTTPSProxy), NoProxy: c.NoProxy,
	}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return proxyFor(r.URL) }
}

// Warnings are what is allowed but seldom meant.
func (c *Config) Warnings() []string {
	var all []string
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if c.AdminListen != "" && !c.AdminListen.isLoopback() {
		if c.AdminToken.IsSet() {
			warn("ENTREPOT_ADMIN_LISTEN=%s is reached from other machines, and ENTREPOT_ADMIN_TOKEN travels there in clear", c.AdminListen)
		} else {
			warn("ENTREPOT_ADMIN_LISTEN=%s is reached from other machines, so it answers nothing but probes until ENTREPOT_ADMIN_TOKEN is set", c.AdminListen)
		}
	}
	if variable := c.clearLogins(); variable != "" {
		warn("passwords of clients travel in clear to %s: give the registry a certificate, or let something that ends TLS stand before it and set ENTREPOT_URL", variable)
	}
	if content, err := readSmallFile(string(c.AccessFile)); c.AccessFile != "" && err == nil {
		for _, text := range access.Warnings(content, c.Names()) {
			all = append(all, c.aboutAccess(text))
		}
	}
	all = append(all, c.aboutWarm()...)
	if c.TLSClientAuth == "required" && c.PlainListen != "" && !c.PlainListen.isLoopback() && !c.hasAccess() {
		warn("%s=%s asks nobody for a certificate: everybody who reaches it can pull, unless there are users or rights", plainVar, c.PlainListen)
	}
	for _, u := range c.UpstreamSettings() {
		for _, place := range u.signedInAt() {
			if BaseURL(place).isClear() {
				warn("the password for %s travels in clear: its URL is %s", u.Name, place)
			}
		}
		if text := c.givesAway(u.Name, u.accounts()); text != "" {
			warn("%s", text)
		}
	}
	for _, text := range c.idlePatterns() {
		warn("%s", text)
	}
	if c.DockerConfig != "" {
		if _, err := os.Stat(filepath.Join(string(c.DockerConfig), "config.json")); err != nil {
			warn("DOCKER_CONFIG is set, but there is no login to read: %v", err)
		}
	}
	return all
}

// idlePatterns are warnings of patterns for upstreams that are none.
func (c *Config) idlePatterns() (all []string) {
	names := c.upstreamNames()
	look := func(variable string, match Glob) {
		if host := match.host(); host != "" && !slices.ContainsFunc(names, func(name string) bool { return oci.Matches(host, name) }) {
			all = append(all, fmt.Sprintf("%s=%s is about %s, which is not an upstream: it matches nothing; the upstreams are %s", variable, match, host, strings.Join(names, ", ")))
		}
	}
	for i, r := range c.Policy {
		look(fmt.Sprintf("ENTREPOT_POLICY_%d_MATCH", i), r.Match)
	}
	for i, r := range c.TagTTLRules {
		look(fmt.Sprintf("ENTREPOT_TAG_TTL_%d_MATCH", i), r.Match)
	}
	return all
}

// aboutAccess is a warning about the access file.
func (c *Config) aboutAccess(text string) string {
	return fmt.Sprintf("%s: %s: %s", accessVar, c.AccessFile, text)
}

// givesAway is the warning that accounts at an upstream are everybody's, empty
// where there is none or nobody comes in unasked.
func (c *Config) givesAway(upstream string, accounts []string) string {
	open, public := c.openAddresses(), c.publicGlobs(upstream)
	if len(accounts) == 0 || len(open) == 0 || c.hasAccess() && len(public) == 0 {
		return ""
	}
	text := fmt.Sprintf("everybody who reaches %s can pull from %s what the account %s may read", strings.Join(open, " or "), upstream, strings.Join(accounts, " or "))
	if len(public) > 0 {
		text += fmt.Sprintf(", as far as %s lets them: %s", accessVar, strings.Join(public, ", "))
	}
	return text
}

// openAddresses are those at which clients of other machines need to show no
// certificate.
func (c *Config) openAddresses() []string {
	var open []string
	if !c.Listen.isLoopback() && c.TLSClientAuth != "required" {
		open = append(open, string(c.Listen))
	}
	if c.PlainListen != "" && !c.PlainListen.isLoopback() {
		open = append(open, string(c.PlainListen))
	}
	return open
}

// problem is one thing wrong with one variable.
type problem struct{ name, text string }

// problems is all that is wrong with the environment, as one error.
type problems []problem

func (p *problems) add(name, format string, args ...any) {
	*p = append(*p, problem{name, fmt.Sprintf(format, args...)})
}

// concern reports whether something is wrong already with one of these
// variables, or, for a name that ends in an underscore, with any that starts so.
// What follows from such a problem is not worth reporting too.
func (p *problems) concern(names ...string) bool {
	return slices.ContainsFunc(*p, func(q problem) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			return q.name == name || q.name == name+fileSuffix || strings.HasSuffix(name, "_") && strings.HasPrefix(q.name, name)
		})
	})
}

func (p problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.name + ": " + one.text
	}
	if len(lines) == 1 {
		return "configuration: " + lines[0]
	}
	return fmt.Sprintf("configuration has %d problems:\n  %s", len(lines), strings.Join(lines, "\n  "))
}

// parseAlone lets the library parse one variable into a Config of its own. The
// library tells only the field's name of an error, stops at the first one in a
// list, and takes an empty value for none: alone, each error has its variable.
func parseAlone(s setting, text string) error {
	name := s.libraryName(numbered(s.name, func(int) string { return "0" }))
	err := env.ParseWithOptions(new(Config), env.Options{Environment: map[string]string{name: text}})
	if parse, ok := errors.AsType[env.ParseError](err); ok {
		return parse.Err
	}
	return err
}

// plainValues are the variables as the library is to see them. A file's name is
// among them, though no field has it, so that the list it belongs to is made.
func plainValues(vars map[string]variable) map[string]string {
	plain := map[string]string{}
	for name, v := range maps.All(vars) {
		if v.file != "" {
			name += fileSuffix
		}
		plain[v.of.libraryName(name)] = v.text
	}
	return plain
}

// wantsColour reports whether a terminal is to be written to in colour: see
// no-color.org.
func wantsColour(environ []string) bool {
	vars := env.ToMap(environ)
	return vars["NO_COLOR"] == "" && vars["TERM"] != "dumb"
}
