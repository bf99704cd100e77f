package cache

import (
	"cmp"
	"errors"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// Kind is what a question is about.
type Kind int

// The kinds of questions.
const (
	TagKind       Kind = iota // what a tag names
	DigestKind                // content by digest: a manifest, or a blob
	HeadKind                  // whether a repository has such content, and how large it is
	TagsKind                  // a repository's tags
	ReferrersKind             // a subject's referrers
	numKinds
)

// Holding is what we have to answer with.
type Holding int

// The holdings, from the least to the most.
const (
	Nothing  Holding = iota
	Known            // of a digest: that the repository has it, and its size
	Unproven         // of a digest: bytes that are not known to be the repository's
	Whole            // an answer
	numHoldings
)

// Said is what came of a question to upstream.
type Said int

// The answers, beginning with those that are none yet, then from the best to the
// worst.
const (
	Unasked   Said = iota // nobody asked yet
	Offline               // nobody may ask
	Confirmed             // what we hold is what upstream has
	Changed               // upstream has something else
	Moved                 // likewise, and that is not here
	Unfetched             // it has moved, and what it names now cannot be had: no pull is left for it, or it is not given
	Gone                  // 404
	Hidden                // 401 to a login that is good: missing, or not for us, which many registries do not tell apart
	Refused               // 401, 403
	Limited               // 429
	NoAPI                 // upstream does not do that: it has no list of referrers, say
	Astray                // what is there is not what its digest names, or lies where nothing is fetched from
	Spoilt                // a manifest was given, perhaps at the price of a pull, and is of no use: it stalled, was cut, is wrong
	Trouble               // 5xx, refused, reset, a black hole, nonsense, another digest than it named
	Slow                  // no answer within the time that a client waits; the question goes on
	numSaid
)

// saidBy sorts an error from upstream.
func saidBy(err error) Said {
	if errors.Is(err, errUnfetched) {
		return Unfetched
	}
	return wordOf(err)
}

// wordOf is what upstream said in an error, whatever that was about.
func wordOf(err error) Said {
	if errors.Is(err, oci.ErrSpoilt) {
		return Spoilt
	}
	if isWrong(err) && !errors.Is(err, store.ErrAltered) || errors.Is(err, oci.ErrAstray) {
		return Astray
	}
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
	case oci.Unsupported:
		return NoAPI
	}
	return Trouble
}

// isFinal reports upstream's word about the thing itself, which is repeated for a
// moment to all who ask. Trouble passes: the next client's question may be luckier.
// A limit is upstream's to remember, which knows whose it is and what is left of it.
func (s Said) isFinal() bool { return s == Gone || s == Hidden || s == Refused }

// isOfLogin reports an answer that may be another to another credential.
func (s Said) isOfLogin() bool {
	return s == Hidden || s == Refused || s == Limited || s == Unfetched || s == NoAPI
}

// isDeletion reports an answer that policy may take for the end of what is held.
func (s Said) isDeletion() bool { return s == Gone || s == Hidden }

// isSilence reports that nothing was said, by upstream or for it.
func (s Said) isSilence() bool { return s == Trouble || s == Spoilt || s == Astray || s == NoAPI }

// Ladder decides what a client gets, and what becomes of it: what we hold where
// that will do, upstream's word where it has to be asked and can say, what we hold
// where it cannot, and an honest error if there is neither. It is the only place
// that decides this, for tags, digests and lists; the others find out the facts of
// a Case, and do what the Rung says.
type Ladder struct {
	DropDeleted bool          // what upstream says is gone is not served any more
	CheckWait   time.Duration // how long who asks for what is held waits for upstream
	Pause       time.Duration // how long a question that failed is not asked again where upstream does not say
	Remember    time.Duration // how long a 404 or 403 is repeated for what is not held; 0 or less: not at all
	Astray      time.Duration // likewise of where wrong bytes came from, or nothing is fetched from; 0 takes that for trouble
}

// Case is what an answer depends on.
type Case struct {
	Kind       Kind
	Held       Holding
	Age        time.Duration // of a tag that is held: since upstream confirmed it; below 0 if a clock was wrong
	TTL        time.Duration // of a tag: how long it is believed
	Forced     bool          // who asks wants upstream's word
	Background bool          // nobody waits
	Mute       bool          // upstream leaves others without an answer just now
	Doubted    bool          // of a tag: not all that it leads to now can be had, and what it named before is here
	Said       Said
	Remembered bool          // it said so a moment ago, and is not to be asked again yet
	Retry      time.Duration // what it said of when to come back; 0 if it did not
}

// isFresh reports a tag that is believed. A date in the future counts as none: the
// clock was wrong when it was written, or is now.
func (c Case) isFresh() bool {
	return c.Held == Whole && !c.Forced && (c.TTL == Never || c.Age >= 0 && c.Age < c.TTL)
}

// isForEver reports what no word of upstream's changes: policy is about names.
func (c Case) isForEver() bool {
	switch c.Kind {
	case DigestKind:
		return c.Held == Whole
	case HeadKind:
		return c.Held == Whole || c.Held == Known
	}
	return false
}

// Rung is where an answer stands.
type Rung struct {
	Serve  Serve
	Mark   oci.CacheStatus // empty where nothing is served yet, and beside an error
	Wait   time.Duration   // where upstream is asked: for how long the client waits; below 0 for as long as it takes
	Behind bool            // the question goes on behind the answer
	Record Change
	Again  time.Duration // how long not to ask again; 0 leaves it to the TTL
	Grows  bool          // for twice as long each time in a row, up to longestSpoilt
}

// Serve is what a client gets.
type Serve int

// The things to serve, and what to do where there is none yet.
const (
	Theirs   Serve = iota // what upstream said
	Ours                  // what we hold
	Error                 // upstream's error, or that it is offline
	Ask                   // upstream is to be asked
	Confirm               // likewise, by HEAD alone, since the bytes are here
	Fetch                 // what it tells of is to be had first, since what we hold is not given up for less
	Fallback              // the fallback tag is to be read instead
)

// Change is what becomes of the record of what is held.
type Change int

// The changes.
const (
	Leave Change = iota
	Put          // upstream's answer goes on record
	Drop         // it is forgotten
)

// WhyDeleted is the Outcome's word where what is held is served although its
// upstream does not have it any more.
const WhyDeleted = "upstream has deleted it"

// WhyHidden is its word where upstream does not tell whether it has it.
const WhyHidden = "upstream has deleted it, or does not give it to us any more"

const (
	// mostPause bounds what a Retry-After can make us do.
	mostPause = time.Hour
	// spoiltFor is how long a manifest that came to nothing is not asked for again at
	// first: each try may cost a pull.
	spoiltFor = 10 * time.Second
	// stalledFor is the longest for one that stalled or was cut.
	stalledFor = 5 * time.Minute
	// noAPIFor is how long a repository without a referrers API is not asked again
	// whether it has one. (Not the upstream: what it says of one repository, which
	// may not exist, must not change the answers about others.) Less where that was
	// said to nobody, who might not be told of one.
	noAPIFor = time.Hour
)

// Climb finds the rung.
func (l Ladder) Climb(c Case) Rung {
	switch {
	case c.Said == Unasked:
		return l.before(c)
	case c.Said == Offline:
		return l.offline(c)
	case c.Remembered:
		return l.meanwhile(c)
	}
	return l.after(c)
}

// before decides whether upstream has to be asked.
func (l Ladder) before(c Case) Rung {
	switch {
	case c.Kind == TagKind && c.isFresh() && c.Doubted:
		return Rung{Serve: Ours, Mark: oci.Stale}
	case c.Kind == TagKind && c.isFresh(), c.isForEver():
		return Rung{Serve: Ours, Mark: oci.Hit}
	}
	return l.ask(c)
}

func (l Ladder) ask(c Case) Rung {
	r := Rung{Serve: Ask, Wait: -1}
	switch {
	case c.Held == Unproven:
		r.Serve = Confirm
	case c.Held == Whole && !c.Forced && c.Mute:
		r.Wait = 0
	case c.Held == Whole && !c.Forced:
		r.Wait = l.CheckWait
	}
	return r
}

// offline decides where upstream is never asked. A list then is of what is held,
// and no more.
func (l Ladder) offline(c Case) Rung {
	switch {
	case c.Kind == ReferrersKind:
		return Rung{Serve: Fallback}
	case c.Kind == TagsKind && c.Held == Whole:
		return Rung{Serve: Ours, Mark: oci.Stale}
	case c.Held == Whole, c.isForEver():
		return Rung{Serve: Ours, Mark: oci.Hit}
	}
	return Rung{Serve: Error}
}

// meanwhile decides as long as upstream is not to be asked again.
func (l Ladder) meanwhile(c Case) Rung {
	if r := l.before(c); c.Forced || r.Serve == Ours {
		return r
	}
	r := l.after(c)
	if r.Serve == Error && !c.Said.isFinal() && !l.shuns(c.Said) {
		return l.ask(c) // it was not said to who asks now
	}
	r.Again, r.Grows, r.Record, r.Behind = 0, false, Leave, false
	return r
}

// shuns reports what is repeated, though it is not upstream's word about the thing.
func (l Ladder) shuns(s Said) bool { return s == Spoilt || s == Astray && l.Astray > 0 }

// after decides once upstream was asked.
func (l Ladder) after(c Case) Rung {
	switch c.Said {
	case Confirmed, Changed, Moved:
		return answered(c)
	}
	if c.isForEver() {
		return Rung{Serve: Ours, Mark: oci.Hit}
	}
	if c.Held == Whole && !(l.DropDeleted && c.Said.isDeletion()) {
		return l.instead(c)
	}
	r := Rung{Serve: Error}
	switch {
	case c.Said == NoAPI && c.Kind == ReferrersKind:
		return fallback(c)
	case c.Said.isFinal():
		r.Again = max(0, l.Remember)
	case c.Said == Spoilt:
		r.Again, r.Grows = spoiltFor, true
	case l.shuns(c.Said):
		r.Again = l.Astray
	}
	if c.Held == Whole && (c.Kind == TagKind || c.Kind == ReferrersKind) {
		r.Record = Drop
	}
	return r
}

// fallback is for a referrers API that there is not.
func fallback(c Case) Rung {
	return Rung{Serve: Fallback, Again: min(cmp.Or(c.Retry, noAPIFor), noAPIFor)}
}

// answered is for what upstream has.
func answered(c Case) Rung {
	switch {
	case c.Said == Moved && c.Held == Whole:
		return Rung{Serve: Fetch}
	case c.Said == Confirmed && c.Doubted && !c.Forced:
		return Rung{Serve: Ours, Mark: oci.Stale, Record: Put}
	case c.Said != Confirmed:
		return Rung{Serve: Theirs, Mark: oci.Miss, Record: Put}
	case c.Held == Unproven:
		return Rung{Serve: Ours, Mark: oci.Hit, Record: Put}
	}
	return Rung{Serve: Theirs, Mark: oci.Hit, Record: Put}
}

// instead serves what is held in place of what upstream does not say. That a
// question in the background had to give way is no reason for those who wait
// themselves not to ask.
func (l Ladder) instead(c Case) Rung {
	r := Rung{Serve: Ours, Mark: oci.Stale, Again: min(max(l.Pause, c.Retry), mostPause)}
	switch {
	case c.Said == NoAPI && c.Kind == ReferrersKind:
		return fallback(c)
	case c.Said == Slow:
		r.Again, r.Behind = 0, true
	case c.Background && (c.Said == Limited || c.Said == Unfetched):
		r.Again = 0
	}
	return r
}
