package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"entrepot/cache"
	"entrepot/oci"
	"entrepot/warm"
	"entrepot/words"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Fetching images before anybody asks for them: the list that the server keeps
// warm, and what an operator asks for at once.

const warmHelp = `Usage: entrepot warm [--platform linux/amd64,...] [--file LIST] [--wait 30m] <image>...
       entrepot warm

Has the server fetch images: what their names mean now, and all that leads to, unless
it is held. Clients go first, and the part of a quota that is kept for them is left
alone. What is limited or down is tried again at the time that upstream names. What
has come stays: an image that was interrupted goes on where it stopped. Interrupting
the command ends the work, but for blobs that are on their way. Without an image: the
list that the server keeps warm (ENTREPOT_WARM), and how each is.

  --platform LIST    such as linux/amd64,linux/arm64; native: Linux on the server's
                     architecture; all. The default is ENTREPOT_WARM_PLATFORMS of the
                     server
  --file LIST        a file with one image in a line; # begins a comment
  --wait TIME        how long nothing may come of an image until it is given up
` + liveHelp

// The bounds of what is fetched ahead.
const (
	warmBlobs   = 4 // at once
	maxWarmJobs = 4 // that operators have asked for, at once
	maxWarmWait = 7 * 24 * time.Hour
)

// warming is what fetches images ahead.
type warming struct {
	puller    *warm.Puller
	list      *warm.List
	platforms warm.Platforms
	jobs      chan struct{} // places
}

// newWarming fetches through source, over held, what clients may pull: what a
// policy refuses them is not fetched for them either.
func newWarming(cfg *Config, source oci.Source, held *cache.Cache, watcher *observer) *warming {
	puller := warm.NewPuller(source, warmBlobs)
	return &warming{
		puller: puller, platforms: cfg.WarmPlatforms.Platforms, jobs: make(chan struct{}, maxWarmJobs),
		list: warm.NewList(warm.Config{
			Source: source, Puller: puller, Images: newWarmList(cfg).read,
			Platforms: cfg.WarmPlatforms.Platforms, Every: time.Duration(cfg.WarmEvery), Window: cfg.WarmWindow.Window,
			Known: func(repo oci.Repository, tag string) (checked time.Time, ttl time.Duration, found bool) {
				if rec := held.Record(repo, tag); rec != nil {
					return rec.Checked, rec.TTL, true
				}
				return time.Time{}, 0, false
			},
			Tell: watcher.warmed,
		}),
	}
}

// counts are the images of the list by how they are; none where that is nobody's
// state.
func (w *warming) counts() map[string]int {
	counts := map[string]int{}
	for status, n := range w.list.Totals().Images {
		if n > 0 {
			counts[string(status)] = n
		}
	}
	return counts
}

// keep works on the list until ctx ends or end is called, which returns when
// nothing of it runs any more.
func (w *warming) keep(ctx context.Context, cfg *Config) (end func()) {
	if len(cfg.Warm) == 0 && cfg.WarmFile == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { w.list.Run(ctx) })
	return func() {
		cancel()
		work.Wait()
	}
}

// warmed hears of what happens to the images that are kept warm.
func (o *observer) warmed(e warm.Event) {
	level, text := zerolog.InfoLevel, ""
	switch e.Kind {
	case warm.ListRead:
		text = "warm list: read"
	case warm.ListFailed:
		level, text = zerolog.WarnLevel, "warm list: it cannot be read, so the last one counts"
	case warm.Fetched:
		text = "warm list: fetched"
	case warm.Failed:
		level, text = zerolog.WarnLevel, "warm list: not fetched or not confirmed; it is tried again"
	case warm.Recovered:
		text = "warm list: confirmed again"
	}
	line := o.log.WithLevel(level)
	if e.Err != nil {
		line.Str("error", oci.Causes(e.Err))
	}
	if e.Image == (warm.Image{}) {
		line.Int("images", e.Images)
	} else {
		line.Str("upstream", e.Image.Repository.Host).Str("repository", e.Image.Repository.Path).Str("reference", e.Image.Reference).
			Str("digest", e.Result.Digest.String()).Int64("bytes", e.Result.Bytes).Int64("fetched", e.Result.Fetched).
			Float64("duration_seconds", e.Took.Seconds())
	}
	line.Msg(text)
}

// watchWarm adds what is read of the list when it is scraped.
func (m *metrics) watchWarm(totals func() warm.Totals) {
	for status := range totals().Images {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: namespace, Name: "warm_images", Help: "Images of the warm list, by how they are.", ConstLabels: prometheus.Labels{"state": string(status)},
		}, func() float64 { return float64(totals().Images[status]) }))
	}
	m.gauge("warm_checked_timestamp_seconds", "When a name of the warm list was last confirmed; 0 if none was since the start.", func() float64 {
		if at := totals().Checked; !at.IsZero() {
			return float64(at.Unix())
		}
		return 0
	})
	m.total("warm_fetched_bytes_total", "Bytes that were fetched for the warm list.", func() float64 { return float64(totals().Fetched) })
}

// warmJSON is what is to be fetched.
type warmJSON struct {
	Repository  string `json:"repository"`
	Reference   string `json:"reference"`
	Platforms   string `json:"platforms,omitempty"`   // linux/amd64,... or native, or all; empty: as the server keeps its list
	WaitSeconds int64  `json:"waitSeconds,omitempty"` // how long nothing may come until it is given up
}

// warmingJSON is how far an image is.
type warmingJSON struct {
	Blobs     int       `json:"blobs"`
	BlobsDone int       `json:"blobsDone"`
	Bytes     int64     `json:"bytes"` // of blobs, as far as is known
	BytesDone int64     `json:"bytesDone"`
	Waiting   string    `json:"waiting,omitempty"` // for what
	Until     time.Time `json:"until,omitzero"`
}

func newWarmingJSON(s warm.State) warmingJSON {
	return warmingJSON{s.Blobs, s.BlobsDone, s.Bytes, s.BytesDone, s.Waiting, s.Until}
}

// warmedJSON is what was done for an image.
type warmedJSON struct {
	Repository string     `json:"repository"`
	Reference  string     `json:"reference"`
	Digest     oci.Digest `json:"digest"`
	Manifests  int        `json:"manifests"`
	Blobs      int        `json:"blobs"`
	Bytes      int64      `json:"bytes"`             // of all that
	Fetched    int64      `json:"fetched"`           // of them: that were not held before
	Skipped    int        `json:"skipped,omitempty"` // layers that are had elsewhere, and there alone
	Stale      string     `json:"stale,omitempty"`   // why the name was not confirmed
}

// warmEntryJSON is how an image of the list is.
type warmEntryJSON struct {
	Repository string       `json:"repository"`
	Reference  string       `json:"reference"`
	Status     string       `json:"status"` // pending, fetching, warm, deferred, stale, missing
	Digest     oci.Digest   `json:"digest,omitzero"`
	Bytes      int64        `json:"bytes"`
	Checked    time.Time    `json:"checked,omitzero"`
	Next       time.Time    `json:"next,omitzero"`
	Error      string       `json:"error,omitempty"`
	Progress   *warmingJSON `json:"progress,omitempty"`
}

func newWarmEntryJSON(e warm.Entry) warmEntryJSON {
	out := warmEntryJSON{
		Repository: e.Image.Repository.String(), Reference: e.Image.Reference, Status: string(e.Status),
		Digest: e.Digest, Bytes: e.Bytes, Checked: e.Checked, Next: e.Next,
	}
	if e.Err != nil {
		out.Error = ownText(e.Err)
	}
	if e.Status == warm.Fetching {
		p := newWarmingJSON(e.State)
		out.Progress = &p
	}
	return out
}

func (x *adminExchange) warmList() error {
	entries := x.api.live.warming.list.Entries()
	for _, e := range entries {
		if err := x.item(newWarmEntryJSON(e)); err != nil {
			return err
		}
	}
	return x.result(countJSON{len(entries)})
}

func (x *adminExchange) warm() error {
	var ask warmJSON
	if err := x.body(&ask); err != nil {
		return err
	}
	w := x.api.live.warming
	repo, err := x.upstreamTarget(targetJSON{Repository: ask.Repository, Reference: ask.Reference})
	if err != nil {
		return err
	}
	want := w.platforms
	if ask.Platforms != "" {
		if want, err = warm.ParsePlatforms(ask.Platforms); err != nil {
			return badRequest("platforms: %v", err)
		}
	}
	if ask.WaitSeconds < 0 || ask.WaitSeconds > int64(maxWarmWait/time.Second) {
		return badRequest("waitSeconds: want a number from 0 to %d", int64(maxWarmWait/time.Second))
	}
	select {
	case w.jobs <- struct{}{}:
		defer func() { <-w.jobs }()
	default:
		return &adminError{"BUSY", fmt.Sprintf("%d images are being fetched for operators already", maxWarmJobs)}
	}
	var res warm.Result
	err = x.telling(func(tell func(any)) error {
		var progress warm.Progress
		defer everyMoment(func() { tell(newWarmingJSON(progress.Now())) })()
		res, err = w.puller.Pull(x.r.Context(), warm.Image{Repository: repo, Reference: ask.Reference}, want, time.Duration(ask.WaitSeconds)*time.Second, &progress)
		return err
	})
	if err != nil {
		return &adminError{"UPSTREAM", ownText(err)}
	}
	return x.result(warmedJSON{repo.String(), ask.Reference, res.Digest, res.Manifests, res.Blobs, res.Bytes, res.Fetched, res.Skipped, res.Stale})
}

// everyMoment does something as often as progress is told, until stop returns.
func everyMoment(do func()) (stop func()) {
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		ticks := time.NewTicker(progressEvery)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				do()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		work.Wait()
	}
}

func warmImages(ctx context.Context, in invocation) (err error) {
	o := newOperation(in, "warm")
	defer o.end(&err)
	platforms, file, wait := o.flags.String("platform", "", ""), o.flags.String("file", "", ""), o.flags.String("wait", "30m", "")
	if err := o.begin(ctx, 0, -1); err != nil {
		return err
	}
	patience, err := words.ParseAge(*wait)
	if err != nil || patience > maxWarmWait {
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
		images, err := readImages(o.cfg.Names(), *file)
		if err != nil {
			return fmt.Errorf("warm: --file: %w", err)
		}
		for _, im := range images {
			targets = append(targets, targetJSON{Repository: im.Repository.String(), Reference: im.Reference})
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
func (o *operation) warm(ctx context.Context, t targetJSON, platforms string, patience time.Duration) error {
	bar, waiting := o.newBar(t.String(), true), ""
	ask := warmJSON{t.Repository, t.Reference, platforms, int64(patience / time.Second)}
	done, err := do[warmedJSON](ctx, o, http.MethodPost, "warm", ask, func(raw json.RawMessage) {
		var p warmingJSON
		switch {
		case json.Unmarshal(raw, &p) != nil:
		case p.Waiting != "" && p.Waiting != waiting:
			waiting = p.Waiting
			bar.end()
			fmt.Fprintf(o.in.stderr, "%s: waiting until %s: %s\n", t, p.Until.Local().Format(time.TimeOnly), words.Printable(p.Waiting))
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
	fmt.Fprintf(o.in.stdout, "%s %s: %s, %s in %s and %s", t, text, words.Digest(done.Digest), words.Bytes(done.Bytes), words.Count(done.Manifests, "manifest"), words.Count(done.Blobs, "blob"))
	if done.Skipped > 0 {
		fmt.Fprintf(o.in.stdout, ", without %s from elsewhere", words.Count(done.Skipped, "layer"))
	}
	if done.Stale != "" {
		fmt.Fprintf(o.in.stdout, " (%s)", words.Printable(done.Stale))
	}
	_, err = fmt.Fprintln(o.in.stdout)
	return err
}

func (o *operation) showWarmList(ctx context.Context) error {
	t := o.newTable("IMAGE", "STATUS", "DIGEST", "SIZE", "CHECKED", "NEXT", "WHY")
	err := each(ctx, o, "warmlist", nil, func(e warmEntryJSON, raw json.RawMessage) error {
		status, next, why := e.Status, "-", e.Error
		if p := e.Progress; p != nil && p.Bytes > 0 {
			status += " " + strconv.FormatInt(p.BytesDone*100/p.Bytes, 10) + "%"
		}
		if !e.Next.IsZero() {
			next = e.Next.Local().Format(time.TimeOnly)
		}
		if why == "" {
			why = "-"
		}
		return t.row(raw, targetJSON{Repository: e.Repository, Reference: e.Reference}.String(), status, words.Digest(e.Digest), words.Bytes(e.Bytes), words.Ago(e.Checked), next, why)
	})
	if err != nil {
		return err
	}
	return t.end("no image is kept warm: set ENTREPOT_WARM or ENTREPOT_WARM_FILE for the server")
}
