// Package oci is the vocabulary of the program: what a registry can be asked,
// in which words, and how each failure reads on the wire. It does no I/O.
//
// Start with Source: the remote registry, the cache and whatever guards them
// all answer it.
package oci

import (
	"context"
	"io"
	"slices"
	"time"
)

// Source is what can be asked of a registry. Every method may return an *Error
// with Denied, TooManyRequests, Unavailable, BadUpstream or Timeout beside the
// codes it names; any other error is Internal. A Source is safe for concurrent
// use. ctx bounds how long the caller waits, not how long the work goes on.
type Source interface {
	// Resolve tells what a reference names now: ManifestUnknown or NameUnknown
	// if nothing. A tag is the only name that may change; a digest, in its wire
	// form, asks whether repo has that manifest, and moves no content.
	Resolve(ctx context.Context, repo Repository, reference string, ask Ask) (Resolved, Outcome, error)
	// Manifest returns a manifest's exact bytes: ManifestUnknown or NameUnknown
	// if there is none, BadUpstream if they are not what the digest names.
	Manifest(ctx context.Context, repo Repository, d Digest, ask Ask) (Manifest, Outcome, error)
	// Blob returns a handle and moves no bytes: BlobUnknown or NameUnknown if
	// there is none, though a source that does not know yet says so only at
	// Stat or Open.
	Blob(ctx context.Context, repo Repository, d Digest, ask Ask) (Blob, error)
	// Tags lists tags in ASCII order, one page.
	Tags(ctx context.Context, repo Repository, page Page, ask Ask) (TagList, Outcome, error)
	// Referrers lists the manifests whose subject is d; none is an empty list.
	// An empty artifactType means all.
	Referrers(ctx context.Context, repo Repository, d Digest, artifactType string, ask Ask) (ReferrerList, Outcome, error)
}

// ForeignSource is a Source that can also fetch what a manifest places elsewhere,
// by the urls of a layer's descriptor: Denied where none of them may be asked.
type ForeignSource interface {
	Foreign(ctx context.Context, repo Repository, d Digest, urls []string, ask Ask) (Blob, error)
}

// Blob is a handle on a blob.
type Blob interface {
	// Descriptor is what is known without asking; Size is -1 while unknown, and
	// a hint while only a manifest named it.
	Descriptor() Descriptor
	// Stat makes sure that the blob exists and that its size is known.
	Stat(ctx context.Context) (Descriptor, Outcome, error)
	// Open reads length bytes from offset; a negative length means to the end.
	// It returns once the first byte, or the source's refusal, is there:
	// RangeInvalid if offset lies behind the end. The last byte of a read to the
	// end is given out only when the whole blob is proven.
	Open(ctx context.Context, offset, length int64) (Reader, error)
}

// Doubtful is a Blob that wants to know if all that it gave was not what its digest
// names, since another place may have the right bytes.
type Doubtful interface {
	Wrong()
}

// Reader reads a stretch of a blob. Read returns io.EOF only at the stretch's
// true end: a short or unproven blob ends in another error.
type Reader interface {
	io.ReadCloser
	// Offset is where the first byte lies. A source that cannot do ranges gives
	// the whole, and says so in the Outcome: the caller skips, and stops.
	Offset() int64
	// Size is the size of the whole blob; -1 while unknown.
	Size() int64
	Outcome() Outcome
}

// Catalog lists the repositories that are held, in path form and ASCII order.
type Catalog interface {
	Repositories(ctx context.Context, page Page) (names []string, more bool, err error)
}

// Ask says how a question is meant.
type Ask struct {
	Refresh    bool   // check with upstream now, however fresh what we hold
	Background bool   // nobody waits: give way to those who do
	Held       bool   // what is held can be served instead: leave the reserve of a quota alone
	Ranged     bool   // of a blob: a range is wanted, and who reads it may leave early, also one of everything
	Client     string // who asks, a user or else an address, for accounting

	Since time.Time // when the client asked: what is sent for it has one deadline; zero: now, each time
	Begun bool      // upstream has answered a part of it: the rest goes before new questions
}

// Outcome says where an answer came from.
type Outcome struct {
	Cache   CacheStatus
	Checked time.Time // when upstream last confirmed it; zero if it never had to
	Why     string    // in a few words, for the log and the Warning header
	When    string    // the end of Why that says when upstream is asked again; empty if it does not
	Spent   int       // requests to upstream that this question caused
	Whole   bool      // of a Reader: a stretch was asked for, and all of the blob comes
	From    string    // of a Reader from upstream: the host of the address that was asked
	Had     int64     // of a Reader of a fill: bytes of the blob that were here before that began
	Proves  bool      // of a Reader that is a Bypass: it is held once this has been read to its end
	Debt    *Debt     // of a Reader: what is owed of the blob; nil: nothing is known to be

	// Withheld, of a tag that was asked for with Held, is how long upstream's quota
	// has no pull for what it names that is not kept for others; 0: it has. Reserved
	// says that there are pulls, which are kept.
	Withheld time.Duration
	Reserved bool
}

// CacheStatus is the one-word form of an Outcome.
type CacheStatus string

// The ways an answer can come about.
const (
	Hit    CacheStatus = "hit"    // served from what we hold
	Miss   CacheStatus = "miss"   // fetched for this question
	Stale  CacheStatus = "stale"  // held, served although upstream could not confirm it
	Joined CacheStatus = "joined" // read along with a running fill
	Bypass CacheStatus = "bypass" // streamed through without being kept
)

// Descriptor says what content is, by which digest, how large.
type Descriptor struct {
	MediaType string
	Digest    Digest
	Size      int64 // bytes; -1 if unknown
}

// Resolved is what a tag names. Manifest is set where the source had to read it
// to find out, so that nobody fetches it a second time.
type Resolved struct {
	Descriptor
	Manifest *Manifest
}

// Page selects part of a list: at most N entries (all if negative) after Last.
type Page struct {
	N    int
	Last string
}

// Of takes the page out of a sorted list. A page of no entries has none after it
// (distribution spec, "Listing Tags").
func (p Page) Of(sorted []string) TagList {
	if p.Last != "" {
		i, found := slices.BinarySearch(sorted, p.Last)
		if found {
			i++
		}
		sorted = sorted[i:]
	}
	switch {
	case p.N < 0 || p.N >= len(sorted):
		return TagList{Tags: slices.Clip(sorted)}
	case p.N == 0:
		return TagList{Tags: []string{}}
	}
	return TagList{Tags: sorted[:p.N:p.N], More: true}
}

// TagList is one page of tags. More says that another page follows.
type TagList struct {
	Tags []string
	More bool
}

// ReferrerList holds the descriptors of a referrers index as they came, since
// their annotations are not ours to change.
type ReferrerList struct {
	Manifests []Referrer
}
