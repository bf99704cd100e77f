package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/warm"
	"entrepot/words"
)

const warmHelp = `Usage: entrepot warm [--platform linux/amd64,...] [--file LIST] [--wait 30m]
                     <image>...
       entrepot warm

Has the server fetch images: what their names mean now, and all that leads to,
unless it is held. Clients go first, and the part of a quota that is kept for
them is left alone. What is limited or down is tried again at the time that
upstream names. What has come stays: an image that was interrupted goes on where
it stopped. Interrupting the command ends the work, but for blobs that are on
their way. Without an image: the list that the server keeps warm
(ENTREPOT_WARM), and how each is: missing if upstream does not have it, or not
for us; waiting for a quota or another limit, or for what is on its way for
others; failed if it could not be had; deferred until ENTREPOT_WARM_WINDOW;
evicted if some of it made room since; stale if it is here, and may be old. As
JSON, a last line without a repository has the error of a list that cannot be
read, or, where that is "partial", of a line that is no image.

  --platform LIST    such as linux/amd64,linux/arm64; native: Linux on the
                     server's architecture; all. The default is
                     ENTREPOT_WARM_PLATFORMS of the server. Those that an image
                     is not for are named
  --file LIST        a file with one image in a line; # begins a comment
  --wait TIME        how long nothing may come of an image until it is given up
` + liveHelp

func warmImages(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "warm")
	defer o.end(&err)
	platforms, file, wait := o.flags.String("platform", "", ""), o.flags.String("file", "", ""), o.flags.String("wait", "30m", "")
	if err := o.begin(ctx, 0, -1); err != nil {
		return err
	}
	patience, err := words.ParseAge(*wait)
	if err != nil || patience > admin.MaxWarmWait {
		return o.misused("--wait: %s is not a time from 0s to 7d, such as 30m", words.Quote(*wait))
	}
	if *platforms != "" {
		if _, err := warm.ParsePlatforms(*platforms); err != nil {
			return o.misused("--platform: %v", err)
		}
	}
	targets, err := o.pinned()
	if err != nil {
		return err
	}
	if *file != "" {
		images, err := o.settings.Images(*file)
		if err != nil {
			return fmt.Errorf("warm: --file: %w", err)
		}
		for _, im := range images {
			targets = append(targets, admin.Target{Repository: im.Repository.String(), Reference: im.Reference})
		}
	}
	switch {
	case len(targets) > 0:
	case *file != "":
		return fmt.Errorf("warm: file %s names no image", words.Quote(*file))
	default:
		return o.showWarmList(ctx)
	}
	var failed []error
	for _, t := range targets {
		err := o.warm(ctx, t, *platforms, patience)
		if ctx.Err() != nil {
			return errors.Join(append(failed, context.Cause(ctx))...)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("warm %s: %w", t, o.explain(err, t)))
		}
	}
	return errors.Join(failed...)
}

// warm has one image fetched, and shows how far it is.
func (o *operation) warm(ctx context.Context, t admin.Target, platforms string, patience time.Duration) error {
	bar, waiting := o.newBar(t.String(), true), newWaits()
	ask := admin.Warm{Repository: t.Repository, Reference: t.Reference, Platforms: platforms, WaitSeconds: int64(patience / time.Second)}
	done, err := do[admin.Warmed](ctx, o, http.MethodPost, "warm", ask, func(raw json.RawMessage) {
		var p admin.Warming
		switch {
		case json.Unmarshal(raw, &p) != nil:
		case waiting.isNews(p):
			bar.end()
			fmt.Fprintf(o.in.Stderr, "%s: waiting until %s: %s\n", t, p.Until.Local().Format(time.TimeOnly), words.Printable(p.Waiting))
		case p.Waiting == "":
			bar.show(p.BytesDone, p.Bytes)
		}
	})
	bar.end()
	if err != nil || o.json {
		return err
	}
	text := "is held already"
	if done.Fetched > 0 {
		text = "fetched " + words.Bytes(done.Fetched)
	}
	fmt.Fprintf(o.in.Stdout, "%s %s: %s, %s in %s and %s", t, text, words.Digest(done.Digest), words.Bytes(done.Bytes), words.Count(done.Manifests, "manifest"), words.Count(done.Blobs, "blob"))
	if done.Skipped > 0 {
		fmt.Fprintf(o.in.Stdout, ", without %s from elsewhere", words.Count(done.Skipped, "layer"))
	}
	if len(done.Absent) > 0 {
		fmt.Fprintf(o.in.Stdout, ", nothing for %s", words.Printable(strings.Join(done.Absent, ", ")))
	}
	if done.Stale != "" {
		fmt.Fprintf(o.in.Stdout, " (%s)", words.Printable(done.Stale))
	}
	_, err = fmt.Fprintln(o.in.Stdout)
	return err
}

// waits are what is said of an image that waits.
type waits struct {
	why   string
	until time.Time
	apart time.Duration // so much later is news
}

// leastApart is that at first. It doubles each time: who tries again every minute does
// not say so every minute.
const leastApart = time.Minute

func newWaits() *waits { return &waits{apart: leastApart} }

// isNews reports whether it waits for something else, or much longer, than was said.
func (w *waits) isNews(p admin.Warming) bool {
	switch {
	case p.Waiting == "":
		return false
	case p.Waiting != w.why:
		w.apart = leastApart
	case p.Until.Sub(w.until) < w.apart:
		return false
	default:
		w.apart = min(2*w.apart, time.Hour)
	}
	w.why, w.until = p.Waiting, p.Until
	return true
}

// entryText is what is said below an image of the list; empty for nothing. The error
// comes last: it may be long, and is then cut.
func entryText(e admin.WarmEntry) string {
	var notes []string
	if len(e.Absent) > 0 {
		notes = append(notes, "nothing for "+strings.Join(e.Absent, ", "))
	}
	if e.Skipped > 0 {
		notes = append(notes, "without "+words.Count(e.Skipped, "layer")+" from elsewhere")
	}
	if e.Error != "" {
		notes = append(notes, e.Error)
	}
	return strings.Join(notes, "; ")
}

func (o *operation) showWarmList(ctx context.Context) error {
	t := o.newTable("IMAGE", "STATUS", "NEXT", "CHECKED", "SIZE", "DIGEST")
	t.width, _ = o.terminal()
	raw, err := listed(ctx, o, "warmlist", nil, func(e admin.WarmEntry, raw json.RawMessage) error {
		status, next := e.Status, "-"
		if p := e.Progress; p != nil && p.Bytes > 0 {
			status += " " + strconv.FormatInt(p.BytesDone*100/p.Bytes, 10) + "%"
		}
		if !e.Next.IsZero() {
			next = e.Next.Local().Format(time.TimeOnly)
		}
		if err := t.row(raw, admin.Target{Repository: e.Repository, Reference: e.Reference}.String(), status, next, words.Ago(e.Checked), words.Bytes(e.Bytes), words.Digest(e.Digest)); err != nil {
			return err
		}
		if text := entryText(e); text != "" {
			t.under(text)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var told admin.WarmList
	if err := json.Unmarshal(raw, &told); err != nil {
		return err
	}
	if told.Error == "" {
		return t.end("no image is kept warm: set ENTREPOT_WARM or ENTREPOT_WARM_FILE for the server")
	}
	what := "the list cannot be read as it is"
	if told.Partial {
		what = "some of the list was left out"
	}
	fmt.Fprintf(o.in.Stderr, "%s: %s\n", what, words.Printable(told.Error))
	if o.json {
		return o.writeLine(raw)
	}
	return t.end("no image is kept warm: no line of the list is an image")
}
