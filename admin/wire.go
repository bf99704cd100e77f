package admin

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
	"entrepot/store"
	"entrepot/words"
)

// What is said, as JSON. docs/admin-api.md is for those who ask it.

// answerLine is a line of JSON with one of its fields. An answer is lines: items of
// a list, or the progress of long work, and at the end a result or an error.
// Without such an end it was cut.
type answerLine[T any] struct {
	Item     T      `json:"item,omitzero"`
	Progress T      `json:"progress,omitzero"`
	Result   T      `json:"result,omitzero"`
	Error    *Error `json:"error,omitempty"`
}

// Error is why something was not done.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// About tells which server answers.
type About struct {
	Version string `json:"version"`
	Data    string `json:"data"` // the data directory, absolute
	PID     int    `json:"pid"`
}

// Count ends a list.
type Count struct {
	Count int `json:"count"`
}

// Repository is what is held of one.
type Repository struct {
	Repository string    `json:"repository"`
	Tags       int       `json:"tags"`
	Blobs      int       `json:"blobs"`
	Bytes      int64     `json:"bytes"`
	LastUse    time.Time `json:"lastUse,omitzero"`
	Pinned     bool      `json:"pinned"`
}

func newRepository(h store.Holding) Repository {
	return Repository{h.Repository.String(), h.Tags, h.Blobs, h.Bytes, h.LastUse, h.Pinned}
}

// Image is a tag, or a manifest that no tag leads to, and what is held of it.
type Image struct {
	Repository string     `json:"repository"`
	Tag        string     `json:"tag,omitempty"` // none for a manifest that no tag leads to
	Digest     oci.Digest `json:"digest"`
	MediaType  string     `json:"mediaType,omitempty"`
	Bytes      int64      `json:"bytes"` // held, of all that it leads to
	Checked    time.Time  `json:"checked,omitzero"`
	Changed    time.Time  `json:"changed,omitzero"`
	LastUse    time.Time  `json:"lastUse,omitzero"`
	Pinned     bool       `json:"pinned"`
	Platforms  []Platform `json:"platforms,omitempty"`
}

// Platform is an image of an index.
type Platform struct {
	Platform string     `json:"platform"` // os/architecture[/variant]
	Digest   oci.Digest `json:"digest"`
	Size     int64      `json:"size"`  // -1 while its manifest is not held
	Bytes    int64      `json:"bytes"` // held of them
}

func newImage(im store.Image) Image {
	out := Image{
		Repository: im.Repository.String(), Tag: im.Tag, Digest: im.Digest, MediaType: im.MediaType, Bytes: im.Held,
		Checked: im.Checked, Changed: im.Changed, LastUse: im.LastUse, Pinned: im.Pinned,
	}
	for _, p := range im.Platforms {
		out.Platforms = append(out.Platforms, Platform{p.Platform.String(), p.Digest, p.Size, p.Held})
	}
	return out
}

// Pin protects what it names from eviction.
type Pin struct {
	Repository string     `json:"repository"`
	Reference  string     `json:"reference"`
	Since      time.Time  `json:"since,omitzero"`
	Digest     oci.Digest `json:"digest,omitzero"`
	Bytes      int64      `json:"bytes"`
	Missing    int        `json:"missing"` // digests of it that are not held; -1: all, however many they are
}

func newPin(p store.Pin) Pin {
	out := Pin{p.Repository.String(), p.Reference, p.Since, p.Digest, p.Held, p.Missing}
	if p.Digest.IsZero() {
		out.Missing = -1
	}
	return out
}

// Target names what is to be pinned, unpinned or removed.
type Target struct {
	Repository string `json:"repository"`
	Reference  string `json:"reference,omitempty"` // a tag or a digest
	All        bool   `json:"all,omitempty"`       // the repository with all that it has
}

func (t Target) String() string {
	switch {
	case t.All:
		return t.Repository
	case strings.Contains(t.Reference, ":"):
		return t.Repository + "@" + t.Reference
	}
	return t.Repository + ":" + t.Reference
}

// Removal says what is to be forgotten.
type Removal struct {
	Target
	DryRun bool `json:"dryRun,omitempty"` // nothing is; the answer is what it would be
}

// Prune says what is to be removed.
type Prune struct {
	UnusedSeconds int64 `json:"unusedSeconds"`    // 0: only what no repository has
	DryRun        bool  `json:"dryRun,omitempty"` // nothing is removed; an item for each thing that would be
}

// Prunable is one thing that would be removed.
type Prunable struct {
	Digest  oci.Digest `json:"digest"`
	Kind    string     `json:"kind"` // blob, fill or record
	Bytes   int64      `json:"bytes"`
	LastUse time.Time  `json:"lastUse"`
	Why     string     `json:"why"`
}

// Pruned is what was removed, or would be.
type Pruned struct {
	Blobs   int   `json:"blobs"`
	Fills   int   `json:"fills"`
	Records int   `json:"records"`
	Bytes   int64 `json:"bytes"`

	Recent      int   `json:"recent,omitempty"` // blobs that no repository has and that stay: they came or were used within PruneAfter
	RecentBytes int64 `json:"recentBytes,omitempty"`
}

// PruneAfter is how long pruning leaves alone what came or was used, unless it is told
// of a shorter time.
const PruneAfter = store.PruneAfter

func newPruned(p store.Pruned) Pruned {
	return Pruned{p.Blobs, p.Fills, p.Records, p.Bytes, p.Recent, p.RecentBytes}
}

// Share is how much of some work is done, from 0 to 1.
type Share struct {
	Done float64 `json:"done"`
}

// Verified is what was read, and what came of it.
type Verified struct {
	Files      int64        `json:"files"`
	Bytes      int64        `json:"bytes"`
	Total      int64        `json:"total"`
	Damaged    int64        `json:"damaged"`
	Unreadable int64        `json:"unreadable"`
	Dropped    []oci.Digest `json:"dropped,omitempty"` // the first thousand of the damaged; the next request fetches each again
}

func newVerified(v store.Verified) Verified {
	return Verified{v.Files, v.Bytes, v.Total, v.Damaged, v.Unreadable, v.Dropped}
}

// Victim is what eviction would take, and why.
type Victim struct {
	Digest       oci.Digest `json:"digest"`
	Fill         bool       `json:"fill"` // not finished
	Bytes        int64      `json:"bytes"`
	LastUse      time.Time  `json:"lastUse"`
	Uses         int        `json:"uses"`
	Upstream     string     `json:"upstream,omitempty"`
	Repositories []string   `json:"repositories,omitempty"`
	Why          string     `json:"why"`
}

// Usage is what the data directory takes.
type Usage struct {
	Held      int64           `json:"held"`
	Budget    int64           `json:"budget"` // 0 for none
	Disk      int64           `json:"disk"`
	Free      int64           `json:"free"`
	Filling   int64           `json:"filling"`
	Records   int64           `json:"records"`
	Pinned    int64           `json:"pinned"`
	Upstreams []UpstreamUsage `json:"upstreams"`
}

// UpstreamUsage is what it takes for one upstream.
type UpstreamUsage struct {
	Upstream     string  `json:"upstream"` // empty for content that nobody is known to have filled
	Share        float64 `json:"share,omitempty"`
	Repositories int     `json:"repositories"`
	Tags         int     `json:"tags"`
	Blobs        int     `json:"blobs"`
	BlobBytes    int64   `json:"blobBytes"`
	Fills        int     `json:"fills"`
	FillBytes    int64   `json:"fillBytes"`
	Records      int64   `json:"records"`
}

func newUsage(u store.Usage) Usage {
	out := Usage{Held: u.Held, Budget: u.Budget, Disk: u.Disk, Free: u.Free, Filling: u.Filling, Records: u.Records, Pinned: u.Pinned, Upstreams: []UpstreamUsage{}}
	for _, one := range u.Upstreams {
		out.Upstreams = append(out.Upstreams, UpstreamUsage{
			one.Upstream, one.Share, one.Repositories, one.Tags, one.Blobs, one.BlobBytes, one.Fills, one.FillBytes, one.Records,
		})
	}
	return out
}

// Files counts those that were looked at so far.
type Files struct {
	Files int `json:"files"`
}

// parse checks a target that came from outside.
func (t Target) parse() (oci.Repository, error) {
	repo, err := oci.ParseRepository(t.Repository)
	if err != nil {
		return oci.Repository{}, badRequest("%s", oci.Reason(err))
	}
	if t.All != (t.Reference == "") {
		return oci.Repository{}, badRequest("want either a reference or all of %s", repo)
	}
	if _, err := oci.ParseDigest(t.Reference); !t.All && err != nil && !oci.ValidTag(t.Reference) {
		return oci.Repository{}, badRequest("%s is neither a tag nor a digest", words.Quote(t.Reference))
	}
	return repo, nil
}

func (api *API) hasUpstream(repo oci.Repository) bool {
	return slices.Contains(api.cfg.Upstreams, repo.Host)
}

// noUpstream says that a name leads nowhere, and perhaps where it was to lead.
func (api *API) noUpstream(host string) *Error {
	text := words.Printable(host) + " is not an upstream of this server, nor this cache's own address (ENTREPOT_OWN_NAMES)"
	if len(api.cfg.Upstreams) == 0 {
		return badRequest("%s; it has no upstream", text)
	}
	text += "; its upstreams are " + strings.Join(api.cfg.Upstreams, ", ")
	near := slices.MinFunc(api.cfg.Upstreams, func(a, b string) int { return words.Distance(host, a) - words.Distance(host, b) })
	if words.Distance(host, near) <= 2 && !oci.IsPublic(host) {
		text += "; did you mean " + near + "?"
	}
	return badRequest("%s", text)
}

func badRequest(format string, args ...any) *Error {
	return &Error{"BAD_REQUEST", fmt.Sprintf(format, args...)}
}
