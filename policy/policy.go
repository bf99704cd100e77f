// Package policy decides what may be pulled: a Guard is an oci.Source that asks
// another one only for what its rules let pass. It decides at manifest time, by
// name before anything is asked and by content before a byte of a blob goes out.
//
// Start with Rule, then Guard.Resolve and Guard.Manifest. It knows nothing of
// HTTP, of caches or of disks.
package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
	"entrepot/words"
)

// Rule says what of the names that it matches may be pulled. Of several rules
// the first that matches a name decides about it; a name that none matches may be
// pulled.
type Rule struct {
	Name  string // for messages
	Match string // a pattern over upstream/repository:tag, as oci.Matches reads it
	Deny  bool   // nothing of it; otherwise what meets the demands that follow

	MinAge    time.Duration // 0: none
	FromSeen  bool          // the age counts from when we saw a tag name it, and not from what the image claims either
	Platforms []string      // patterns over os/architecture[/variant]; none: all
	MaxSize   int64         // bytes of config and layers; 0: any
}

// demands reports whether the content decides.
func (r *Rule) demands() bool { return r.MinAge > 0 || len(r.Platforms) > 0 || r.MaxSize > 0 }

// covers reports whether r matches whatever is pulled from repo.
func (r *Rule) covers(repo oci.Repository) bool {
	return oci.Matches(r.Match, repo.String()+":\x00") // no tag has that: only a * matches it
}

// mayMatch reports whether r matches some tag of repo, as far as its pattern
// tells.
func (r *Rule) mayMatch(repo oci.Repository) bool {
	i := strings.LastIndexByte(r.Match, ':')
	return r.covers(repo) || i >= 0 && oci.Matches(r.Match[:i], repo.String())
}

// Lead is a tag that leads to a manifest: it names it, or an index that lists it.
type Lead struct {
	Tag      string
	Changed  time.Time    // when the tag was first seen to name what it names; zero if that is not known
	Platform oci.Platform // of an index's entry; zero if there is none
}

// content is what a rule's demands are about.
type content struct {
	links    *oci.Links
	platform oci.Platform // of an image; zero if it is not known
	created  time.Time    // as it claims; zero if it does not
	unclear  bool         // an image, whose config cannot be read: it may be for anything
}

func (c *content) isIndex() bool { return len(c.links.Manifests) > 0 }

// judge says why content is refused; empty if it is not.
func (r *Rule) judge(c *content, lead Lead, now time.Time) string {
	if size := c.size(); r.MaxSize > 0 && size > r.MaxSize {
		return fmt.Sprintf("it has %d bytes, and %d are allowed", size, r.MaxSize)
	}
	return cmp.Or(r.judgePlatform(c, lead), r.judgeAge(c, lead, now))
}

// size is that of an image, as its manifest tells it. The children of an index
// are judged each by itself.
func (c *content) size() (n int64) {
	for _, b := range c.links.Blobs() {
		n += min(max(0, b.Size), math.MaxInt64-n) // a stranger's numbers must not wrap around
	}
	return n
}

func (r *Rule) judgePlatform(c *content, lead Lead) string {
	if len(r.Platforms) == 0 {
		return ""
	}
	if c.unclear && !lead.Platform.Runs() {
		return fmt.Sprintf("its config does not tell what it is for, and only %s is allowed", strings.Join(r.Platforms, ", "))
	}
	var has []oci.Platform
	if c.isIndex() {
		for _, child := range c.links.Manifests {
			has = append(has, child.Platform)
		}
	} else if has = []oci.Platform{lead.Platform}; !lead.Platform.Runs() {
		has[0] = c.platform
	}
	var names []string
	for _, p := range has {
		if !p.Runs() { // an attestation, a chart: nothing that runs anywhere
			continue
		}
		if r.allows(p) {
			return ""
		}
		if !slices.Contains(names, p.String()) {
			names = append(names, p.String())
		}
	}
	if len(names) == 0 {
		return ""
	}
	const most = 8
	return fmt.Sprintf("it is for %s, and only %s is allowed", strings.Join(names[:min(most, len(names))], ", "), strings.Join(r.Platforms, ", "))
}

// allows reports whether a platform is allowed: linux/arm64 is so in any variant.
func (r *Rule) allows(p oci.Platform) bool {
	bare := oci.Platform{OS: p.OS, Architecture: p.Architecture}
	return slices.ContainsFunc(r.Platforms, func(pattern string) bool {
		return oci.Matches(pattern, p.String()) || oci.Matches(pattern, bare.String())
	})
}

// oldest is the first year that an image can claim to be of: reproducible builds
// claim 1970 or 1980, which says nothing.
const oldest = 1990

func (r *Rule) judgeAge(c *content, lead Lead, now time.Time) string {
	if r.MinAge <= 0 {
		return ""
	}
	age := time.Duration(-1)
	if !lead.Changed.IsZero() {
		age = now.Sub(lead.Changed)
	}
	switch {
	case r.FromSeen:
	case c.created.Year() >= oldest:
		age = max(age, now.Sub(c.created))
	case c.isIndex():
		return "" // what it lists claims for itself
	}
	switch {
	case age >= r.MinAge:
		return ""
	case age < 0:
		return fmt.Sprintf("nobody knows how old it is, and %s is the least", spanText(r.MinAge))
	}
	return fmt.Sprintf("it is %s old, and %s is the least", spanText(age.Round(time.Second)), spanText(r.MinAge))
}

// spanText is a time span as people set it: whole days as days, and no zeros
// behind hours and minutes.
func spanText(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return words.Span(d)
}
