package main

import (
	"fmt"
	"strings"
	"time"

	"entrepot/oci"
	"entrepot/policy"
	"entrepot/words"
)

// PolicyConfig is a rule on what may be pulled.
type PolicyConfig struct {
	Match     Glob           `env:"MATCH" doc:"What may be pulled, by a pattern over upstream/repository:tag such as docker.io/library/*; the first that matches decides, and what none matches may be; n counts from 0"`
	Action    PolicyAction   `env:"ACTION" envDefault:"allow" doc:"allow, if the demands beside it are met, or deny"`
	MinAge    Age            `env:"MIN_AGE" doc:"How old it has to be, such as 72h or 3d"`
	AgeFrom   PolicyAge      `env:"AGE_FROM" envDefault:"created" doc:"created: since this cache saw a tag name it, or since it was made as it claims itself, which whoever pushes it can forge; seen: since this cache saw a tag name it"`
	Platforms PolicyPlatform `env:"PLATFORMS" doc:"What it may run on, such as linux/amd64,linux/arm64; an index passes if it has one of them"`
	MaxSize   Size           `env:"MAX_SIZE" envDefault:"0" doc:"The most bytes that config and layers may have together, such as 2GiB; 0 is any"`
}

// PolicyAction is what a rule says of what it matches.
type PolicyAction string

const denyAction PolicyAction = "deny"

func (a *PolicyAction) UnmarshalText(text []byte) error {
	return unmarshalChoice(a, text, "allow", string(denyAction))
}

// PolicyAge is what an age counts from.
type PolicyAge string

const fromSeen PolicyAge = "seen"

func (a *PolicyAge) UnmarshalText(text []byte) error {
	return unmarshalChoice(a, text, "created", string(fromSeen))
}

// Age is a time span that may be given in days.
type Age time.Duration

func (a *Age) UnmarshalText(text []byte) error {
	d, err := words.ParseAge(string(text))
	*a = Age(d)
	return err
}

func (a Age) String() string {
	if a == 0 {
		return ""
	}
	return Duration(a).String()
}

// PolicyPlatform is a comma-separated list of platforms, in which * may stand for
// a part.
type PolicyPlatform []string

func (p *PolicyPlatform) UnmarshalText(text []byte) (err error) {
	*p, err = parseList(string(text), func(item string) (string, error) {
		if parts := strings.Split(item, "/"); len(parts) < 2 || len(parts) > 3 || strings.Trim(strings.ToLower(item), "abcdefghijklmnopqrstuvwxyz0123456789/*._-") != "" {
			return "", fmt.Errorf("%s is not a platform: want os/architecture, such as linux/amd64, linux/arm/v7 or linux/*", words.Quote(item))
		}
		return strings.ToLower(item), nil
	})
	return err
}

func (p PolicyPlatform) String() string { return joinList(p) }

func (c *Config) checkPolicy(found *problems) {
	for i, r := range c.Policy {
		name := func(field string) string { return fmt.Sprintf("ENTREPOT_POLICY_%d_%s", i, field) }
		if found.concern(name("")) {
			continue
		}
		demands := r.MinAge > 0 || len(r.Platforms) > 0 || r.MaxSize > 0
		switch {
		case r.Match == "":
			found.add(name("MATCH"), "is not set, but others of %s are: want a pattern for what the rule is about, such as docker.io/*", name(""))
		case r.Action == denyAction && demands:
			found.add(name("ACTION"), "is deny, so nothing can meet the demands beside it: want allow, or no demands")
		case r.Action != denyAction && !demands && c.sources[name("ACTION")] == "":
			found.add(name("MATCH"), "has nothing beside it: want %s, or a demand such as %s", name("ACTION"), name("MIN_AGE"))
		case r.MinAge == 0 && c.sources[name("AGE_FROM")] != "":
			found.add(name("AGE_FROM"), "is set without %s: want both", name("MIN_AGE"))
		}
	}
	if c.PolicyDryRun && len(c.Policy) == 0 {
		found.add("ENTREPOT_POLICY_DRY_RUN", "is set, but there is no policy: want ENTREPOT_POLICY_0_MATCH and the like")
	}
}

// policyRules are the rules on what may be pulled.
func (c *Config) policyRules() []policy.Rule {
	var rules []policy.Rule
	for i, r := range c.Policy {
		rules = append(rules, policy.Rule{
			Name: fmt.Sprintf("rule %d", i), Match: string(r.Match), Deny: r.Action == denyAction,
			MinAge: time.Duration(r.MinAge), FromSeen: r.AgeFrom == fromSeen, Platforms: r.Platforms, MaxSize: int64(r.MaxSize),
		})
	}
	return rules
}

// guarded puts the policy before what is held; without one, nothing.
func guarded(held oci.Source, leads leadFinder, cfg *Config, watcher *observer) oci.Source {
	if len(cfg.Policy) == 0 {
		return held
	}
	return policy.New(held, policy.Config{Rules: cfg.policyRules(), DryRun: bool(cfg.PolicyDryRun), Leads: leads.find, Observe: watcher.refusal})
}
