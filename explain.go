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
	"entrepot/cache"
	"entrepot/oci"
	"entrepot/policy"
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

// ruleJSON is a cache rule.
type ruleJSON struct {
	Target  string `json:"target"`
	Source  string `json:"source"`
	Account string `json:"account,omitempty"` // of its own
}

func (x *adminExchange) rules() error {
	all := x.api.cfg.nameRules().All()
	for _, r := range all {
		if err := x.item(x.api.cfg.describeRule(r)); err != nil {
			return err
		}
	}
	return x.result(countJSON{len(all)})
}

func (c *Config) describeRule(r oci.Rule) ruleJSON {
	i := slices.IndexFunc(c.Rule, func(rc RuleConfig) bool { return rc.rule() == r })
	return ruleJSON{r.Target.String(), r.Source.String(), string(c.Rule[i].Username)}
}

// explanationJSON is what would become of a pull.
type explanationJSON struct {
	Asked      string     `json:"asked"`
	Note       string     `json:"note,omitempty"` // on how it was read
	Upstream   string     `json:"upstream"`
	Repository string     `json:"repository"` // path form
	Reference  string     `json:"reference"`
	Rule       *ruleJSON  `json:"rule"` // null: the name means what it says
	Who        string     `json:"who"`
	Account    string     `json:"account,omitempty"` // that upstream is asked as
	Policy     string     `json:"policy,omitempty"`  // its verdict, in words
	Digest     oci.Digest `json:"digest,omitzero"`   // if it is known
	Held       bool       `json:"held"`              // that manifest
	Fresh      string     `json:"fresh"`             // in words
	Checked    time.Time  `json:"checked,omitzero"`
	TTLSeconds int64      `json:"ttlSeconds"` // -1: never checked again
	Retry      time.Time  `json:"retry,omitzero"`
	Pulls      []pullJSON `json:"pulls"`
}

// pullJSON is what a pull costs for one platform.
type pullJSON struct {
	Platform  string `json:"platform,omitempty"`
	Heads     int    `json:"heads"`     // not counted by registries
	Manifests int    `json:"manifests"` // GETs, which Docker Hub counts
	Blobs     int    `json:"blobs"`
	Bytes     int64  `json:"bytes"`
	AtLeast   bool   `json:"atLeast"` // there is more that only upstream can tell
}

func (x *adminExchange) explain() error {
	query := x.r.URL.Query()
	out := explanationJSON{Asked: query.Get("name"), Pulls: []pullJSON{}}
	repo, err := x.api.cfg.meaning(out.Asked, query.Get("ns"), &out)
	if err != nil {
		return badRequest("%v", err)
	}
	found, err := x.explained(repo, out.Reference)
	if err != nil {
		return err
	}
	out.Upstream, out.Repository = repo.Host, repo.String()
	out.Who = x.api.cfg.whoMay(repo)
	out.Policy = x.policyVerdict(repo, out.Reference)
	out.Account = x.api.cfg.accountFor(x.r.Context(), repo)
	out.Digest, out.Held, out.Fresh, out.Retry = found.Digest, found.Held, freshText(found), found.Retry
	out.TTLSeconds = int64(found.TTL / time.Second)
	if found.TTL == cache.Never {
		out.TTLSeconds = -1
	}
	if found.Tag != nil {
		out.Checked = found.Tag.Checked
	}
	for _, p := range found.Pulls {
		out.Pulls = append(out.Pulls, pullJSON{p.Platform.String(), p.Heads, p.Manifests, p.Blobs, p.Bytes, p.AtLeast})
	}
	return x.result(out)
}

// explained asks the cache. At rest there is none, and one without an upstream
// knows as much.
func (x *adminExchange) explained(repo oci.Repository, reference string) (found cache.Explanation, err error) {
	if x.api.live != nil {
		return x.api.live.cache.Explain(x.r.Context(), repo, reference)
	}
	c := cache.New(x.api.disk, nil, x.api.cfg.cache(nil))
	defer func() { err = errors.Join(err, c.Close(context.Background())) }()
	return c.Explain(x.r.Context(), repo, reference)
}

// policyVerdict asks the policy over what is held; empty where there is none.
func (x *adminExchange) policyVerdict(repo oci.Repository, reference string) string {
	cfg := x.api.cfg
	if len(cfg.Policy) == 0 {
		return ""
	}
	settings := cfg.cache(nil)
	settings.Offline = true
	held := cache.New(x.api.disk, nil, settings)
	defer func() { _ = held.Close(context.Background()) }()
	g := policy.New(held, policy.Config{Rules: cfg.policyRules(), Leads: leadFinder{x.api.disk}.find})
	verdict := g.Explain(x.r.Context(), repo, reference)
	if cfg.PolicyDryRun {
		verdict += "; a dry run, which refuses nothing"
	}
	return verdict
}

// meaning reads a reference as a person writes it who pulls through this cache.
func (c *Config) meaning(asked, ns string, out *explanationJSON) (oci.Repository, error) {
	name, tag, digest, err := oci.SplitReference(asked)
	if err != nil {
		return oci.Repository{}, err
	}
	out.Reference = tag
	if !digest.IsZero() {
		out.Reference = digest.String()
	}
	names := c.Names()
	name, out.Note = c.cutAddress(names, name)
	repo, _, err := names.Repository(name, ns, "")
	if r := names.Rule(name, ns, ""); r != nil {
		described := c.describeRule(*r)
		out.Rule = &described
	}
	return repo, err
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

func freshText(x cache.Explanation) string {
	switch {
	case x.Tag == nil && x.Verdict == cache.Fresh:
		return "a digest is for ever"
	case x.Verdict == cache.Fresh:
		return "yes: upstream is not asked"
	case x.Verdict == cache.Held:
		return "no, but upstream is not asked now: it is served as it is held"
	case x.Verdict == cache.Unknown:
		return "not held, and its upstream is set to be offline"
	case x.Tag == nil:
		return "not held: upstream is asked"
	}
	return "no: upstream is asked, by HEAD, whether it has moved"
}

func listRules(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "rules")
	defer o.end(&err)
	if err := o.begin(ctx, 0, 0); err != nil {
		return err
	}
	t := o.newTable("TARGET", "SOURCE", "ACCOUNT")
	err = each(ctx, o, "rules", nil, func(r ruleJSON, raw json.RawMessage) error {
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
	raw, err := o.client.get(ctx, "explain", url.Values{"name": {o.args[0]}, "ns": {*ns}}, nil)
	var x explanationJSON
	if err == nil {
		err = json.Unmarshal(raw, &x)
	}
	switch {
	case err != nil:
		return fmt.Errorf("explain %s: %w", words.Quote(o.args[0]), o.explain(err, targetJSON{}))
	case o.json:
		return o.writeLine(raw)
	}
	return o.showExplanation(x)
}

func (o *operation) showExplanation(x explanationJSON) error {
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

func ageText(x explanationJSON) string {
	switch {
	case x.Checked.IsZero():
		return ""
	case x.TTLSeconds < 0:
		return fmt.Sprintf(" (checked %s, and never again)", words.Ago(x.Checked))
	}
	return fmt.Sprintf(" (checked %s, believed for %s)", words.Ago(x.Checked), words.Span(time.Duration(x.TTLSeconds)*time.Second))
}
