package admin

import (
	"fmt"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/warm"
)

// Fetching images before anybody asks for them.

// The bounds of what is fetched for operators.
const (
	MaxWarmJobs = 4 // at once
	MaxWarmWait = 7 * 24 * time.Hour
)

// Warm is what is to be fetched.
type Warm struct {
	Repository  string `json:"repository"`
	Reference   string `json:"reference"`
	Platforms   string `json:"platforms,omitempty"`   // linux/amd64,... or native, or all; empty: as the server keeps its list
	WaitSeconds int64  `json:"waitSeconds,omitempty"` // how long nothing may come until it is given up
}

// Warming is how far an image is.
type Warming struct {
	Blobs     int       `json:"blobs"`
	BlobsDone int       `json:"blobsDone"`
	Bytes     int64     `json:"bytes"` // of blobs, as far as is known
	BytesDone int64     `json:"bytesDone"`
	Waiting   string    `json:"waiting,omitempty"` // for what, without until when
	Until     time.Time `json:"until,omitzero"`
}

func newWarming(s warm.State) Warming {
	return Warming{s.Blobs, s.BlobsDone, s.Bytes, s.BytesDone, s.Waiting, s.Until}
}

// Warmed is what was done for an image.
type Warmed struct {
	Repository string     `json:"repository"`
	Reference  string     `json:"reference"`
	Digest     oci.Digest `json:"digest"`
	Manifests  int        `json:"manifests"`
	Blobs      int        `json:"blobs"`
	Bytes      int64      `json:"bytes"`             // of all that
	Fetched    int64      `json:"fetched"`           // of them: that were not held before
	Skipped    int        `json:"skipped,omitempty"` // layers that are had elsewhere, and there alone
	Absent     []string   `json:"absent,omitempty"`  // platforms that were wanted, and that it is not for
	Stale      string     `json:"stale,omitempty"`   // why the name was not confirmed
}

// WarmEntry is how an image of the list is.
type WarmEntry struct {
	Repository string     `json:"repository"`
	Reference  string     `json:"reference"`
	Status     string     `json:"status"` // pending, fetching, warm, deferred, evicted, stale, missing, waiting, failed
	Digest     oci.Digest `json:"digest,omitzero"`
	Bytes      int64      `json:"bytes"`
	Skipped    int        `json:"skipped,omitempty"` // layers that are had elsewhere, and there alone
	Absent     []string   `json:"absent,omitempty"`  // platforms that are wanted, and that it is not for
	Checked    time.Time  `json:"checked,omitzero"`
	Next       time.Time  `json:"next,omitzero"`
	Error      string     `json:"error,omitempty"`
	Progress   *Warming   `json:"progress,omitempty"`
}

// WarmList is what is told behind the entries.
type WarmList struct {
	Count int    `json:"count"`
	Error string `json:"error,omitempty"` // why the list, or some of its lines, cannot be read: the last one that could counts
	// Partial says that Error is about some of the lines: the others count.
	Partial bool `json:"partial,omitempty"`
}

// warmError is why the list, or some of it, cannot be read; empty if it can.
func warmError(list *warm.List) string {
	if err := list.Totals().Err; err != nil {
		return oci.Causes(err)
	}
	return ""
}

func newWarmEntry(e warm.Entry) WarmEntry {
	out := WarmEntry{
		Repository: e.Image.Repository.String(), Reference: e.Image.Reference, Status: string(e.Status),
		Digest: e.Digest, Bytes: e.Bytes, Skipped: e.Skipped, Absent: e.Absent, Checked: e.Checked, Next: e.Next,
	}
	if e.Err != nil {
		out.Error = oci.LastingWhy(e.Err) // it stands beside Next
	}
	if e.Status == warm.Fetching {
		p := newWarming(e.State)
		out.Progress = &p
	}
	return out
}

func (x *exchange) warmList() error {
	entries := x.api.cfg.Live.List.Entries()
	for _, e := range entries {
		if err := x.item(newWarmEntry(e)); err != nil {
			return err
		}
	}
	return x.result(WarmList{len(entries), warmError(x.api.cfg.Live.List), x.api.cfg.Live.List.Totals().Partial})
}

func (x *exchange) warm() error {
	var ask Warm
	if err := x.body(&ask); err != nil {
		return err
	}
	repo, err := x.upstreamTarget(Target{Repository: ask.Repository, Reference: ask.Reference})
	if err != nil {
		return err
	}
	live := x.api.cfg.Live
	want := live.Platforms
	if ask.Platforms != "" {
		if want, err = warm.ParsePlatforms(ask.Platforms); err != nil {
			return badRequest("platforms: %v", err)
		}
	}
	if ask.WaitSeconds < 0 || ask.WaitSeconds > int64(MaxWarmWait/time.Second) {
		return badRequest("waitSeconds: want a number from 0 to %d", int64(MaxWarmWait/time.Second))
	}
	select {
	case x.api.jobs <- struct{}{}:
		defer func() { <-x.api.jobs }()
	default:
		return &Error{"BUSY", fmt.Sprintf("%d images are being fetched for operators already", MaxWarmJobs)}
	}
	var res warm.Result
	err = x.telling(func(tell func(any)) error {
		var progress warm.Progress
		defer everyMoment(func() { tell(newWarming(progress.Now())) })()
		res, err = live.Puller.Pull(x.r.Context(), warm.Image{Repository: repo, Reference: ask.Reference}, want, time.Duration(ask.WaitSeconds)*time.Second, &progress)
		return err
	})
	if err != nil {
		return &Error{"UPSTREAM", oci.Why(err)}
	}
	return x.result(Warmed{repo.String(), ask.Reference, res.Digest, res.Manifests, res.Blobs, res.Bytes, res.Fetched, res.Skipped, res.Absent, res.Stale})
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

// warmCounts are the images of the list by how they are; none where that is
// nobody's state.
func warmCounts(list *warm.List) map[string]int {
	counts := map[string]int{}
	for status, n := range list.Totals().Images {
		if n > 0 {
			counts[string(status)] = n
		}
	}
	return counts
}
