package cache

import (
	"errors"
	"time"

	"entrepot/oci"
)

// Said is what came of a question to upstream.
type Said int

// The answers, from the best to the worst.
const (
	Confirmed Said = iota // what we hold is what upstream has
	Changed               // upstream has something else, or something where we hold nothing
	Gone                  // 404
	Hidden                // 401 to a login that is good: missing, or not for us, which many registries do not tell apart
	Refused               // 401, 403
	Limited               // 429
	Trouble               // 5xx, nonsense, refused, reset, out of time
	Slow                  // no answer yet; the question goes on
)

// saidBy sorts an error from upstream.
func saidBy(err error) Said {
	switch oci.CodeOf(err) {
	case oci.BlobUnknown, oci.ManifestUnknown, oci.NameUnknown:
		return Gone
	case oci.Denied, oci.Unauthorized:
		if errors.Is(err, oci.ErrHidden) {
			return Hidden
		}
		return Refused
	case oci.TooManyRequests:
		return Limited
	}
	return Trouble
}

// Ladder decides what a client gets after upstream was asked: what upstream
// says if it can say, what we hold if it cannot, and an honest error if there
// is neither. It is the only place that decides this, for tags and for lists.
// (Digests need no ladder: what is held is served unasked, and what is not can
// only be fetched.)
type Ladder struct {
	DropDeleted bool          // what upstream says is gone is not served any more
	Pause       time.Duration // how long a question that failed is not asked again where upstream does not say
	Remember    time.Duration // how long a 404 or 403 is repeated for what is not held
}

// Rung is where an answer stands.
type Rung struct {
	Serve Serve
	Mark  oci.CacheStatus // empty beside an error
	Again time.Duration   // how long not to ask again; 0 leaves it to the TTL
	Keep  bool            // upstream's answer goes on record
	Drop  bool            // what is held of a tag is forgotten
}

// Serve is what a client gets.
type Serve int

// The things to serve.
const (
	Theirs Serve = iota // what upstream said
	Ours                // what we hold
	Error               // upstream's error
)

// WhyDeleted is the Outcome's word where what is held is served although its
// upstream does not have it any more.
const WhyDeleted = "upstream has deleted it"

// WhyHidden is its word where upstream does not tell whether it has it.
const WhyHidden = "upstream has deleted it, or does not give it to us any more"

// mostPause bounds what a Retry-After can make us do.
const mostPause = time.Hour

// Climb finds the rung. held says that we hold an answer to the question, retry
// what upstream said of when to come back, 0 if it did not.
func (l Ladder) Climb(held bool, said Said, retry time.Duration) Rung {
	again := min(max(l.Pause, retry), mostPause)
	switch {
	case said == Confirmed:
		return Rung{Serve: Theirs, Mark: oci.Hit, Keep: true}
	case said == Changed:
		return Rung{Serve: Theirs, Mark: oci.Miss, Keep: true}
	case said == Slow && held:
		return Rung{Serve: Ours, Mark: oci.Stale}
	case (said == Gone || said == Hidden) && held && l.DropDeleted:
		return Rung{Serve: Error, Again: l.Remember, Drop: true}
	case held:
		return Rung{Serve: Ours, Mark: oci.Stale, Again: again}
	case said == Gone, said == Hidden, said == Refused:
		return Rung{Serve: Error, Again: l.Remember}
	}
	// Trouble passes: the next client's question may be luckier. A limit is
	// upstream's to remember, which knows whose it is and what is left of it.
	return Rung{Serve: Error}
}
