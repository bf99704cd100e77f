package main

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/operate"
	"entrepot/store"
	"entrepot/upstream"
	"entrepot/warm"

	"github.com/rs/zerolog"
)

// What operators may ask of this data directory, who of them, and the commands that
// do.

// operatorCommands are those of package operate.
func operatorCommands() (all []command) {
	for _, c := range operate.Commands() {
		all = append(all, command{c.Name, c.Summary, c.Help, func(ctx context.Context, in invocation) error {
			return c.Run(ctx, operate.Invocation{
				Args: in.args, Stdout: in.stdout, Stderr: in.stderr,
				OutTerminal: isTerminal(in.stdout), ErrTerminal: isTerminal(in.stderr), Colour: wantsColour(in.environ),
				Configure: func() (*operate.Settings, error) { return operatorSettings(in.environ) },
			})
		}})
	}
	return all
}

// operatorSettings are what they know of the configuration.
func operatorSettings(environ []string) (*operate.Settings, error) {
	cfg, err := operatorConfig(environ)
	if err != nil {
		return nil, err
	}
	names := cfg.Names()
	return &operate.Settings{
		Names:  names,
		Images: func(file string) ([]warm.Image, error) { return readImages(names, file) },
		Connect: func(ctx context.Context, server string) (*admin.Client, error) {
			return connect(ctx, cfg, readBuild().Version, server)
		},
	}, nil
}

// operatorConfig is the configuration without what these commands do not need: a
// login's file that went away must not keep anybody from looking.
func operatorConfig(environ []string) (*Config, error) {
	c, found := readConfig(environ)
	found = slices.DeleteFunc(found, func(p problem) bool {
		for _, needless := range []string{"_PASSWORD", "_PASSWORD_FILE", "_USERNAME", "_CA_FILE", "_PROXY", warmFileVar} {
			if strings.HasSuffix(p.name, needless) {
				return true
			}
		}
		return false
	})
	if len(found) > 0 {
		return nil, found
	}
	return c, nil
}

// newAdminAPI makes the API of a data directory; live is nil where no server has
// it.
func newAdminAPI(disk *store.Disk, live *admin.Live, cfg *Config, version string) *admin.API {
	explained := explainer{cfg, disk}
	return admin.New(admin.Config{
		Disk: disk, Live: live, Version: version, Data: cfg.dataPath(), Budget: int64(cfg.CacheSize), Memory: int64(cfg.Memory),
		Rules: cfg.describeRules(), Upstreams: cfg.upstreamNames(), Meaning: explained.meaning, Explain: explained.held(live),
	})
}

// newLive is what a running server has beside its disk.
func newLive(cfg *Config, held *cache.Cache, upstreams *upstream.Set, spent *ledger.Ledger, ahead *warming, unread func() []admin.Unread, began time.Time) *admin.Live {
	return &admin.Live{
		Cache: held, Upstreams: upstreams, Ledger: spent, Puller: ahead.puller, List: ahead.list, Platforms: ahead.platforms,
		Offline: cfg.offline(), SettingOf: cfg.loginSettings, SignIn: cfg.signInRemedy, Since: began, Unread: unread,
	}
}

// newAdminGuard stands before what is for operators alone.
func newAdminGuard(h http.Handler, cfg *Config, logger zerolog.Logger) *admin.Guard {
	refused := newThrottle(repeatInterval)
	g := &admin.Guard{Handler: h, Loopback: cfg.AdminListen.isLoopback(), Names: cfg.OwnNames, Refused: func(client string, refusal *admin.Error) {
		if held, ok := refused.pass(refusal.Code); ok {
			logger.Warn().Str("client", client).Int("held_back", held).Str("error", refusal.Message).Msg("admin listener: refused")
		}
	}}
	if cfg.AdminToken.IsSet() {
		g.Token = cfg.AdminToken.Value
	}
	return g
}

// newTellingGuard stands before what only tells, metrics and profiles: on loopback
// whoever is on this machine may ask that without the token, as scrapers do.
func newTellingGuard(h http.Handler, cfg *Config, logger zerolog.Logger) *admin.Guard {
	g := newAdminGuard(h, cfg, logger)
	if g.Loopback {
		g.Token = nil
	}
	return g
}
