package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/words"
)

// What the disk has, and whether it is sound.

const pruneHelp = `Usage: entrepot prune [--unused 30d] [--dry-run]

Removes what no repository has any more, as after entrepot rm --all. With
--unused also all that nobody used for so long, and fills that nobody went on
with. What is pinned, or being read, stays; so does what came within the last
hour, unless --unused says less. entrepot df --next shows what goes for lack of
room.

  --unused AGE       such as 12h or 30d
  --dry-run          remove nothing: list what would be removed, and why
` + operatorHelp

const verifyHelp = `Usage: entrepot verify

Reads all that is held and compares it with its digests, as fast as the disk
gives it. What is damaged is dropped, and fetched again when somebody asks for
it. The exit code is 3 if something was damaged, or could not be read. (A server
does this by itself in the background: ENTREPOT_SCRUB_RATE.)
` + operatorHelp

const dfHelp = `Usage: entrepot df [--next 20]

Shows what the data directory takes on disk, and for which upstream.

  --next N           what eviction would take next, and why, up to 1000
` + operatorHelp

func prune(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "prune")
	defer o.end(&err)
	unused := o.flags.String("unused", "", "")
	dry := o.flags.Bool("dry-run", false, "")
	if err := o.begin(ctx, 0, 0); err != nil {
		return err
	}
	var age time.Duration
	if *unused != "" {
		if age, err = words.ParseAge(*unused); err != nil {
			return o.misused("--unused: %v", err)
		}
		if age == 0 {
			return o.misused("--unused: %s is no age: want 1s or more", words.Quote(*unused))
		}
	}
	if *dry {
		return pruneDryRun(ctx, o, age)
	}
	bar := o.newBar("pruning", false)
	pruned, err := do[admin.Pruned](ctx, o, "POST", "prune", admin.Prune{UnusedSeconds: int64(age / time.Second)}, func(raw json.RawMessage) {
		var p admin.Share
		if json.Unmarshal(raw, &p) == nil {
			bar.show(int64(p.Done*1000), 1000)
		}
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("prune: %w", o.explain(err, admin.Target{}))
	}
	if !o.json {
		fmt.Fprintf(o.in.Stdout, "removed %s, and freed %s\n%s", prunedText(pruned), words.Bytes(pruned.Bytes), recentText(pruned, age))
	}
	return nil
}

func prunedText(p admin.Pruned) string {
	return fmt.Sprintf("%s, %s and %s", words.Count(p.Blobs, "blob"), words.Count(p.Fills, "unfinished one"), words.Count(p.Records, "record"))
}

// recentText is a line about what stays for a while, though no repository has it.
func recentText(p admin.Pruned, unused time.Duration) string {
	if p.Recent == 0 {
		return ""
	}
	stays := admin.PruneAfter
	if unused > 0 {
		stays = min(stays, unused)
	}
	return fmt.Sprintf("%s, %s, that no repository has stay for now: they came, or were used, within the last %s\n", words.Count(p.Recent, "blob"), words.Bytes(p.RecentBytes), words.Span(stays))
}

func pruneDryRun(ctx context.Context, o *operation, age time.Duration) error {
	t := o.newTable("DIGEST", "KIND", "SIZE", "LAST USE", "WHY")
	raw, err := o.client.Post(ctx, "prune", admin.Prune{UnusedSeconds: int64(age / time.Second), DryRun: true}, &admin.Listener{Item: func(raw json.RawMessage) error {
		var v admin.Prunable
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		return t.row(raw, words.Digest(v.Digest), v.Kind, words.Bytes(v.Bytes), words.Ago(v.LastUse), v.Why)
	}})
	var would admin.Pruned
	if err == nil {
		err = json.Unmarshal(raw, &would)
	}
	if err != nil {
		return fmt.Errorf("prune: %w", o.explain(err, admin.Target{}))
	}
	if err := t.end(""); err != nil || o.json {
		return err
	}
	_, err = fmt.Fprintf(o.in.Stdout, "would remove %s, and free %s\n%s", prunedText(would), words.Bytes(would.Bytes), recentText(would, age))
	return err
}

func verify(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "verify")
	defer o.end(&err)
	if err := o.begin(ctx, 0, 0); err != nil {
		return err
	}
	bar := o.newBar("reading", true)
	v, err := do[admin.Verified](ctx, o, "POST", "verify", struct{}{}, func(raw json.RawMessage) {
		var v admin.Verified
		if json.Unmarshal(raw, &v) == nil {
			bar.show(v.Bytes, v.Total)
		}
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("verify: %w", o.explain(err, admin.Target{}))
	}
	if !o.json {
		fmt.Fprintf(o.in.Stdout, "read %s, %s\n", words.Count(int(v.Files), "file"), words.Bytes(v.Bytes))
		for _, d := range v.Dropped {
			fmt.Fprintf(o.in.Stdout, "dropped %s\n", d)
		}
	}
	if v.Damaged+v.Unreadable > 0 {
		var found []string
		if v.Damaged > 0 {
			found = append(found, fmt.Sprintf("%d damaged, and dropped: fetched again when asked for", v.Damaged))
		}
		if v.Unreadable > 0 {
			found = append(found, fmt.Sprintf("%d unreadable: see the log, and look after the disk", v.Unreadable))
		}
		return ExitError{damage, "verify: " + strings.Join(found, "; ")}
	}
	return nil
}

func usage(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "df")
	defer o.end(&err)
	next := 0
	o.boundedInt(&next, "next", 1, admin.MaxEvictions)
	if err := o.begin(ctx, 0, 0); err != nil {
		return err
	}
	if next != 0 {
		return o.listEvictions(ctx, next)
	}
	bar := o.newBar("counting files", false)
	u, err := do[admin.Usage](ctx, o, "GET", "usage", nil, func(raw json.RawMessage) {
		var f admin.Files
		if json.Unmarshal(raw, &f) == nil {
			bar.count(f.Files)
		}
	})
	bar.end()
	if err != nil {
		return fmt.Errorf("df: %w", o.explain(err, admin.Target{}))
	}
	if o.json {
		return nil
	}
	return o.showUsage(u)
}

func (o *operation) showUsage(u admin.Usage) error {
	limit := "no cap"
	if u.Budget > 0 {
		limit = fmt.Sprintf("%d%% of %s", u.Held*100/u.Budget, words.Bytes(u.Budget))
	}
	fmt.Fprintf(o.in.Stdout, "%s are held: %s; %s pinned, %s in records, %s on their way in.\n%s of %s are free on the disk.\n\n",
		words.Bytes(u.Held), limit, words.Bytes(u.Pinned), words.Bytes(u.Records), words.Bytes(u.Filling), words.Bytes(u.Free), words.Bytes(u.Disk))
	t := o.newTable("UPSTREAM", "REPOSITORIES", "TAGS", "BLOBS", "SIZE", "UNFINISHED", "SHARE")
	for _, one := range u.Upstreams {
		name, share := one.Upstream, "-"
		if name == "" {
			name = "(unknown)"
		}
		if one.Share > 0 {
			share = words.Share(int64(one.Share*1e6 + 0.5))
		}
		if err := t.row(nil, name, strconv.Itoa(one.Repositories), strconv.Itoa(one.Tags), strconv.Itoa(one.Blobs), words.Bytes(one.BlobBytes), words.Bytes(one.FillBytes), share); err != nil {
			return err
		}
	}
	return t.end("nothing is held")
}

func (o *operation) listEvictions(ctx context.Context, n int) error {
	t := o.newTable("DIGEST", "SIZE", "UPSTREAM", "REPOSITORIES", "WHY")
	err := each(ctx, o, "evictions", url.Values{"n": {strconv.Itoa(n)}}, func(v admin.Victim, raw json.RawMessage) error {
		upstream, repositories := v.Upstream, strings.Join(v.Repositories, ", ")
		if upstream == "" {
			upstream = "-"
		}
		if repositories == "" {
			repositories = "-"
		}
		return t.row(raw, words.Digest(v.Digest), words.Bytes(v.Bytes), upstream, repositories, v.Why)
	})
	if err != nil {
		return err
	}
	return t.end("there is nothing to evict")
}
