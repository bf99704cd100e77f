package store

import (
	"hash/fnv"
	"time"
)

// hint is what a blob's file time tells beside the second of its last use: who
// filled it, and how often it was used again after a pause. It rides in the
// nanoseconds, which nobody misses, so that it needs no table, survives crashes
// and goes where a copy of the file goes. It is advice: a file system that
// keeps no nanoseconds, or a plain copy, only makes us know less.
type hint struct {
	owner owner
	uses  uint8 // 1 when it came, one more for each touch, halved by each week without; 0 unknown
}

// owner stands for an upstream; 0 is nobody that we know.
type owner uint16

func ownerOf(upstream string) owner {
	if upstream == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(upstream))
	sum := h.Sum32()
	return max(1, owner(sum^sum>>16))
}

// fading is the time without use that halves what earlier uses count for.
const fading = 7 * 24 * time.Hour

// check keeps most times that somebody else set from being read as hints.
func (h hint) check() int64 { return 1 + (int64(h.owner)*7+int64(h.uses))%31 }

// stamp is t with h in it, at most a second earlier: a time in the future would
// be taken for a clock gone wrong.
func (h hint) stamp(t time.Time) time.Time {
	stamp := time.Unix(t.Unix(), h.check()<<24|int64(h.owner)<<8|int64(h.uses))
	if stamp.After(t) {
		stamp = stamp.Add(-time.Second)
	}
	return stamp
}

// proving is a time with h in it that marks a file of content that is right: it
// lies ahead of now, where nothing but we would put it.
func (h hint) proving(now time.Time) time.Time {
	h.uses = max(1, h.uses) // or it is no hint
	return h.stamp(now.Add(ahead))
}

// hintOf reads the hint in a file's time; the zero hint if there is none.
func hintOf(t time.Time) hint {
	n := int64(t.Nanosecond())
	h := hint{owner: owner(n >> 8), uses: uint8(n)}
	if n>>24 != h.check() || h.uses == 0 {
		return hint{}
	}
	return h
}

// again is the hint after another use, idle after the last; it counts if there
// was a pause. A last use in the future counts as now.
func (h hint) again(idle time.Duration) hint {
	if idle < touchEvery {
		return h
	}
	uses := h.uses >> min(8, max(0, idle/fading))
	h.uses = uses + 1
	if h.uses == 0 {
		h.uses = 255
	}
	return h
}
