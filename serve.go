package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"entrepot/access"
	"entrepot/cache"
	"entrepot/certs"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/ratelimit"
	"entrepot/store"
	"entrepot/upstream"

	"github.com/rs/zerolog"
)

const serveHelp = `Serves the registry, and on other addresses metrics and health, until SIGTERM or
an interrupt. Then running answers may finish within ENTREPOT_SHUTDOWN_TIMEOUT;
a second signal ends the program at once. SIGHUP has the files of certificates,
users, rights, secrets and authorities read again. entrepot config shows what is
configured.
`

// closeGrace is how long what is left may take after running answers have ended
// or were cut, and after that the cache. Containers are killed two seconds after
// answers are cut.
const closeGrace = 500 * time.Millisecond

// gcHeadroom is how much garbage may come together before it is collected,
// beside what the heap holds. Without it Go waits until the heap has doubled,
// and ours has 4 MiB: a busy server then collects forty times a second, for a
// tenth of its processor time. It is an allocation that nobody touches, so the
// kernel gives no memory for it, and a full memory tier does not multiply it, as
// a higher GOGC would.
const gcHeadroom = 16 << 20

// serve is the map of the program. It builds the stack from the disk up, one
// Source on the other, and the deferred calls close it in reverse: listeners,
// answers, fills, upstreams, disk.
func serve(ctx context.Context, in invocation) (err error) {
	hangups := catchHangups()
	if err := in.noArguments("serve"); err != nil {
		return err
	}
	cfg, err := loadConfig(in.environ)
	if err != nil {
		return err
	}
	logger := newLogger(in.stderr, cfg.LogLevel, cfg.LogFormat)
	for _, warning := range cfg.Warnings() {
		logger.Warn().Msg(warning)
	}

	headroom := make([]byte, gcHeadroom)
	defer runtime.KeepAlive(headroom)

	began, about := time.Now(), readBuild()
	counts := newMetrics(about, cfg.upstreamNames())
	spent := ledger.New()
	watcher := newObserver(logger, counts, spent)
	watcher.access, watcher.settingOf, watcher.signIn = bool(cfg.AccessLog), cfg.loginSettings, cfg.signInRemedy

	traced := openTraces(cfg, about, watcher)
	defer traced.close(logger)

	reloads := newReloader(logger, hangups, cfg.namesOfFiles)
	shown, err := openCertificates(cfg, watcher, reloads)
	if err != nil {
		return err
	}

	// Addresses first: that they are taken is the commonest mistake. Until the
	// stack is up clients are told to come again.
	lines, err := listenAll(ctx, cfg)
	if err != nil {
		return err
	}
	seen := func(kind string, serve aside) http.Handler {
		return traced.requests(proxy.Aside(kind, watcher.request, serve))
	}
	front := startFront(lines, shown, cfg, counts.handler(logger), seen, watcher)
	stop := sync.OnceFunc(func() { front.stop(time.Duration(cfg.ShutdownTimeout), logger) })
	defer stop() // where the stack does not come up

	disk, err := openDisk(ctx, cfg, watcher)
	if ctx.Err() != nil {
		return closeUnused(disk)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	defer keepLedger(spent, disk, watcher)()

	upstreams, err := openUpstreams(ctx, cfg, about, watcher.ofUpstreams(), logger)
	if err != nil {
		return err
	}
	defer upstreams.Close()
	defer keepQuotas(upstreams, disk, watcher)()

	settings := cfg.cache(watcher)
	settings.Login = upstreams.Login
	held := cache.New(disk, upstreams, settings)
	defer closeCache(held, logger)

	counts.watch(disk.Stats, held.Stats, upstreams.Quotas, cfg.CacheSize)
	clients := ratelimit.NewClients(ratelimit.ClientLimits{Rate: cfg.ClientRate.perSecond(), Transfers: int(cfg.ClientTransfers)})
	counts.watchClients(clients)
	counts.watchConnections(front.connections)
	counts.watchUpstreams(spent, upstreams)
	allowed := traced.source(guarded(held, leadFinder{disk}, cfg, watcher))
	guard, err := openAccess(cfg, allowed, held, clients, shown, watcher, reloads)
	if err != nil {
		return err
	}
	reloads.addCAs(cfg, upstreams)
	reloads.addSecrets(cfg)
	reloads.start()
	defer reloads.close()
	api := proxy.New(allowed, proxy.Config{
		Names: cfg.Names(), Catalog: held, Observe: watcher.request, Clients: clients, HeaderTimeout: time.Duration(cfg.HeaderTimeout),
		Admit: admit(guard), Refuse: refuse(guard),
		MayRefresh: func(r *http.Request, user string) bool { return cfg.mayRefresh(r, user, guard != nil) },
	})

	ahead := newWarming(cfg, allowed, held, upstreams, watcher)
	counts.watchWarm(ahead.list.Totals)
	defer ahead.keep(ctx, cfg)()

	defer stop() // before what they answer from
	front.api.open(withTokens(traced.requests(api), guard, seen))
	live := newLive(cfg, held, upstreams, spent, ahead, reloads.unread, began)
	front.operators.open(newAdminGuard(newAdminAPI(disk, live, cfg, about.Version), cfg, logger))
	front.ready.ready.Store(true)
	announce(newWelcome(cfg, about.Version, lines, shown), in, cfg, logger)
	if err := tellManager(in.environ); err != nil {
		logger.Warn().Err(err).Msg("the service manager does not hear that we serve")
	}

	select {
	case err = <-front.failed:
	case <-ctx.Done():
	}
	return err
}

// front is what clients reach: the servers, which answer from the start, and
// what they lead to once it is there.
type front struct {
	registry  []*server
	others    []*server
	api       gate
	operators gate
	ready     readiness
	failed    chan error // from a listener that takes no more connections
}

// The listeners' names, for messages and metrics.
const (
	registryListener = "registry"
	plainListener    = "plain registry"
	adminListener    = "admin"
	metricsListener  = "metrics"
)

var listenerNames = [...]string{registryListener, plainListener, adminListener, metricsListener}

func startFront(l lines, shown *certs.Keeper, cfg *Config, scrape http.Handler, seen sight, watcher *observer) *front {
	f := &front{failed: make(chan error, 4)} // one for each listener
	f.api.closed = seen(none, starting)
	to := reports{log: watcher.log, failed: func(err error) { f.failed <- err }, crowded: watcher.crowded}
	most := cfg.MaxConnections
	api := registryHandler(&f.api, seen)
	if shown == nil {
		f.registry = append(f.registry, startServer(registryListener, l.registry, api, nil, most, to))
	} else {
		f.registry = append(f.registry, startServer(registryListener, l.registry, certified(api, shown.Refuses, seen), shown.Config(), most, to))
	}
	if l.plain != nil {
		f.registry = append(f.registry, startServer(plainListener, l.plain, shown.Challenges(api), nil, most, to))
	}
	if l.admin != nil {
		telling := func(h http.Handler) http.Handler { return newTellingGuard(h, cfg, watcher.log) }
		f.others = append(f.others, startOperators(adminListener, l.admin, adminHandler(scrape, &f.ready, &f.operators, telling, seen), to))
	}
	if l.metrics != nil {
		f.others = append(f.others, startOperators(metricsListener, l.metrics, metricsHandler(scrape, &f.ready, seen), to))
	}
	return f
}

// connections are those of clients to the registry.
func (f *front) connections() (open int64) {
	for _, s := range f.registry {
		open += s.all.open.Load()
	}
	return open
}

// stop ends the registry's answers in their time, and then, so that probes see
// what is going on, the rest at once. It takes closeGrace more than timeout at
// most. Where the server has not come up it says nothing: the reason for that does.
func (f *front) stop(timeout time.Duration, logger zerolog.Logger) {
	if wasReady := f.ready.ready.Swap(false); !wasReady {
		logger = zerolog.Nop()
	}
	logger.Info().Stringer("timeout", timeout).Msg("stopping: running answers may finish")
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var rest sync.WaitGroup
	for _, s := range f.others {
		rest.Go(func() {
			<-ctx.Done() // the registry's time, or it has stopped
			s.stop(ctx, closeGrace)
		})
	}
	var registry sync.WaitGroup
	for _, s := range f.registry {
		registry.Go(func() {
			if s.stop(ctx, closeGrace) {
				logger.Warn().Stringer("timeout", timeout).Msg("answers that took longer were cut")
			}
		})
	}
	registry.Wait()
	cancel()
	rest.Wait()
	logger.Info().Msg("stopped")
}

// lines are the addresses that are listened on; nil for those that are not.
type lines struct{ registry, plain, admin, metrics net.Listener }

func listenAll(ctx context.Context, cfg *Config) (l lines, err error) {
	into := map[string]*net.Listener{
		"ENTREPOT_LISTEN": &l.registry, plainVar: &l.plain, "ENTREPOT_ADMIN_LISTEN": &l.admin, "ENTREPOT_METRICS_LISTEN": &l.metrics,
	}
	for _, one := range cfg.listeners() {
		if *into[one.variable], err = listen(ctx, one.variable, one.address); err != nil {
			l.close()
			return lines{}, err
		}
	}
	return l, nil
}

// listenSetting is an address that is to be listened on.
type listenSetting struct {
	variable string
	address  Address
}

func (c *Config) listeners() []listenSetting {
	return slices.DeleteFunc([]listenSetting{
		{"ENTREPOT_LISTEN", c.Listen}, {plainVar, c.PlainListen}, {"ENTREPOT_ADMIN_LISTEN", c.AdminListen}, {"ENTREPOT_METRICS_LISTEN", c.MetricsListen},
	}, func(one listenSetting) bool { return one.address == "" })
}

func (l lines) close() {
	for _, one := range []net.Listener{l.registry, l.plain, l.admin, l.metrics} {
		if one != nil {
			one.Close()
		}
	}
}

// openCertificates reads what the registry's listener shows; nil for a listener
// without TLS.
func openCertificates(cfg *Config, watcher *observer, reloads *reloader) (*certs.Keeper, error) {
	if !cfg.hasTLS() {
		return nil, nil
	}
	shown, err := certs.Open(cfg.certificates(watcher.certificateTrouble))
	if err != nil {
		return nil, err
	}
	watcher.metrics.watchCertificate(shown.Ends)
	warn := expiryWarning(reloads.log, shown.Ends, shown.Notice)
	warn(time.Now())
	if paths := shown.Paths(); len(paths) > 0 {
		reloads.add("TLS certificate", shown.Reload, paths...)
	}
	reloads.also = append(reloads.also, warn)
	return shown, nil
}

// openAccess makes the guard between clients and what is held; nil where nobody
// has to say who they are.
func openAccess(cfg *Config, src oci.Source, catalog oci.Catalog, clients *ratelimit.Clients, shown *certs.Keeper, watcher *observer, reloads *reloader) (*access.Gate, error) {
	if !cfg.hasAccess() {
		return nil, nil
	}
	ac := access.Config{
		Source: src, Catalog: catalog, Names: cfg.Names(), URL: string(cfg.URL), Proxy: cfg.Proxy(), ReadFile: readSmallFile,
		Failed: watcher.loginFailed,
		Turn:   func(ctx context.Context, client string) error { return clients.Admit(ctx, client, time.Now()) },
	}
	if shown != nil {
		ac.Trusts = shown.Trusts
	}
	if cfg.UsersFile != "" {
		ac.ReadUsers = func() ([]byte, error) { return readSmallFile(string(cfg.UsersFile)) }
	}
	if cfg.AccessFile != "" {
		ac.ReadRules = func() ([]byte, error) { return readSmallFile(string(cfg.AccessFile)) }
		var err error
		if ac.Key, err = cfg.tokenKey(); err != nil {
			return nil, err
		}
	}
	guard, err := access.New(ac)
	if err != nil {
		return nil, err
	}
	if cfg.UsersFile != "" {
		reloads.add("users", guard.ReloadUsers, string(cfg.UsersFile))
	}
	if cfg.AccessFile != "" {
		reload := func() error {
			if err := guard.ReloadRules(); err != nil {
				return err
			}
			for _, text := range guard.Warnings() {
				watcher.log.Warn().Msg(cfg.aboutAccess(text))
			}
			return nil
		}
		reloads.addChanging("rights", reload, func() []string { return append([]string{string(cfg.AccessFile)}, guard.RulesFiles()...) })
	}
	return guard, nil
}

// admit lets the proxy ask the guard, of which it knows nothing; nil for none.
func admit(guard *access.Gate) func(*http.Request, oci.Kind) (proxy.Pass, error) {
	if guard == nil {
		return nil
	}
	return func(r *http.Request, kind oci.Kind) (proxy.Pass, error) {
		s, err := guard.Admit(r, kind)
		if err != nil {
			return proxy.Pass{}, err
		}
		return proxy.Pass{User: s.Name(), Source: s, Catalog: s}, nil
	}
}

func refuse(guard *access.Gate) func(*http.Request, oci.Request, error, http.Header) error {
	if guard == nil {
		return nil
	}
	return guard.Refuse
}

// withTokens puts the token service beside the API, if there is one.
func withTokens(api http.Handler, guard *access.Gate, seen sight) http.Handler {
	if guard == nil || !guard.HasTokens() {
		return api
	}
	tokens := seen(tokenRoute, guard.ServeToken)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == access.TokenPath {
			tokens.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// closeUnused is for a start that was ended.
func closeUnused(disk *store.Disk) error {
	if disk == nil {
		return nil
	}
	return disk.Close()
}

// lockNotice is how long the data directory may be somebody else's in silence.
const lockNotice = 2 * time.Second

func openDisk(ctx context.Context, cfg *Config, watcher *observer) (*store.Disk, error) {
	notice := time.AfterFunc(lockNotice, func() {
		watcher.log.Info().Str("data", string(cfg.Data)).Msg("waiting for the data directory, which another process has")
	})
	defer notice.Stop()
	disk, err := store.Open(ctx, store.Config{
		Dir: string(cfg.Data), Memory: int64(cfg.Memory), Budget: int64(cfg.CacheSize), MinFree: cfg.MinFree.store(),
		Shares: cfg.shares(), Upstreams: cfg.upstreamNames(), Offline: cfg.offline(),
		ScrubRate: int64(cfg.ScrubRate), Warn: watcher.diskWarning,
	})
	if err != nil {
		return nil, fmt.Errorf("ENTREPOT_DATA=%s: %w", cfg.Data, err)
	}
	if total, free, err := store.Space(string(cfg.Data)); err == nil {
		if text, remedy := roomTrouble(cfg, total, free); text != "" {
			watcher.log.Warn().Str("data", string(cfg.Data)).Msg(text + ": " + remedy)
		}
	}
	return disk, nil
}

// shares are the upstreams' shares of the data directory.
func (c *Config) shares() map[string]float64 {
	shares := map[string]float64{}
	for _, u := range c.UpstreamSettings() {
		if u.Share > 0 {
			shares[u.Name] = u.Share
		}
	}
	return shares
}

// openUpstreams makes a client for each upstream. told are those fields of their
// configuration that say who hears of what they do.
func openUpstreams(ctx context.Context, cfg *Config, about build, told upstream.Config, logger zerolog.Logger) (*upstream.Set, error) {
	settings := cfg.UpstreamSettings()
	logins := findLogins(ctx, cfg, settings, logger)
	var clients []*upstream.Client
	for i, u := range settings {
		client, err := upstream.New(upstream.Config{
			Name: u.Name, URL: u.URL, CA: u.CA.PEM, AllowPrivate: u.AllowPrivate,
			Credentials: logins[i].credentials, Accounts: logins[i].accounts, Mirrors: u.mirrors(), ForeignHosts: cfg.ForeignHosts, Limits: cfg.limits(u),
			Proxy: cfg.Proxy(), UserAgent: about.userAgent(),
			Observe: told.Observe, Received: told.Received, Warn: told.Warn,
			Timeouts: upstream.Timeouts{Answer: time.Duration(cfg.HeaderTimeout)},
		})
		if err != nil {
			upstream.NewSet(clients...).Close()
			return nil, err
		}
		clients = append(clients, client)
	}
	return upstream.NewSet(clients...), nil
}

// loginWait is how long a start waits for credential helpers.
const loginWait = 5 * time.Second

// identity is what an upstream is signed in to with, and as whom.
type identity struct {
	credentials upstream.Credentials
	accounts    []string
}

// findLogins looks for all upstreams' credentials at once, since a helper is a
// program that may hang.
func findLogins(ctx context.Context, cfg *Config, settings []UpstreamSettings, logger zerolog.Logger) []identity {
	ctx, cancel := context.WithTimeout(ctx, loginWait)
	defer cancel()
	logins := make([]identity, len(settings))
	var looking sync.WaitGroup
	for i, u := range settings {
		looking.Go(func() { logins[i] = credentials(ctx, cfg, u, logger) })
	}
	looking.Wait()
	return logins
}

// cache is what the settings say to the cache, to which zero means its default.
func (c *Config) cache(watcher *observer) cache.Config {
	cc := cache.Config{
		TTL: c.TagTTL.Duration(), Rules: c.rules(), Offline: bool(c.Offline), Private: c.hasSecrets(), Warn: watcher.cacheWarning,
		CheckWait: max(1, time.Duration(c.CheckWait)), Remember: time.Duration(c.NegativeTTL),
		Streams: int(c.Streams), StreamThreshold: max(1, int64(c.StreamThreshold)),
		Without: map[string]bool{}, DropDeleted: map[string]bool{},
	}
	for _, u := range c.UpstreamSettings() {
		cc.Without[u.Name], cc.DropDeleted[u.Name] = u.Offline, u.DropDeleted
	}
	if c.NegativeTTL == 0 {
		cc.Remember = -1
	}
	if !c.Prefetch {
		cc.Prefetch = -1
	}
	return cc
}

// limits are what the settings say of how much we ask of an upstream, where zero
// means what suits it.
func (c *Config) limits(u UpstreamSettings) ratelimit.Limits {
	l := ratelimit.Limits{
		Rate: u.Rate, Reserve: c.QuotaReserve.Fraction(),
		Wait: max(1, time.Duration(c.QueueWait)),
	}
	if l.Reserve == 0 {
		l.Reserve = -1
	}
	return l
}

// credentials are what the environment has for an upstream, or else Docker's
// configuration; nil for nothing. A login that cannot be had now does not keep
// us from serving what is held.
func credentials(ctx context.Context, cfg *Config, u UpstreamSettings, logger zerolog.Logger) identity {
	base, accounts := u.Login.credentials(), u.accounts()
	if base == nil && cfg.DockerConfig != "" && !bool(cfg.Offline) && !u.Offline {
		var err error
		if base, err = upstream.DockerConfig(ctx, string(cfg.DockerConfig), u.Name); err != nil {
			logger.Warn().Str("upstream", u.Name).Err(err).Msg("no login from DOCKER_CONFIG: asking anonymously until the next start")
		}
		docker := accountOf(ctx, base)
		if text := cfg.givesAway(u.Name, docker); text != "" {
			logger.Warn().Msg(text + ", which DOCKER_CONFIG has")
		}
		accounts = append(accounts, docker...)
	}
	return identity{u.signIn(base), accounts}
}

// accountOf names whom credentials are of; a token alone has no name.
func accountOf(ctx context.Context, of upstream.Credentials) []string {
	if of == nil {
		return nil
	}
	login, err := of(ctx, oci.Repository{})
	switch {
	case err != nil:
		return nil
	case login.Username == "":
		return []string{"of its token"}
	}
	return []string{login.Username}
}

// signIn adds the accounts of single paths to base, which is for all others.
func (u *UpstreamSettings) signIn(base upstream.Credentials) upstream.Credentials {
	if len(u.Logins) == 0 {
		return base
	}
	all := []upstream.PrefixCredential{{Credentials: base}}
	for _, l := range u.Logins {
		all = append(all, upstream.PrefixCredential{Prefix: l.Prefix, Exact: l.Exact, Credentials: l.credentials()})
	}
	return upstream.ByPrefix(all)
}

// credentials are nil for no account. The secret is read each time, since it may
// stand in a file.
func (l Login) credentials() upstream.Credentials {
	if l.Username == "" {
		return nil
	}
	return upstream.PasswordFrom(l.Username, l.Password.Value)
}

// mirrors are the upstream's other addresses.
func (u *UpstreamSettings) mirrors() []upstream.Mirror {
	var all []upstream.Mirror
	for _, m := range u.Mirrors {
		all = append(all, upstream.Mirror{URL: m.URL, Credentials: m.Login.credentials(), CA: m.CA.PEM, AllowPrivate: m.AllowPrivate, First: m.First})
	}
	return all
}

// hasSecrets reports whether there may be content that is not for every client:
// an upstream shows it to our account alone, or it is only for some by our rules.
func (c *Config) hasSecrets() bool {
	return c.AccessFile != "" || c.DockerConfig != "" || slices.ContainsFunc(c.UpstreamSettings(), func(u UpstreamSettings) bool { return len(u.accounts()) > 0 })
}

func closeCache(c *cache.Cache, logger zerolog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		logger.Warn().Err(err).Msg("closing the cache")
	}
}

// announce tells a person on a terminal at length, and a log in one line; what
// is for daemon.json then stands on stdout.
func announce(w welcome, in invocation, cfg *Config, logger zerolog.Logger) {
	if isTerminal(in.stderr) && cfg.LogFormat != "json" {
		w.print(in.stderr)
		return
	}
	w.log(logger)
	for _, hint := range w.hints() {
		fmt.Fprintln(in.stdout, hint.line) // as it is to be pasted, which it is not in a log
	}
}

// tellManager says to systemd that the server serves, where a unit of Type=notify
// started it (sd_notify(3)): until then there is no reload, whose SIGHUP would end
// a process that has not come to catch it yet.
func tellManager(environ []string) error {
	for _, pair := range environ {
		socket, ok := strings.CutPrefix(pair, "NOTIFY_SOCKET=")
		if !ok || socket == "" {
			continue
		}
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("READY=1"))
		return errors.Join(err, conn.Close())
	}
	return nil
}
