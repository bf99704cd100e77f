package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// Config is what New needs beside the Source.
type Config struct {
	Rules  []Rule
	DryRun bool // nothing is refused; Observe is told what would be
	// Leads tells which tags of repo that we know of lead to a manifest. Nil, or
	// none, means that it is judged by its digest alone.
	Leads func(ctx context.Context, repo oci.Repository, d oci.Digest) []Lead
	// Observe is told of each refusal, on the goroutine that asks; nil: nobody
	// listens.
	Observe func(Refusal)
}

// Refusal is a request that a rule refuses.
type Refusal struct {
	Rule       int // its place among the rules
	Repository oci.Repository
	Reference  string // tag or digest; empty for all of the repository
	Reason     string
	DryRun     bool // and was not refused
}

// Guard is a Source that answers what its rules allow.
type Guard struct {
	src   oci.Source
	cfg   Config
	leads bool // some rule needs them

	verdicts memory[verdict]
	led      memory[[]Lead] // tags that led to a manifest, whatever they name by now
}

var _ oci.Source = (*Guard)(nil)

// New guards src.
func New(src oci.Source, cfg Config) *Guard {
	g := &Guard{src: src, cfg: cfg}
	for i := range cfg.Rules {
		r := &cfg.Rules[i]
		g.leads = g.leads || r.demands() || !strings.HasSuffix(r.Match, "*") || strings.Contains(r.Match, ":")
	}
	return g
}

// The kinds of verdict that are remembered beside those of single rules.
const (
	byDigest     = -1 // by whatever leads to it
	byRepository = -2
	byTag        = -3 // what led to it
	byIndex      = -4 // that its children are known
)

// refusal is a rule's no.
type refusal struct {
	rule   int
	reason string // empty: the name
}

// ruleOf is the rule that decides about a name; -1 if none does.
func (g *Guard) ruleOf(repo oci.Repository, reference string) int {
	name := repo.String() + ":" + reference
	for i := range g.cfg.Rules {
		if oci.Matches(g.cfg.Rules[i].Match, name) {
			return i
		}
	}
	return -1
}

// untagged stands in the place of a tag for a manifest that no tag leads to: only
// patterns for whatever a repository has match it.
func untagged(d oci.Digest) string { return "@" + d.Algorithm() + "-" + d.Hex() }

// refuse turns a rule's no into an error, unless this is a dry run.
func (g *Guard) refuse(no *refusal, repo oci.Repository, reference string) error {
	if no == nil {
		return nil
	}
	if g.cfg.Observe != nil {
		g.cfg.Observe(Refusal{no.rule, repo, reference, no.reason, g.cfg.DryRun})
	}
	if g.cfg.DryRun {
		return nil
	}
	what := repo.String()
	switch {
	case strings.Contains(reference, ":"):
		what += "@" + reference
	case reference != "":
		what += ":" + reference
	}
	r := &g.cfg.Rules[no.rule]
	text := fmt.Sprintf("policy: %s (%s) denies %s", r.Name, r.Match, what)
	if no.reason != "" {
		text += ": " + no.reason
	}
	return &oci.Error{Code: oci.Denied, Detail: text, Err: oci.ErrRule}
}

// Explain says in words what would become of a reference, with a source that asks
// nobody, and whether it would be refused.
func (g *Guard) Explain(ctx context.Context, repo oci.Repository, reference string) (verdict string, denied bool) {
	i := g.ruleOf(repo, reference)
	if d, err := oci.ParseDigest(reference); err == nil {
		i = g.kindest(ctx, repo, d)
	}
	if i < 0 {
		return "allowed: no rule matches", false
	}
	r := &g.cfg.Rules[i]
	by := fmt.Sprintf("by %s (%s)", r.Name, r.Match)
	switch {
	case r.Deny:
		return "denied " + by, !g.cfg.DryRun
	case !r.demands():
		return "allowed " + by, false
	}
	judge := Guard{src: g.src, cfg: g.cfg, leads: g.leads} // which would refuse, and tells nobody
	var no Refusal
	judge.cfg.DryRun, judge.cfg.Observe = false, func(r Refusal) { no = r }
	_, _, err := judge.Resolve(ctx, repo, reference, oci.Ask{})
	switch {
	case err == nil:
		return "allowed " + by, false
	case errors.Is(err, oci.ErrRule):
		r := &g.cfg.Rules[no.Rule]
		return fmt.Sprintf("denied by %s (%s): %s", r.Name, r.Match, no.Reason), !g.cfg.DryRun
	}
	return fmt.Sprintf("up to %s (%s) once it is known what it is", r.Name, r.Match), false
}

// kindest is the rule that lets a manifest pass, if it does by the name of one of
// the tags that lead to it; else that of the first of them.
func (g *Guard) kindest(ctx context.Context, repo oci.Repository, d oci.Digest) int {
	leads := g.leadsTo(ctx, repo, d)
	if len(leads) == 0 {
		return g.ruleOf(repo, untagged(d))
	}
	for _, lead := range leads {
		if i := g.ruleOf(repo, lead.Tag); i < 0 || !g.cfg.Rules[i].Deny {
			return i
		}
	}
	return g.ruleOf(repo, leads[0].Tag)
}

// Resolve judges a tag by its name, and, where its rule has demands, by what it
// names now.
func (g *Guard) Resolve(ctx context.Context, repo oci.Repository, reference string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	if d, err := oci.ParseDigest(reference); err == nil {
		_, out, err := g.admit(ctx, repo, d, ask)
		if err != nil {
			return oci.Resolved{}, out, err
		}
		res, more, err := g.src.Resolve(ctx, repo, reference, ask)
		more.Spent += out.Spent
		return res, more, err
	}
	i := g.ruleOf(repo, reference)
	if i >= 0 && g.cfg.Rules[i].Deny {
		if err := g.refuse(&refusal{rule: i}, repo, reference); err != nil {
			return oci.Resolved{}, oci.Outcome{Why: "policy"}, err
		}
		i = -1 // and that has been told of
	}
	res, out, err := g.src.Resolve(ctx, repo, reference, ask)
	if err != nil {
		return res, out, err
	}
	no, spent, err := g.judgeTag(ctx, i, repo, reference, res, ask)
	out.Spent += spent
	if err == nil {
		err = g.refuse(no, repo, reference)
	}
	if err != nil {
		return oci.Resolved{}, out, err
	}
	return res, out, nil
}

// judgeTag judges what a tag names, by the rule that allows the tag. What is then
// asked for by its digest is allowed too, whatever the tag names by then.
func (g *Guard) judgeTag(ctx context.Context, i int, repo oci.Repository, tag string, res oci.Resolved, ask oci.Ask) (no *refusal, spent int, err error) {
	key := memoryKey{i, repo, res.Digest}
	if i < 0 {
		key.kind = byDigest
	}
	if no, ok := g.remembered(key); ok && (i >= 0 || no == nil) {
		return no, 0, nil
	}
	if i >= 0 && g.cfg.Rules[i].demands() {
		l := look{g: g, ctx: ctx, repo: repo, d: res.Digest, ask: ask, manifest: res.Manifest}
		no, err = l.judge(i, g.leadOf(ctx, repo, res.Digest, tag))
		spent = l.out.Spent
		if err != nil && g.cfg.DryRun {
			return nil, spent, nil
		}
		if err != nil {
			return nil, spent, err
		}
	}
	g.remember(key, no)
	if no == nil && g.leads {
		g.follow(repo, res.Digest, g.leadOf(ctx, repo, res.Digest, tag))
	}
	if no == nil || g.cfg.DryRun {
		g.remember(memoryKey{byDigest, repo, res.Digest}, nil)
	}
	return no, spent, nil
}

func (g *Guard) leadOf(ctx context.Context, repo oci.Repository, d oci.Digest, tag string) Lead {
	for _, lead := range g.leadsTo(ctx, repo, d) {
		if lead.Tag == tag {
			return lead
		}
	}
	return Lead{Tag: tag}
}

// leadsTo are the tags that lead to a manifest now, and those that have led a
// client to it lately: one that began a pull is let finish it when the tag moves.
func (g *Guard) leadsTo(ctx context.Context, repo oci.Repository, d oci.Digest) (leads []Lead) {
	if !g.leads {
		return nil
	}
	if g.cfg.Leads != nil {
		leads = g.cfg.Leads(ctx, repo, d)
	}
	before, _ := g.led.get(memoryKey{byTag, repo, d})
	return slices.Concat(leads, before)
}

// maxLed bounds the tags that are remembered of one manifest.
const maxLed = 16

// follow remembers that a tag has led to a manifest.
func (g *Guard) follow(repo oci.Repository, d oci.Digest, lead Lead) {
	key := memoryKey{byTag, repo, d}
	known, _ := g.led.get(key)
	if len(known) < maxLed && !slices.Contains(known, lead) {
		g.led.put(key, append(slices.Clone(known), lead))
	}
}

// learn remembers that what leads to an index leads to its children.
func (g *Guard) learn(ctx context.Context, repo oci.Repository, m oci.Manifest) {
	key := memoryKey{byIndex, repo, m.Digest}
	if _, known := g.led.get(key); known || !g.leads {
		return
	}
	g.led.put(key, nil)
	links, err := oci.ParseLinks(m.Content)
	if err != nil || len(links.Manifests) == 0 {
		return
	}
	for _, lead := range g.leadsTo(ctx, repo, m.Digest) {
		for _, child := range links.Manifests[:min(len(links.Manifests), maxChildren)] {
			lead.Platform = child.Platform
			g.follow(repo, child.Digest, lead)
		}
	}
}

// maxChildren bounds what a hostile index can make us remember.
const maxChildren = 100

// Manifest judges a manifest by what leads to it, and by what it is.
func (g *Guard) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	seen, out, err := g.admit(ctx, repo, d, ask)
	if err != nil {
		return oci.Manifest{}, out, err
	}
	if seen == nil {
		m, more, err := g.src.Manifest(ctx, repo, d, ask)
		if err != nil {
			return m, more, err
		}
		seen, out = &m, more
	}
	g.learn(ctx, repo, *seen)
	return *seen, out, nil
}

// admit refuses a manifest, or lets it pass; it returns it if it had to be looked
// at. A manifest that several tags lead to passes if it does by one of them. One
// that none leads to is judged by its digest in the place of a tag.
func (g *Guard) admit(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (*oci.Manifest, oci.Outcome, error) {
	key := memoryKey{byDigest, repo, d}
	no, known := g.remembered(key)
	if known {
		return nil, oci.Outcome{}, g.refuse(no, repo, d.String())
	}
	leads := g.leadsTo(ctx, repo, d)
	if len(leads) == 0 {
		leads = []Lead{{Tag: untagged(d)}}
	}
	l := look{g: g, ctx: ctx, repo: repo, d: d, ask: ask}
	for _, lead := range leads {
		var err error
		no, err = l.judge(g.ruleOf(repo, lead.Tag), lead)
		if err != nil && g.cfg.DryRun {
			return nil, l.out, nil
		}
		if err != nil {
			return nil, l.out, err
		}
		if no == nil {
			break
		}
	}
	g.remember(key, no)
	if err := g.refuse(no, repo, d.String()); err != nil {
		return nil, l.out, err
	}
	return l.manifest, l.out, nil
}

// Blob refuses what a repository has of which nothing may be pulled, and a
// manifest, if it is known to be one, as Manifest does. Beyond that a blob does not
// say which image it is of, so it is its manifest that is guarded.
func (g *Guard) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	if err := g.admitRepository(repo); err != nil {
		return nil, err
	}
	no, judged := g.remembered(memoryKey{byDigest, repo, d})
	if judged {
		if err := g.refuse(no, repo, d.String()); err != nil {
			return nil, err
		}
	}
	b, err := g.src.Blob(ctx, repo, d, ask)
	if err == nil && !judged && oci.IsManifestType(b.Descriptor().MediaType) {
		_, _, err = g.admit(ctx, repo, d, ask)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Tags refuses a repository of which nothing may be pulled.
func (g *Guard) Tags(ctx context.Context, repo oci.Repository, page oci.Page, ask oci.Ask) (oci.TagList, oci.Outcome, error) {
	if err := g.admitRepository(repo); err != nil {
		return oci.TagList{}, oci.Outcome{Why: "policy"}, err
	}
	return g.src.Tags(ctx, repo, page, ask)
}

// Referrers refuses a repository of which nothing may be pulled.
func (g *Guard) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	if err := g.admitRepository(repo); err != nil {
		return oci.ReferrerList{}, oci.Outcome{Why: "policy"}, err
	}
	return g.src.Referrers(ctx, repo, d, artifactType, ask)
}

// admitRepository refuses a repository if no name in it may be pulled.
func (g *Guard) admitRepository(repo oci.Repository) error {
	key := memoryKey{kind: byRepository, repo: repo}
	no, known := g.remembered(key)
	if !known {
		no = g.closed(repo)
		g.remember(key, no)
	}
	return g.refuse(no, repo, "")
}

// closed is the refusal of all that repo has; nil if some of it may be pulled.
func (g *Guard) closed(repo oci.Repository) *refusal {
	for i := range g.cfg.Rules {
		switch r := &g.cfg.Rules[i]; {
		case r.Deny && r.covers(repo):
			return &refusal{rule: i}
		case !r.Deny && r.mayMatch(repo):
			return nil
		}
	}
	return nil
}

// look is one look at a manifest, for as many rules as want it.
type look struct {
	g    *Guard
	ctx  context.Context //nolint:containedctx // a look is one call
	repo oci.Repository
	d    oci.Digest
	ask  oci.Ask

	manifest *oci.Manifest
	out      oci.Outcome
	content  *content
	claims   bool // content has what the config says
}

// judge has a rule judge the manifest, -1 for none. An error means that it cannot
// be judged.
func (l *look) judge(i int, lead Lead) (*refusal, error) {
	if i < 0 {
		return nil, nil //nolint:nilnil // nothing is against it
	}
	r := &l.g.cfg.Rules[i]
	switch {
	case r.Deny:
		return &refusal{rule: i}, nil
	case !r.demands():
		return nil, nil //nolint:nilnil // nothing is against it
	}
	if err := l.read(); err != nil {
		return nil, err
	}
	now := time.Now()
	if l.wantsClaims(r, lead, now) {
		if err := l.readClaims(); err != nil {
			return nil, err
		}
	}
	reason := r.judge(l.content, lead, now)
	if reason == "" {
		return nil, nil //nolint:nilnil // nothing is against it
	}
	return &refusal{i, reason}, nil
}

// read gets the manifest, unless it is there.
func (l *look) read() error {
	if l.content != nil {
		return nil
	}
	if l.manifest == nil {
		ask := l.ask
		ask.Refresh = false
		m, out, err := l.g.src.Manifest(l.ctx, l.repo, l.d, ask)
		l.out = out
		if err != nil {
			return err
		}
		l.manifest = &m
	}
	links, err := oci.ParseLinks(l.manifest.Content)
	if err != nil {
		return oci.Errorf(oci.BadUpstream, "policy: the manifest %s cannot be read: %w", l.d, err)
	}
	l.content = &content{links: links, created: parseTime(links.Annotations["org.opencontainers.image.created"])}
	return nil
}

func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// wantsClaims reports whether the config decides. It is a blob, if a small one:
// it is read only where nothing else tells.
func (l *look) wantsClaims(r *Rule, lead Lead, now time.Time) bool {
	if l.claims || l.content.links.Config == nil || !isImageConfig(l.content.links.Config.MediaType) {
		return false
	}
	if len(r.Platforms) > 0 && !lead.Platform.Runs() {
		return true
	}
	return r.judgeAge(l.content, lead, now) != "" && !r.FromSeen && l.content.created.IsZero()
}

func isImageConfig(mediaType string) bool {
	return mediaType == "application/vnd.oci.image.config.v1+json" || mediaType == "application/vnd.docker.container.image.v1+json"
}

// maxConfig is the largest config that is read; real ones have some kilobytes.
const maxConfig = 1 << 20

// readClaims reads the platform and the date that the config claims. Of one that is
// too large, or no JSON, nobody knows what it claims.
func (l *look) readClaims() error {
	l.claims = true
	config := l.content.links.Config
	if config.Size < 0 || config.Size > maxConfig {
		l.content.unclear = true
		return nil
	}
	text, err := l.readBlob(config)
	if err != nil {
		return fmt.Errorf("policy: config of %s@%s: %w", l.repo, l.d, err)
	}
	var claims struct {
		oci.Platform
		Created string `json:"created"`
	}
	if json.Unmarshal(text, &claims) != nil {
		l.content.unclear = true
		return nil
	}
	l.content.platform = claims.Platform
	if t := parseTime(claims.Created); l.content.created.IsZero() {
		l.content.created = t
	}
	return nil
}

func (l *look) readBlob(desc *oci.Descriptor) ([]byte, error) {
	b, err := l.g.src.Blob(l.ctx, l.repo, desc.Digest, l.ask)
	if err != nil {
		return nil, err
	}
	rd, err := b.Open(l.ctx, 0, -1)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	text, err := io.ReadAll(io.LimitReader(rd, maxConfig))
	l.out.Spent += rd.Outcome().Spent
	return text, err
}
