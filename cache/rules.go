package cache

import (
	"math"
	"time"

	"entrepot/oci"
)

// Never as a TTL says that a tag is not checked again once it is held.
const Never time.Duration = math.MaxInt64

// Rule gives the tags that match a TTL of their own.
type Rule struct {
	Match string // a pattern over upstream/repository:tag; see oci.Matches
	TTL   time.Duration
}

// ttlOf is the TTL of a tag: of the first rule that matches, or the default.
func (c *Config) ttlOf(repo oci.Repository, tag string) time.Duration {
	if len(c.Rules) == 0 {
		return c.TTL
	}
	name := repo.String() + ":" + tag
	for _, r := range c.Rules {
		if oci.Matches(r.Match, name) {
			return r.TTL
		}
	}
	return c.TTL
}
