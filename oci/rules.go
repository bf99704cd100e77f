package oci

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Rule gives repositories of an upstream a name of our own: whoever asks for
// Target means Source.
type Rule struct {
	Target Pattern // names as clients write them
	Source Pattern // repositories, in path form
}

func (r Rule) String() string { return r.Target.String() + " => " + r.Source.String() }

// Pattern is one name, or all names below one.
type Pattern struct {
	Name  string // empty: with Below, all names there are
	Below bool   // what lies below Name, and not Name itself
}

func (p Pattern) String() string {
	switch {
	case !p.Below:
		return p.Name
	case p.Name == "":
		return "*"
	}
	return p.Name + "/*"
}

// hasRegistry reports whether p is for the names of one registry.
func (p Pattern) hasRegistry() bool {
	first, _, _ := strings.Cut(p.Name, "/")
	return IsRegistry(first)
}

// Covers reports whether p stands for this name.
func (p Pattern) Covers(name string) bool {
	if !p.Below {
		return name == p.Name
	}
	_, ok := p.cut(name)
	return ok
}

// cut is what a name has below p.
func (p Pattern) cut(name string) (rest string, ok bool) {
	if p.Name == "" {
		return name, name != ""
	}
	rest, ok = strings.CutPrefix(name, p.Name)
	if !ok || len(rest) < 2 || rest[0] != '/' {
		return "", false
	}
	return rest[1:], true
}

// ParseTarget reads the target of a rule: a name as clients write it, with or
// without a registry before it, such as dotnet/sdk; dotnet/* for all below it;
// or * for every name without a registry.
func ParseTarget(s string) (Pattern, error) {
	p, err := parsePattern(s)
	if err != nil || p.Name == "" || p.hasRegistry() {
		if err == nil && p.Name != "" {
			p.Name, err = parseFull(p)
		}
		return p, err
	}
	if !validPath(p.Name) {
		return Pattern{}, fmt.Errorf("%q breaks the grammar of the distribution spec: want parts such as dotnet/sdk, in lower case", clip(s))
	}
	return p, nil
}

// ParseSource reads the source of a rule: a repository with its upstream before
// it, such as mcr.microsoft.com/dotnet/sdk, or all below a name,
// mcr.microsoft.com/dotnet/* or mcr.microsoft.com/*.
func ParseSource(s string) (Pattern, error) {
	p, err := parsePattern(s)
	if err != nil {
		return p, err
	}
	if host, _, _ := strings.Cut(p.Name, "/"); !IsRegistry(host) {
		return Pattern{}, fmt.Errorf("%q does not begin with an upstream's name: want one such as mcr.microsoft.com/dotnet/*", clip(s))
	}
	p.Name, err = parseFull(p)
	return p, err
}

// parseFull checks a name that has a registry before it, which for all below it
// may be the registry alone.
func parseFull(p Pattern) (string, error) {
	host, path, _ := strings.Cut(p.Name, "/")
	host = FoldHost(host)
	if path == "" && p.Below {
		_, err := NewRepository(host, "x")
		return host, textOf(err)
	}
	if !p.Below {
		path = inLibrary(host, path)
	}
	repo, err := NewRepository(host, path)
	return repo.String(), textOf(err)
}

// textOf is an error without its code, for whoever wrote the rule.
func textOf(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return errors.New(e.Detail)
	}
	return err
}

func parsePattern(s string) (Pattern, error) {
	name, below := strings.CutSuffix(s, "/*")
	switch {
	case s == "*":
		return Pattern{Below: true}, nil
	case strings.Contains(name, "*"):
		return Pattern{}, fmt.Errorf("%q has a * that is not its whole last part", clip(s))
	case name == "":
		return Pattern{}, fmt.Errorf("%q names nothing", clip(s))
	}
	return Pattern{Name: name, Below: below}, nil
}

// Upstream is the upstream of a rule's source.
func (r Rule) Upstream() string {
	host, _, _ := strings.Cut(r.Source.Name, "/")
	return host
}

// apply gives the repository that a name below the rule's target means.
func (r *Rule) apply(name string) (upstream, path string) {
	upstream, path, _ = strings.Cut(r.Source.Name, "/")
	rest, below := r.Target.cut(name)
	switch {
	case !below || !r.Target.Below:
		return upstream, path
	case path == "":
		return upstream, rest
	}
	return upstream, path + "/" + rest
}

// Rules finds the rule of a name. Of those that cover it the most specific one
// counts: a single name before a prefix, a longer prefix before a shorter one.
// No two have the same target, so there is one answer. A nil *Rules has none.
type Rules struct {
	single map[string]*Rule // by target
	below  map[string]*Rule // by the prefix of the target
}

// Add adds a rule. Errors: it is not one, or there is one for its target.
func (rs *Rules) Add(r Rule) error {
	if r.Target.Below != r.Source.Below {
		return fmt.Errorf("%s: want a * at the end of both or of neither", r)
	}
	if rs.single == nil {
		rs.single, rs.below = map[string]*Rule{}, map[string]*Rule{}
	}
	table := rs.single
	if r.Target.Below {
		table = rs.below
	}
	if other := table[r.Target.Name]; other != nil {
		return fmt.Errorf("%s: %s is the target of another rule, %s", r, r.Target, other)
	}
	table[r.Target.Name] = &r
	return nil
}

// All are the rules in the order in which they are tried.
func (rs *Rules) All() []Rule {
	if rs == nil {
		return nil
	}
	var all []Rule
	for _, name := range slices.Sorted(maps.Keys(rs.single)) {
		all = append(all, *rs.single[name])
	}
	prefixes := slices.SortedFunc(maps.Keys(rs.below), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b))
	})
	for _, prefix := range prefixes {
		all = append(all, *rs.below[prefix])
	}
	return all
}

// find is the rule for a name; nil if there is none.
func (rs *Rules) find(name string) *Rule {
	if r := rs.single[name]; r != nil {
		return r
	}
	for end := strings.LastIndexByte(name, '/'); end > 0; end = strings.LastIndexByte(name[:end], '/') {
		if r := rs.below[name[:end]]; r != nil && r.Target.Covers(name) {
			return r
		}
	}
	return rs.below[""]
}
