package operate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/oci"
	"entrepot/words"
)

// What of the upstreams is in trouble: hosts, parts of them, and logins.

// shakyFor is how long a host that is asked is said to have failed: it may be one
// that nobody wanted anything of since.
const shakyFor = 5 * time.Minute

// maxParts is how many parts of a host are shown, those first that most waited for.
const maxParts = 4

// hostTrouble is a host with what of it does not answer by itself.
type hostTrouble struct {
	host  admin.Breaker
	parts []admin.Breaker
}

// isDown reports whether something of it is not asked.
func (h hostTrouble) isDown() bool { return h.host.State != "closed" || len(h.parts) > 0 }

// troubled are the hosts that are not well, those that are down first, and how many
// there are in all.
func troubled(s admin.Status) (hosts []hostTrouble, all int) {
	type place struct{ upstream, host string }
	parts, seen := map[place][]admin.Breaker{}, map[place]bool{}
	for _, b := range s.Breakers {
		at := place{b.Upstream, b.Host}
		if seen[at] = true; b.Part != "" && !isWell(b, s.Now) {
			parts[at] = append(parts[at], b)
		}
	}
	for _, b := range s.Breakers {
		at := place{b.Upstream, b.Host}
		if b.Part == "" && (len(parts[at]) > 0 || !isWell(b, s.Now)) {
			hosts = append(hosts, hostTrouble{b, parts[at]})
			delete(parts, at)
		}
	}
	for _, b := range s.Breakers { // of which nothing is known but parts
		at := place{b.Upstream, b.Host}
		if len(parts[at]) > 0 {
			hosts = append(hosts, hostTrouble{admin.Breaker{Upstream: b.Upstream, Host: b.Host, State: "closed"}, parts[at]})
			delete(parts, at)
		}
	}
	order := func(h hostTrouble) int {
		switch {
		case h.host.State != "closed":
			return 0
		case h.isDown():
			return 1
		}
		return 2
	}
	slices.SortStableFunc(hosts, func(a, b hostTrouble) int { return cmp.Compare(order(a), order(b)) })
	return hosts, len(seen)
}

// hosts lists those in trouble. Nothing is said of the others: many have never been
// asked.
func (p *picture) hosts(s admin.Status) {
	hosts, all := troubled(s)
	colour := green
	switch {
	case slices.ContainsFunc(hosts, hostTrouble.isDown):
		colour = red
	case len(hosts) > 0:
		colour = yellow
	}
	title := []ink{{bold, "HOSTS  "}, {colour, fmt.Sprintf("%d of %d in trouble", len(hosts), all)}}
	if len(s.Logins) > 0 {
		title = append(title, ink{plain, ", "}, ink{red, words.Count(len(s.Logins), "login") + " refused"})
	}
	unanswered := 0
	for _, w := range s.Waiting {
		unanswered += w.Questions
	}
	if unanswered > 0 {
		title = append(title, ink{plain, ", "}, ink{yellow, words.Count(unanswered, "request") + " unanswered"})
	}
	p.heading("HOSTS", hostsWeight, title...)
	for _, h := range hosts {
		p.host(h, s.Now)
	}
	for _, w := range s.Waiting {
		p.line(ink{plain, "  " + left(p.nameWidth()-2, w.Upstream) + "  "}, ink{yellow, words.Count(w.Questions, "request") + " unanswered"}, ink{plain, ", the oldest for " + spanText(s.Now.Sub(w.Since))})
	}
	p.logins(s)
	for _, name := range s.Offline {
		p.line(ink{plain, "  " + left(p.nameWidth()-2, name) + "  "}, ink{yellow, "offline"}, ink{plain, " as it is set: only what is held is served"})
	}
}

// host is the rows of a host, and of its parts. Those of one that is not asked itself
// wait for it, and are counted alone.
func (p *picture) host(h hostTrouble, now time.Time) {
	how := troubleOf(h.host, now)
	if isWell(h.host, now) {
		how = []ink{{red, words.Count(len(h.parts), "part")}, {plain, map[bool]string{true: " of it does not answer", false: " of it do not answer"}[len(h.parts) == 1]}}
	}
	p.line(append([]ink{{plain, "  " + left(p.nameWidth()-2, h.host.Host) + "  "}}, how...)...)
	if h.host.Error != "" && !isWell(h.host, now) {
		p.under(ink{dim, "    " + h.host.Upstream + ": " + errorText(h.host)})
	}
	p.remedy(h.host.Remedy)
	if h.host.State != "closed" {
		if len(h.parts) > 0 {
			p.under(ink{plain, "    and " + words.Count(len(h.parts), "part") + " of it"})
		}
		return
	}
	slices.SortStableFunc(h.parts, func(a, b admin.Breaker) int { return cmp.Compare(b.Refused, a.Refused) })
	shown := h.parts[:min(len(h.parts), maxParts)]
	for _, part := range shown {
		p.line(ink{plain, strings.TrimRight("    "+left(max(p.width-4, 20), partText(part)), " ")})
		how := append([]ink{{plain, "      "}}, troubleOf(part, now)...)
		if part.Error != "" {
			how = append(how, ink{dim, ": " + errorText(part)})
		}
		p.under(how...)
	}
	if more := len(h.parts) - len(shown); more > 0 {
		p.line(ink{plain, fmt.Sprintf("    and %d more", more)})
	}
}

// errorText is a failure without what stands beside it.
func errorText(b admin.Breaker) string {
	return strings.TrimPrefix(strings.TrimPrefix(b.Error, "unavailable: "), b.Host+": ")
}

// partText names a part of a host as people name images: what else of its path is
// the same for all is left out, and of a digest what nobody compares. A path that
// does not say what repository it is asked about, as that of tokens, follows it.
func partText(b admin.Breaker) string {
	path, ok := strings.CutPrefix(b.Part, "/v2/")
	if !ok {
		if b.Repo != "" && b.Repo != b.Part {
			return b.Repo + ", by " + b.Part
		}
		return b.Part
	}
	for kind, sign := range map[string]string{"/manifests/": ":", "/blobs/": "@", "/referrers/": "@"} {
		name, reference, ok := strings.Cut(path, kind)
		if !ok {
			continue
		}
		if d, err := oci.ParseDigest(reference); err == nil {
			sign, reference = "@", words.Digest(d)
		}
		if kind != "/manifests/" {
			reference += ", " + strings.Trim(kind, "/")
		}
		return name + sign + reference
	}
	return path
}

// isWell reports whether nothing keeps us from asking a host.
func isWell(b admin.Breaker, now time.Time) bool {
	return b.State == "closed" && !b.Paused.After(now) && !b.Behind.After(now) && (b.Failures == 0 || now.Sub(b.Failed) >= shakyFor)
}

// troubleOf says how a host fares that is not well.
func troubleOf(b admin.Breaker, now time.Time) []ink {
	if b.State == "closed" && b.Paused.After(now) {
		return []ink{{yellow, "limits us"}, {plain, " for " + spanText(b.Paused.Sub(now))}}
	}
	if b.State == "closed" && b.Behind.After(now) {
		return []ink{{yellow, b.Why}, {plain, ": others are asked before it for " + spanText(b.Behind.Sub(now))}}
	}
	if b.State == "closed" {
		return []ink{{yellow, "shaky"}, {plain, fmt.Sprintf(" %d failed in a row, %s ago", b.Failures, spanText(now.Sub(b.Failed)))}}
	}
	text := " for " + spanText(now.Sub(b.Since))
	if b.Refused > 0 {
		text += ", " + words.Count(b.Refused, "request") + " held back"
	}
	switch {
	case b.State == "probing":
		text += ", being probed"
	case b.Next.After(now):
		text += ", probe in " + spanText(b.Next.Sub(now))
	}
	return []ink{{red, "down"}, {plain, text}}
}

// logins lists the accounts that are refused: what they are for is asked for
// anonymously.
func (p *picture) logins(s admin.Status) {
	for _, l := range s.Logins {
		p.line(append([]ink{{plain, "  " + left(p.nameWidth()-2, l.Host) + "  "}, {red, "refuses " + l.Account}}, ink{plain, refusalText(l, s.Now)})...)
		p.under(ink{dim, "    " + l.Upstream + ": " + l.Setting})
	}
}

// refusalText says for how long a login is refused.
func refusalText(l admin.Login, now time.Time) string {
	text := " for " + spanText(now.Sub(l.Since))
	if l.Next.After(now) {
		text += ", tried again in " + spanText(l.Next.Sub(now))
	}
	return text
}
