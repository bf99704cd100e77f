package main

import (
	"fmt"
	"slices"
	"strings"

	"entrepot/oci"
)

// RuleConfig is a cache rule: a name of our own for repositories of an upstream.
type RuleConfig struct {
	Target   RuleTarget `env:"TARGET" doc:"Names of this cache's own, before all others: dotnet/sdk, dotnet/* for all below it, or * for all without a registry; the more specific rule counts; n counts from 0"`
	Source   RuleSource `env:"SOURCE" doc:"What they stand for, with its upstream: mcr.microsoft.com/dotnet/sdk, or mcr.microsoft.com/dotnet/* where the target has a * too"`
	Username Username   `env:"USERNAME" doc:"Account for what the source covers, whatever name it is asked for by"`
	Password Secret     `env:"PASSWORD" doc:"Its password or token"`
}

// RuleTarget is what a cache rule is asked for by.
type RuleTarget struct{ oci.Pattern }

func (r *RuleTarget) UnmarshalText(text []byte) (err error) {
	r.Pattern, err = oci.ParseTarget(string(text))
	return err
}

// RuleSource is what a cache rule leads to.
type RuleSource struct{ oci.Pattern }

func (r *RuleSource) UnmarshalText(text []byte) (err error) {
	r.Pattern, err = oci.ParseSource(string(text))
	return err
}

func (r RuleConfig) rule() oci.Rule {
	return oci.Rule{Target: r.Target.Pattern, Source: r.Source.Pattern}
}

// nameRules are the cache rules; nil if there are none.
func (c *Config) nameRules() *oci.Rules {
	if len(c.Rule) == 0 {
		return nil
	}
	rules := new(oci.Rules)
	for _, r := range c.Rule {
		_ = rules.Add(r.rule()) // checked
	}
	return rules
}

func (c *Config) checkRules(found *problems) {
	var rules oci.Rules
	for i, r := range c.Rule {
		name := func(field string) string { return fmt.Sprintf("ENTREPOT_RULE_%d_%s", i, field) }
		checkLogin(found, name("USERNAME"), r.Username, name("PASSWORD"), r.Password)
		if found.concern(name("TARGET"), name("SOURCE")) {
			continue
		}
		const want = "is not set, but others of %s are: want both, such as dotnet/* and mcr.microsoft.com/dotnet/*"
		if r.Target.String() == "" {
			found.add(name("TARGET"), want, name(""))
		}
		if r.Source.String() == "" {
			found.add(name("SOURCE"), want, name(""))
		}
		if found.concern(name("TARGET"), name("SOURCE")) {
			continue
		}
		if err := rules.Add(r.rule()); err != nil {
			found.add(name("TARGET"), "%v", err)
		}
	}
	if !found.concern("ENTREPOT_UPSTREAMS", "ENTREPOT_UPSTREAM_", "ENTREPOT_RULE_") {
		c.checkRuleUpstreams(found)
		c.checkRuleLogins(found)
	}
}

func (c *Config) checkRuleUpstreams(found *problems) {
	names := c.upstreamNames()
	for i, r := range c.Rule {
		if upstream := r.rule().Upstream(); !slices.Contains(names, upstream) {
			found.add(fmt.Sprintf("ENTREPOT_RULE_%d_SOURCE", i), "%s is not an upstream: want one of %s, or add it to ENTREPOT_UPSTREAMS", upstream, strings.Join(names, ", "))
		}
	}
}

// checkRuleLogins refuses two accounts for the same repositories: what is held
// belongs to a repository, so the name that it is asked for by cannot decide who
// may have it.
func (c *Config) checkRuleLogins(found *problems) {
	taken := map[string]string{}
	for i, u := range c.Upstream {
		if u.Username != "" {
			taken[string(u.Name)+"/*"] = fmt.Sprintf("ENTREPOT_UPSTREAM_%d_USERNAME", i)
		}
		for m, credential := range u.Credential {
			taken[string(u.Name)+"/"+string(credential.Prefix)+"/*"] = fmt.Sprintf("ENTREPOT_UPSTREAM_%d_CREDENTIAL_%d_USERNAME", i, m)
		}
	}
	if c.DockerHubUsername != "" {
		taken[oci.DockerHub+"/*"] = "ENTREPOT_DOCKERHUB_USERNAME"
	}
	for i, r := range c.Rule {
		if r.Username == "" {
			continue
		}
		name, source := fmt.Sprintf("ENTREPOT_RULE_%d_USERNAME", i), r.Source.String()
		if other := taken[source]; other != "" {
			found.add(name, "is an account for %s, and %s is one as well: want one of them, since what may be read belongs to the repository and not to the name that it is asked for by", source, other)
		}
		taken[source] = name
	}
}

// addRuleLogins gives the accounts of rules to their upstreams.
func (c *Config) addRuleLogins(all []UpstreamSettings) {
	for n, r := range c.Rule {
		if r.Username == "" {
			continue
		}
		host, path, _ := strings.Cut(r.Source.Name, "/")
		i := slices.IndexFunc(all, func(u UpstreamSettings) bool { return u.Name == host })
		if i < 0 {
			continue // and is refused
		}
		login := newLogin(fmt.Sprintf("ENTREPOT_RULE_%d_", n), r.Username, r.Password)
		if path == "" {
			all[i].Login = login
		} else {
			all[i].Logins = append(all[i].Logins, PrefixLogin{path, !r.Source.Below, login})
		}
	}
}
