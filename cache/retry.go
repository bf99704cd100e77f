package cache

import (
	"errors"
	"io"
	"time"

	"entrepot/oci"
)

// retries decides whether a transfer that failed goes on at the byte it has
// reached, for one that is kept and for one that is not. The zero value is one
// that has not failed yet.
type retries struct {
	failures int       // in a row, without progress
	last     time.Time // when the last of them was
}

// judge returns how long to pause before the next try, or err where it is
// hopeless. began is when the try began that failed: those that ran at one moment fail
// as one, since what happens to an upstream happens to all of them. progress says that
// bytes came since the last failure, begun that the client's answer has.
func (r *retries) judge(err error, began time.Time, progress, begun bool) (time.Duration, error) {
	switch {
	case isWrong(err), errors.Is(err, errCannotKeep), !oci.IsRetryable(err) || oci.CodeOf(err) == oci.Internal && !isBroken(err):
		return 0, err
	case errors.Is(err, oci.ErrAstray) && !begun: // it would be led there again
		return 0, err
	case oci.CodeOf(err) == oci.TooManyRequests && (!begun || oci.RetryAfter(err) > longestPause):
		return 0, err
	}
	if progress {
		r.failures = 0
	}
	if r.failures == 0 || began.After(r.last) {
		r.failures, r.last = r.failures+1, time.Now()
	}
	if r.failures >= patience || !begun && (r.failures >= patienceFirst || oci.RetryAfter(err) > longestFirst) {
		return 0, err
	}
	return max(min(retryFirst<<(r.failures-1), retryMost), oci.RetryAfter(err)), nil
}

// isBroken reports a transfer that ended before its time.
func isBroken(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}
