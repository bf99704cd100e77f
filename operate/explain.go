package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/words"
)

const rulesHelp = `Usage: entrepot rules

Lists the cache rules, ENTREPOT_RULE_<n>_TARGET and the like, in the order in
which they are tried: the first that covers a name decides what it means.
` + operatorHelp

const explainHelp = `Usage: entrepot explain [--ns docker.io] <reference>

Says of a reference as a client writes it, with or without this cache's address,
which upstream and repository it means and by which rule, whether it is held and
still believed, who may have it, and what a pull would cost now. It asks no
upstream. Of a server that runs it also knows what has failed lately, which of
the upstream's hosts do not answer, what is left of the quota, and what clients
are told meanwhile.

  --ns REGISTRY      as containerd asks that has this cache for a mirror of
                     REGISTRY
` + operatorHelp

func listRules(ctx context.Context, in Invocation) (err error) {
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

func explain(ctx context.Context, in Invocation) (err error) {
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
	facts.add("asked as", askedAs(x))
	facts.add("reference", x.Reference)
	facts.add("digest", x.Digest.String())
	facts.add("held", strconv.FormatBool(x.Held))
	facts.add("fresh", x.Fresh+ageText(x))
	if !x.Retry.IsZero() {
		facts.add("asked again", "in "+time.Until(x.Retry).Round(time.Second).String()+", after a failure"+notBefore(x))
	}
	for _, b := range x.Hosts {
		if !isWell(b, time.Now()) {
			facts.add("upstream now", strings.TrimSpace(b.Host+" "+partText(b))+" "+plainText(troubleOf(b, time.Now()))+remedyText(b.Remedy))
		}
	}
	for _, q := range x.Quotas {
		facts.add("quota", quotaText(q, time.Now())+remedyText(q.Remedy))
	}
	if err := facts.end(); err != nil {
		return err
	}
	fmt.Fprintln(o.in.Stdout)
	if x.Denied {
		_, err := fmt.Fprintln(o.in.Stdout, "a pull is refused, and costs nothing")
		return err
	}
	t := o.newTable("A PULL OF", "HEADS", "MANIFESTS", "BLOBS", "BYTES", "")
	for _, p := range x.Pulls {
		more := ""
		if p.AtLeast {
			more = "and what only upstream can tell"
		}
		switch {
		case p.Refused != "":
			more = "but now " + p.Refused
		case p.Expected != "":
			more = "but now, unless upstream says otherwise, " + p.Expected
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

// notBefore says which of two times counts.
func notBefore(x admin.Explanation) string {
	if slices.ContainsFunc(x.Hosts, func(b admin.Breaker) bool { return b.State != "closed" }) {
		return ", and not before, whatever a probe of the host tells until then"
	}
	return ""
}

// askedAs names the account that counts, or why it does not.
func askedAs(x admin.Explanation) string {
	if x.Login == nil {
		return x.Account
	}
	return "nobody: " + x.Account + " is refused by " + x.Login.Host + refusalText(*x.Login, time.Now()) + ": " + x.Login.Setting
}

func remedyText(remedy string) string {
	if remedy == "" {
		return ""
	}
	return "; " + remedy
}

func plainText(inks []ink) string {
	var b strings.Builder
	for _, one := range inks {
		b.WriteString(one.text)
	}
	return b.String()
}

// quotaText says what is left for manifests.
func quotaText(q admin.Quota, now time.Time) string {
	text := "?"
	if q.Left >= 0 {
		text = strconv.Itoa(q.Left)
	}
	if text += " left"; q.Limit > 0 {
		text += " of " + strconv.Itoa(q.Limit)
	}
	if q.Reserve > 0 {
		text += fmt.Sprintf(", the last %d for what is not held", q.Reserve)
	}
	if resets := resetsText(q, now); resets != "-" {
		text += ", resets in " + resets
	}
	if pause := pauseText(q, now); pause != "" {
		text += ", " + pause
	}
	if q.Account != "" {
		return q.Account + ": " + text
	}
	return text
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
