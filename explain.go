package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/access"
	"entrepot/admin"
	"entrepot/cache"
	"entrepot/oci"
	"entrepot/policy"
	"entrepot/store"
	"entrepot/words"
)

const rulesHelp = `Usage: entrepot rules

Lists the cache rules, ENTREPOT_RULE_<n>_TARGET and the like, in the order in which
they are tried: the first that covers a name decides what it means.
` + operatorHelp

const explainHelp = `Usage: entrepot explain [--ns docker.io] <reference>

Says of a reference as a client writes it, with or without this cache's address,
which upstream and repository it means and by which rule, whether it is held and still
believed, who may have it, and what a pull would cost now. It asks no upstream. Of a
server that runs it also knows what has failed lately.

  --ns REGISTRY      as containerd asks that has this cache for a mirror of REGISTRY
` + operatorHelp

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
	m.Policy = e.policyVerdict(ctx, m.Repository, m.Reference)
	m.Account = e.cfg.accountFor(ctx, m.Repository)
	return m, nil
}

// held asks the cache. At rest there is none, and one without an upstream knows as
// much.
func (e explainer) held(live *admin.Live) func(context.Context, oci.Repository, string) (cache.Explanation, error) {
	if live != nil {
		return live.Cache.Explain
	}
	return func(ctx context.Context, repo oci.Repository, reference string) (found cache.Explanation, err error) {
		c := cache.New(e.disk, nil, e.cfg.cache(nil))
		defer func() { err = errors.Join(err, c.Close(context.Background())) }()
		return c.Explain(ctx, repo, reference)
	}
}

// policyVerdict asks the policy over what is held; empty where there is none.
func (e explainer) policyVerdict(ctx context.Context, repo oci.Repository, reference string) string {
	cfg := e.cfg
	if len(cfg.Policy) == 0 {
		return ""
	}
	settings := cfg.cache(nil)
	settings.Offline = true
	held := cache.New(e.disk, nil, settings)
	defer func() { _ = held.Close(context.Background()) }()
	g := policy.New(held, policy.Config{Rules: cfg.policyRules(), Leads: leadFinder{e.disk}.find})
	verdict := g.Explain(ctx, repo, reference)
	if cfg.PolicyDryRun {
		verdict += "; a dry run, which refuses nothing"
	}
	return verdict
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
	name, m.Note = c.cutAddress(names, name)
	m.Repository, _, err = names.Repository(name, ns, "")
	if r := names.Rule(name, ns, ""); r != nil {
		described := c.describeRule(*r)
		m.Rule = &described
	}
	return m, err
}

// cutAddress takes this cache's address off a name. The Host that clients send
// is not configured anywhere, so what is no upstream is taken for it.
func (c *Config) cutAddress(names *oci.Names, name string) (rest, note string) {
	first, rest, _ := strings.Cut(name, "/")
	switch {
	case slices.Contains(c.OwnNames, strings.ToLower(first)):
		return rest, ""
	case rest == "" || !oci.IsRegistry(first) || slices.Contains(names.Upstreams, oci.FoldHost(first)) || names.Rule(name, "", "") != nil:
		return name, ""
	}
	return rest, first + " is no upstream, so it is taken for this cache's address; as a registry's name it would be answered with 404"
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

func listRules(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "rules")
	defer o.end(&err)
	if err := o.begin(ctx, 0, 0); err != nil {
		return err
	}
	t := o.newTable("TARGET", "SOURCE", "ACCOUNT")
	err = each(ctx, o, "rules", nil, func(r admin.Rule, raw json.RawMessage) error {
		return t.row(raw, r.Target, r.Source, orDash(r.Account))
	})
	if err != nil {
		return err
	}
	return t.end("there are no cache rules: every name means what it says")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func explain(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "explain")
	defer o.end(&err)
	ns := o.flags.String("ns", "", "")
	if err := o.begin(ctx, 1, 1); err != nil {
		return err
	}
	raw, err := o.client.Get(ctx, "explain", url.Values{"name": {o.args[0]}, "ns": {*ns}}, nil)
	var x admin.Explanation
	if err == nil {
		err = json.Unmarshal(raw, &x)
	}
	switch {
	case err != nil:
		return fmt.Errorf("explain %s: %w", words.Quote(o.args[0]), o.explain(err, admin.Target{}))
	case o.json:
		return o.writeLine(raw)
	}
	return o.showExplanation(x)
}

func (o *operation) showExplanation(x admin.Explanation) error {
	facts := o.newFacts()
	facts.add("asked for", x.Asked)
	facts.add("note", x.Note)
	facts.add("repository", x.Repository)
	facts.add("upstream", x.Upstream)
	rule := "none: the name means what it says"
	if x.Rule != nil {
		rule = x.Rule.Target + " => " + x.Rule.Source
	}
	facts.add("rule", rule)
	facts.add("who may", x.Who)
	facts.add("policy", x.Policy)
	facts.add("asked as", x.Account)
	facts.add("reference", x.Reference)
	facts.add("digest", x.Digest.String())
	facts.add("held", strconv.FormatBool(x.Held))
	facts.add("fresh", x.Fresh+ageText(x))
	if !x.Retry.IsZero() {
		facts.add("asked again", "in "+time.Until(x.Retry).Round(time.Second).String()+", after a failure")
	}
	if err := facts.end(); err != nil {
		return err
	}
	fmt.Fprintln(o.in.stdout)
	t := o.newTable("A PULL OF", "HEADS", "MANIFESTS", "BLOBS", "BYTES", "")
	for _, p := range x.Pulls {
		more := ""
		if p.AtLeast {
			more = "and what only upstream can tell"
		}
		if p.Platform == "" {
			p.Platform = "this image"
		}
		if err := t.row(nil, p.Platform, strconv.Itoa(p.Heads), strconv.Itoa(p.Manifests), strconv.Itoa(p.Blobs), words.Bytes(p.Bytes), more); err != nil {
			return err
		}
	}
	return t.end("")
}

func ageText(x admin.Explanation) string {
	switch {
	case x.Checked.IsZero():
		return ""
	case x.TTLSeconds < 0:
		return fmt.Sprintf(" (checked %s, and never again)", words.Ago(x.Checked))
	}
	return fmt.Sprintf(" (checked %s, believed for %s)", words.Ago(x.Checked), words.Span(time.Duration(x.TTLSeconds)*time.Second))
}
