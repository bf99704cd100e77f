package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"entrepot/access"
	"entrepot/admin"
	"entrepot/cache"
	"entrepot/oci"
	"entrepot/policy"
	"entrepot/store"
)

func (c *Config) describeRule(r oci.Rule) admin.Rule {
	i := slices.IndexFunc(c.Rule, func(rc RuleConfig) bool { return rc.rule() == r })
	return admin.Rule{Target: r.Target.String(), Source: r.Source.String(), Account: string(c.Rule[i].Username)}
}

// describeRules are the cache rules, in the order in which they are tried.
func (c *Config) describeRules() (all []admin.Rule) {
	for _, r := range c.nameRules().All() {
		all = append(all, c.describeRule(r))
	}
	return all
}

// explainer says what the settings mean for a name, over what disk has.
type explainer struct {
	cfg  *Config
	disk *store.Disk
}

// meaning reads a reference as a person writes it who pulls through this cache,
// and says what the settings say of that.
func (e explainer) meaning(ctx context.Context, asked, ns string) (admin.Meaning, error) {
	m, err := e.cfg.meaning(asked, ns)
	if err != nil {
		return m, err
	}
	m.Who = e.cfg.whoMay(m.Repository)
	m.Policy, m.Denied = e.policyVerdict(ctx, m.Repository, m.Reference)
	m.Account = e.cfg.accountFor(ctx, m.Repository)
	return m, nil
}

// held asks the cache. At rest there is none, and one without an upstream knows as
// much.
func (e explainer) held(live *admin.Live) func(context.Context, oci.Repository, string, bool) (cache.Explanation, error) {
	if live != nil {
		return live.Cache.Explain
	}
	return func(ctx context.Context, repo oci.Repository, reference string, muted bool) (found cache.Explanation, err error) {
		c := cache.New(e.disk, nil, e.cfg.cache(nil))
		defer func() { err = errors.Join(err, c.Close(context.Background())) }()
		return c.Explain(ctx, repo, reference, muted)
	}
}

// policyVerdict asks the policy over what is held, and whether it refuses a pull;
// empty where there is none.
func (e explainer) policyVerdict(ctx context.Context, repo oci.Repository, reference string) (verdict string, denied bool) {
	cfg := e.cfg
	if len(cfg.Policy) == 0 {
		return "", false
	}
	settings := cfg.cache(nil)
	settings.Offline = true
	held := cache.New(e.disk, nil, settings)
	defer func() { _ = held.Close(context.Background()) }()
	g := policy.New(held, policy.Config{Rules: cfg.policyRules(), DryRun: bool(cfg.PolicyDryRun), Leads: leadFinder{e.disk}.find})
	verdict, denied = g.Explain(ctx, repo, reference)
	if cfg.PolicyDryRun {
		verdict += "; a dry run, which refuses nothing"
	}
	return verdict, denied
}

// meaning reads a reference as a person writes it who pulls through this cache.
func (c *Config) meaning(asked, ns string) (m admin.Meaning, err error) {
	name, tag, digest, err := oci.SplitReference(asked)
	if err != nil {
		return m, err
	}
	m.Reference = tag
	if !digest.IsZero() {
		m.Reference = digest.String()
	}
	names := c.Names()
	name, guessed := names.CutOwn(name)
	if guessed != "" {
		m.Note = guessed + " is no upstream and has the port of this cache, so it is taken for its address; as a registry's name it would be answered with 404"
	}
	m.Repository, _, err = names.Repository(name, ns, "")
	if r := names.Rule(name, ns, ""); r != nil {
		described := c.describeRule(*r)
		m.Rule = &described
	}
	return m, err
}

// accountFor is the account that an upstream is asked with for a repository, as
// far as it is set here; empty for none.
func (c *Config) accountFor(ctx context.Context, repo oci.Repository) string {
	for _, u := range c.UpstreamSettings() {
		if signIn := u.signIn(u.Login.credentials()); u.Name == repo.Host && signIn != nil {
			login, _ := signIn(ctx, repo) // without the password it has its name still
			return login.Username
		}
	}
	return ""
}

// whoMay says who may read a repository, as the files say now.
func (c *Config) whoMay(repo oci.Repository) string {
	switch {
	case !c.hasAccess():
		return "everybody who reaches the port"
	case c.AccessFile == "":
		return "every user of " + usersVar
	}
	content, err := readSmallFile(string(c.AccessFile))
	if err != nil {
		return fmt.Sprintf("%s cannot be read: %v", accessVar, err)
	}
	who, err := access.Readers(content, c.Names(), repo)
	switch {
	case err != nil:
		return fmt.Sprintf("%s cannot be used: %v", accessVar, err)
	case len(who) == 0:
		return "nobody"
	}
	return strings.Join(who, ", ")
}
