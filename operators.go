package main

import (
	"net/http"

	"github.com/rs/zerolog"

	"entrepot/admin"
	"entrepot/store"
)

// What operators may ask of this data directory, and who of them.

// newAdminAPI makes the API of a data directory; live is nil where no server has
// it.
func newAdminAPI(disk *store.Disk, live *admin.Live, cfg *Config, version string) *admin.API {
	return admin.New(admin.Config{
		Disk: disk, Live: live, Version: version, Data: cfg.dataPath(), Budget: int64(cfg.CacheSize), Memory: int64(cfg.Memory),
		Rules: cfg.describeRules(), Meaning: explainer{cfg, disk}.meaning, Explain: explainer{cfg, disk}.held(live),
	})
}

// newAdminGuard stands before what is for operators alone.
func newAdminGuard(h http.Handler, cfg *Config, logger zerolog.Logger) *admin.Guard {
	refused := newThrottle(repeatInterval)
	g := &admin.Guard{Handler: h, Loopback: cfg.AdminListen.isLoopback(), Refused: func(client string, refusal *admin.Error) {
		if held, ok := refused.pass(refusal.Code); ok {
			logger.Warn().Str("client", client).Int("held_back", held).Str("error", refusal.Message).Msg("admin API: refused")
		}
	}}
	if cfg.AdminToken.IsSet() {
		g.Token = cfg.AdminToken.Value
	}
	return g
}

// guardFromOutside keeps h, which only tells, for those who have the token, where
// other machines can reach the admin listener.
func guardFromOutside(h http.Handler, cfg *Config, logger zerolog.Logger) http.Handler {
	if cfg.AdminListen.isLoopback() {
		return h
	}
	return newAdminGuard(h, cfg, logger)
}
