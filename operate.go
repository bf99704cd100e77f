package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/oci"
	"entrepot/words"
)

// The commands for operators. Each asks the admin API, whoever serves it, and
// shows the answer as a table or as lines of JSON.

const operatorHelp = `
It asks the server that ENTREPOT_ADMIN_LISTEN names, if that has the data directory
ENTREPOT_DATA, and otherwise opens the directory itself: run it as the same user then.
` + askingHelp

// liveHelp is for what only a running server can do.
const liveHelp = `
It asks the server that ENTREPOT_ADMIN_LISTEN names, if that has the data directory
ENTREPOT_DATA, and needs it to run.
` + askingHelp

const askingHelp = `
  --server ADDRESS   ask this admin listener instead; ENTREPOT_ADMIN_TOKEN is sent to it
  --json             write lines of JSON (so is done anyway where no terminal reads it)
  --table            write a table, also where no terminal reads it

The exit code is 1 for what failed or was refused, 2 for a mistake in the command
line.
`

const lsHelp = `Usage: entrepot ls [pattern]

Without a pattern: the repositories that are held. With the name of one: its
images, by tag; manifests that were pulled by digest come after them. A pattern has
* for any characters: 'docker.io/*' is all repositories of an upstream,
'alpine:3.*' some tags of one. Names mean what they do to clients: alpine is
docker.io/library/alpine.
` + operatorHelp

const rmHelp = `Usage: entrepot rm [--all] [--dry-run] <reference>...

Forgets tags: alpine:3.20, 'alpine:3.*'. The next client that asks for one has it
checked with its upstream. By digest, alpine@sha256:..., it forgets one manifest, and
what that alone leads to; a manifest that a tag or another one leads to is refused.
With --all it forgets repositories with all that they have: alpine, 'docker.io/*'.
Content goes by and by, as room is needed, or by entrepot prune, but for what came
within the last hour. What is pinned is refused: entrepot unpin comes first.

  --all              whole repositories
  --dry-run          only say what would be removed
` + operatorHelp

const pinHelp = `Usage: entrepot pin [<reference>...]

Protects images from eviction and removal: what a tag names now and what it will
name later, or one digest, with all that it leads to. It need not be held yet; that
it is pinned does not fetch it. Without a reference: the pins there are.
` + operatorHelp

const unpinHelp = `Usage: entrepot unpin <reference>...

Takes pins away, as entrepot pin lists them.
` + operatorHelp

const pruneHelp = `Usage: entrepot prune [--unused 30d]

Removes what no repository has any more, as after entrepot rm --all. With --unused
also all that nobody used for so long, and fills that nobody went on with. What is
pinned, or being read, stays; so does what came within the last hour, unless --unused
says less. entrepot df --next shows what goes for lack of room.

  --unused AGE       such as 12h or 30d
` + operatorHelp

const verifyHelp = `Usage: entrepot verify

Reads all that is held and compares it with its digests, as fast as the disk gives
it. What is damaged is dropped, and fetched again when somebody asks for it. The exit
code is 3 if something was damaged, or could not be read. (A server does this by
itself in the background: ENTREPOT_SCRUB_RATE.)
` + operatorHelp

const dfHelp = `Usage: entrepot df [--next 20]

Shows what the data directory takes on disk, and for which upstream.

  --next N           what eviction would take next, and why, up to 1000
` + operatorHelp

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

// operation is one of these commands at work.
type operation struct {
	in     invocation
	name   string
	flags  *flag.FlagSet
	server string
	json   bool
	table  bool

	args   []string
	cfg    *Config
	client *admin.Client
}

func newOperation(in invocation, name string) *operation {
	o := &operation{in: in, name: name, flags: flag.NewFlagSet(name, flag.ContinueOnError)}
	o.flags.SetOutput(io.Discard)
	o.flags.StringVar(&o.server, "server", "", "")
	o.flags.BoolVar(&o.json, "json", false, "")
	o.flags.BoolVar(&o.table, "table", false, "")
	return o
}

// begin reads the command line and finds who answers. The caller ends it.
func (o *operation) begin(ctx context.Context, least, most int) (err error) {
	if o.args, err = parseInterspersed(o.flags, o.in.args); err != nil {
		return o.misused("%v", err)
	}
	switch {
	case len(o.args) < least:
		return o.misused("it needs a reference, such as alpine:3.20")
	case most == 0 && len(o.args) > 0:
		return o.misused("it takes no argument, and not %s", words.Quote(o.args[0]))
	case most > 0 && len(o.args) > most:
		return o.misused("it takes %d argument at most, and not %s (is a * not quoted?)", most, words.Quote(o.args[most]))
	case o.json && o.table:
		return o.misused("--json or --table, and not both")
	}
	o.json = !o.table && (o.json || !isTerminal(o.in.stdout))
	if o.cfg, err = operatorConfig(o.in.environ); err != nil {
		return err
	}
	o.client, err = connect(ctx, o.cfg, readBuild().Version, o.server)
	if err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}
	return nil
}

func (o *operation) misused(format string, args ...any) error {
	return usageError{fmt.Sprintf("%s: %s: entrepot help %s", o.name, fmt.Sprintf(format, args...), o.name)}
}

// end gives the data directory back, if this process had it.
func (o *operation) end(err *error) {
	if o.client != nil {
		*err = errors.Join(*err, o.client.Close())
	}
}

// operatorConfig is the configuration without what these commands do not need: a
// login's file that went away must not keep anybody from looking.
func operatorConfig(environ []string) (*Config, error) {
	c, found := readConfig(environ)
	found = slices.DeleteFunc(found, func(p problem) bool {
		for _, needless := range []string{"_PASSWORD", "_PASSWORD_FILE", "_USERNAME", "_CA_FILE", "_PROXY", warmFileVar} {
			if strings.HasSuffix(p.name, needless) {
				return true
			}
		}
		return false
	})
	if len(found) > 0 {
		return nil, found
	}
	return c, nil
}

// explain puts into a person's words what the admin API answered: what is wrong
// with the thing, and what to do about it.
func (o *operation) explain(err error, t admin.Target) error {
	known, ok := errors.AsType[*admin.Error](err)
	if !ok {
		return err
	}
	switch known.Code {
	case "PINNED":
		if t.All {
			return errors.New("some of it is pinned; entrepot pin lists what is, entrepot unpin comes first")
		}
		return fmt.Errorf("it is pinned; first: entrepot unpin %s", t)
	case "NOT_HELD":
		if o.name == "unpin" {
			return errors.New("there is no such pin; entrepot pin lists them")
		}
		return errors.New("nothing is held by this name; entrepot ls shows what is")
	case "NOT_RUNNING":
		if o.client.Unreached() == nil {
			return known
		}
		return fmt.Errorf("%w, and none is asked: %w; start one, or name one by --server", known, o.client.Unreached())
	case "BUSY":
		return fmt.Errorf("%w; try again when that is done", known)
	}
	return known
}

// each asks for a list and visits its items, decoded and raw.
func each[T any](ctx context.Context, o *operation, route string, query url.Values, visit func(T, json.RawMessage) error) error {
	_, err := o.client.Get(ctx, route, query, &admin.Listener{Item: func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		return visit(v, raw)
	}})
	if err != nil {
		return fmt.Errorf("%s: %w", o.name, o.explain(err, admin.Target{}))
	}
	return nil
}

// do has something done, shows how far it is, and returns its result.
func do[T any](ctx context.Context, o *operation, method, route string, body any, show func(json.RawMessage)) (result T, err error) {
	l := &admin.Listener{Progress: show}
	var raw json.RawMessage
	if method == "GET" {
		raw, err = o.client.Get(ctx, route, nil, l)
	} else {
		raw, err = o.client.Post(ctx, route, body, l)
	}
	if err == nil {
		err = json.Unmarshal(raw, &result)
	}
	if err == nil && o.json {
		err = o.writeLine(raw)
	}
	return result, err
}

func (o *operation) writeLine(raw []byte) error {
	_, err := fmt.Fprintf(o.in.stdout, "%s\n", raw)
	return err
}

// selection is what a person means by an argument: repositories, and tags of them.
type selection struct {
	repository string // a pattern over upstream/repository
	tag        string // a pattern; empty where none was given
	digest     oci.Digest
}

// target is the one thing that sel without patterns means: a digest before a tag.
func (sel selection) target() admin.Target {
	t := admin.Target{Repository: sel.repository, Reference: sel.tag}
	switch {
	case !sel.digest.IsZero():
		t.Reference = sel.digest.String()
	case sel.tag == "":
		t.Reference = "latest"
	}
	return t
}

// isPattern reports whether a name stands for several.
func isPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// selectionOf reads a reference, in which repository and tag may be patterns.
func selectionOf(names *oci.Names, s string) (sel selection, err error) {
	name, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if sel.digest, err = oci.ParseDigest(digest); err != nil {
			return selection{}, err
		}
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, sel.tag = name[:i], name[i+1:]
		if !isPattern(sel.tag) && !oci.ValidTag(sel.tag) {
			return selection{}, fmt.Errorf("%s is not a tag", words.Quote(sel.tag))
		}
	}
	sel.repository, err = repositoryPattern(names, name)
	return sel, err
}

// repositoryPattern gives a name its full form. Upstreams that are not configured
// any more may still have left something.
func repositoryPattern(names *oci.Names, name string) (string, error) {
	first, rest, _ := strings.Cut(name, "/")
	isHost := strings.ContainsAny(first, ".:") || first == "localhost"
	if !isPattern(name) {
		if isHost {
			repo, err := oci.NewRepository(oci.FoldHost(first), rest)
			if err == nil && repo.Host == oci.DockerHub && !strings.Contains(rest, "/") {
				repo, err = oci.NewRepository(repo.Host, "library/"+rest)
			}
			return repo.String(), err
		}
		repo, _, err := names.Repository(name, "", "")
		return repo.String(), err
	}
	switch {
	case strings.HasPrefix(name, "*"):
		return name, nil
	case isHost && !isPattern(first):
		return oci.FoldHost(first) + "/" + rest, nil
	case isHost:
		return name, nil
	case names.Default == oci.DockerHub && !strings.Contains(name, "/"):
		return names.Default + "/library/" + name, nil
	}
	// What stands before the first pattern may be the target of a rule.
	if i := strings.LastIndexByte(name[:strings.IndexAny(name, "*?[")], '/'); i > 0 {
		const below = "x/x" // two parts, as docker.io has in any case
		if repo, _, err := names.Repository(name[:i+1]+below, "", ""); err == nil {
			return strings.TrimSuffix(repo.String(), below) + name[i+1:], nil
		}
	}
	return names.Default + "/" + name, nil
}

// selectArgument reads one of the command's arguments.
func (o *operation) selectArgument(arg string) (selection, error) {
	sel, err := selectionOf(o.cfg.Names(), arg)
	if err != nil {
		return sel, usageError{fmt.Sprintf("%s %s: %v", o.name, words.Quote(arg), err)}
	}
	return sel, nil
}

// repositories are those that are held and match.
func (o *operation) repositories(ctx context.Context, sel selection) ([]string, error) {
	if !isPattern(sel.repository) {
		return []string{sel.repository}, nil
	}
	var names []string
	err := each(ctx, o, "repositories", nil, func(r admin.Repository, _ json.RawMessage) error {
		if oci.Matches(sel.repository, r.Repository) {
			names = append(names, r.Repository)
		}
		return nil
	})
	return names, err
}

// images visits the images that match.
func (o *operation) images(ctx context.Context, sel selection, visit func(admin.Image, json.RawMessage) error) error {
	repositories, err := o.repositories(ctx, sel)
	if err != nil {
		return err
	}
	for _, name := range repositories {
		err := each(ctx, o, "images", url.Values{"repository": {name}}, func(im admin.Image, raw json.RawMessage) error {
			if sel.tag != "" && !oci.Matches(sel.tag, im.Tag) || !sel.digest.IsZero() && im.Digest != sel.digest {
				return nil
			}
			return visit(im, raw)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func list(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "ls")
	defer o.end(&err)
	if err := o.begin(ctx, 0, 1); err != nil {
		return err
	}
	sel := selection{repository: "*"}
	if len(o.args) == 1 {
		if sel, err = o.selectArgument(o.args[0]); err != nil {
			return err
		}
	}
	if isPattern(sel.repository) && sel.tag == "" && sel.digest.IsZero() {
		return o.listRepositories(ctx, sel)
	}
	return o.listImages(ctx, sel)
}

func (o *operation) listRepositories(ctx context.Context, sel selection) error {
	t := o.newTable("REPOSITORY", "TAGS", "BLOBS", "SIZE", "LAST USE", "PINNED")
	err := each(ctx, o, "repositories", nil, func(r admin.Repository, raw json.RawMessage) error {
		if !oci.Matches(sel.repository, r.Repository) {
			return nil
		}
		return t.row(raw, r.Repository, strconv.Itoa(r.Tags), strconv.Itoa(r.Blobs), words.Bytes(r.Bytes), words.Ago(r.LastUse), mark(r.Pinned))
	})
	if err != nil {
		return err
	}
	return t.end("nothing is held" + o.suchAs(sel))
}

func (o *operation) listImages(ctx context.Context, sel selection) error {
	t := o.newTable("REPOSITORY", "TAG", "DIGEST", "PLATFORMS", "SIZE", "LAST USE", "CHECKED", "PINNED")
	err := o.images(ctx, sel, func(im admin.Image, raw json.RawMessage) error {
		tag := im.Tag
		if tag == "" {
			tag = "-"
		}
		return t.row(raw, im.Repository, tag, words.Digest(im.Digest), platformsText(im.Platforms), words.Bytes(im.Bytes), words.Ago(im.LastUse), words.Ago(im.Checked), mark(im.Pinned))
	})
	if err != nil {
		return err
	}
	return t.end("no image is held" + o.suchAs(sel))
}

// suchAs names what was asked for.
func (o *operation) suchAs(sel selection) string {
	if len(o.args) == 0 {
		return ""
	}
	text := " of " + sel.repository
	if sel.tag != "" {
		text += ":" + sel.tag
	}
	return text
}

func remove(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "rm")
	defer o.end(&err)
	all, dry := o.flags.Bool("all", false, ""), o.flags.Bool("dry-run", false, "")
	if err := o.begin(ctx, 1, -1); err != nil {
		return err
	}
	var targets []admin.Target
	for _, arg := range o.args {
		found, err := o.removals(ctx, arg, *all)
		if err != nil {
			return err
		}
		targets = append(targets, found...)
	}
	verb := "removed"
	if *dry {
		verb = "would remove"
	}
	return o.forEach(ctx, targets, "remove", verb, *dry)
}

// removals are what an argument of rm names.
func (o *operation) removals(ctx context.Context, arg string, all bool) (targets []admin.Target, err error) {
	sel, err := o.selectArgument(arg)
	switch {
	case err != nil:
		return nil, err
	case all && (sel.tag != "" || !sel.digest.IsZero()):
		return nil, o.misused("%s names tags or a digest, and --all whole repositories", words.Quote(arg))
	case sel.tag != "" && !sel.digest.IsZero():
		return nil, o.misused("%s names a tag and a digest: name one of them", words.Quote(arg))
	case !all && sel.tag == "" && sel.digest.IsZero() && isPattern(sel.repository):
		return nil, o.misused("%s names repositories: add --all, or tags, such as %s:*", words.Quote(arg), arg)
	case all:
		names, err := o.repositories(ctx, sel)
		for _, name := range names {
			targets = append(targets, admin.Target{Repository: name, All: true})
		}
		return o.some(targets, arg, err)
	case !isPattern(sel.repository) && !isPattern(sel.tag):
		return []admin.Target{sel.target()}, nil
	}
	err = o.images(ctx, sel, func(im admin.Image, _ json.RawMessage) error {
		t := selection{im.Repository, im.Tag, sel.digest}.target()
		if (im.Tag != "" || !sel.digest.IsZero()) && !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
		return nil
	})
	return o.some(targets, arg, err)
}

func (o *operation) some(targets []admin.Target, arg string, err error) ([]admin.Target, error) {
	if err == nil && len(targets) == 0 {
		err = fmt.Errorf("%s: nothing that is held matches %s; entrepot ls shows what is", o.name, words.Quote(arg))
	}
	return targets, err
}

// forEach does something to each target, and goes on after one that is refused.
func (o *operation) forEach(ctx context.Context, targets []admin.Target, route, verb string, dry bool) error {
	var failed []error
	for _, t := range targets {
		raw, err := json.Marshal(t)
		if err == nil && !dry {
			raw, err = o.client.Post(ctx, route, t, nil)
		}
		if ctx.Err() != nil {
			return errors.Join(append(failed, context.Cause(ctx))...)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s %s: %w", o.name, t, o.explain(err, t)))
			continue
		}
		if o.json {
			err = o.writeLine(raw)
		} else {
			_, err = fmt.Fprintf(o.in.stdout, "%s %s%s\n", verb, t, notYet(route, raw))
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// notYet says of a pin that it protects nothing yet.
func notYet(route string, raw json.RawMessage) string {
	var p admin.Pin
	switch {
	case route != "pin" || json.Unmarshal(raw, &p) != nil:
		return ""
	case p.Digest.IsZero() || p.Bytes == 0:
		return ", of which nothing is held yet"
	case p.Missing > 0:
		return fmt.Sprintf(", of which not all is held yet: %s", words.Count(p.Missing, "digest"))
	}
	return ""
}

func pin(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "pin")
	defer o.end(&err)
	if err := o.begin(ctx, 0, -1); err != nil {
		return err
	}
	if len(o.args) == 0 {
		return o.listPins(ctx)
	}
	targets, err := o.pinned()
	if err != nil {
		return err
	}
	return o.forEach(ctx, targets, "pin", "pinned", false)
}

func unpin(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "unpin")
	defer o.end(&err)
	if err := o.begin(ctx, 1, -1); err != nil {
		return err
	}
	targets, err := o.pinned()
	if err != nil {
		return err
	}
	return o.forEach(ctx, targets, "unpin", "unpinned", false)
}

// pinned are the arguments as pins name things: one each.
func (o *operation) pinned() (targets []admin.Target, err error) {
	for _, arg := range o.args {
		sel, err := o.selectArgument(arg)
		if err != nil {
			return nil, err
		}
		if isPattern(sel.repository) || isPattern(sel.tag) {
			return nil, o.misused("%s is a pattern: a pin is for one tag or digest, and may be for what is not held yet", words.Quote(arg))
		}
		targets = append(targets, sel.target())
	}
	return targets, nil
}

func (o *operation) listPins(ctx context.Context) error {
	t := o.newTable("PIN", "DIGEST", "HELD", "MISSING", "SINCE")
	err := each(ctx, o, "pins", nil, func(p admin.Pin, raw json.RawMessage) error {
		missing := strconv.Itoa(p.Missing)
		if p.Digest.IsZero() {
			missing = "all"
		}
		return t.row(raw, admin.Target{Repository: p.Repository, Reference: p.Reference}.String(), words.Digest(p.Digest), words.Bytes(p.Bytes), missing, words.Ago(p.Since))
	})
	if err != nil {
		return err
	}
	return t.end("nothing is pinned")
}

func prune(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "prune")
	defer o.end(&err)
	unused := o.flags.String("unused", "", "")
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
		fmt.Fprintf(o.in.stdout, "removed %s, %s and %s, and freed %s\n",
			words.Count(pruned.Blobs, "blob"), words.Count(pruned.Fills, "unfinished one"), words.Count(pruned.Records, "record"), words.Bytes(pruned.Bytes))
	}
	return nil
}

func verify(ctx context.Context, in invocation) (err error) {
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
		fmt.Fprintf(o.in.stdout, "read %s, %s\n", words.Count(int(v.Files), "file"), words.Bytes(v.Bytes))
		for _, d := range v.Dropped {
			fmt.Fprintf(o.in.stdout, "dropped %s\n", d)
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
		return exitError{3, "verify: " + strings.Join(found, "; ")}
	}
	return nil
}

func usage(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "df")
	defer o.end(&err)
	next := o.flags.Int("next", 0, "")
	if err := o.begin(ctx, 0, 0); err != nil {
		return err
	}
	if *next != 0 {
		return o.listEvictions(ctx, *next)
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
	fmt.Fprintf(o.in.stdout, "%s are held: %s; %s pinned, %s in records, %s on their way in.\n%s of %s are free on the disk.\n\n",
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
