package main

import (
	"context"
	"sync"
	"time"

	"entrepot/cache"
	"entrepot/oci"
	"entrepot/upstream"
	"entrepot/warm"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Fetching images before anybody asks for them: the list that the server keeps
// warm.

// warmBlobs is how many blobs are fetched ahead at once.
const warmBlobs = 4

// warming is what fetches images ahead.
type warming struct {
	puller    *warm.Puller
	list      *warm.List
	platforms warm.Platforms
}

// newWarming fetches through source, over held, what clients may pull: what a
// policy refuses them is not fetched for them either.
func newWarming(cfg *Config, source oci.Source, held *cache.Cache, upstreams *upstream.Set, watcher *observer) *warming {
	puller := warm.NewPuller(source, warmBlobs)
	return &warming{
		puller: puller, platforms: cfg.WarmPlatforms.Platforms,
		list: warm.NewList(warm.Config{
			Source: source, Puller: puller, Images: newWarmList(cfg).read,
			Platforms: cfg.WarmPlatforms.Platforms, Every: time.Duration(cfg.WarmEvery), Window: cfg.WarmWindow.Window,
			Known: func(repo oci.Repository, tag string) (checked time.Time, ttl time.Duration, found bool) {
				if rec := held.Record(repo, tag); rec != nil {
					return rec.Checked, rec.TTL, true
				}
				return time.Time{}, 0, false
			},
			Held: held.Holds, Withheld: upstreams.Withheld, Tell: watcher.warmed,
		}),
	}
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
		if e.Err != nil {
			level, text = zerolog.WarnLevel, "warm list: read, but for what is no image"
		}
	case warm.ListFailed:
		level, text = zerolog.WarnLevel, "warm list: it cannot be read, so the last one counts"
	case warm.Fetched:
		text = "warm list: fetched"
	case warm.Troubled:
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
		line.Str("upstream", e.Image.Repository.Host).Str("repository", e.Image.Repository.Path).Str("reference", e.Image.Reference)
		if !e.Result.Digest.IsZero() {
			line.Str("digest", e.Result.Digest.String()).Int64("bytes", e.Result.Bytes).Int64("fetched", e.Result.Fetched)
		}
		line.Float64("duration_seconds", e.Took.Seconds())
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
	m.gauge("warm_list_failed", "1 while the warm list, or some of its lines, cannot be read; else 0.", func() float64 {
		if totals().Err != nil {
			return 1
		}
		return 0
	})
	m.total("warm_fetched_bytes_total", "Bytes that were fetched for the warm list.", func() float64 { return float64(totals().Fetched) })
}
