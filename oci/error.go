package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A Code says what went wrong in the words of the distribution spec (section
// "Error codes"), with a few of our own for upstream trouble. Each has one row
// in the table below, and nothing outside this file knows a status for one.
type Code int

// The codes. Those from BlobUnknown to TooManyRequests are the spec's.
const (
	Internal        Code = iota // our own fault: disk, bug
	BlobUnknown                 // upstream said there is no such blob
	ManifestUnknown             // upstream said there is no such manifest or tag
	NameUnknown                 // no such repository, or no such upstream
	NameInvalid                 // the repository name breaks the grammar
	DigestInvalid               // a digest breaks the grammar, or content does not match it
	ManifestInvalid             // a manifest is malformed
	Unauthorized                // the client must say who it is
	Denied                      // upstream, or a rule of ours, says no
	Unsupported                 // we do not do that
	TooManyRequests             // a rate limit, upstream's or ours
	RangeInvalid                // no byte of the asked range exists
	PageInvalid                 // n is not a number
	NotFound                    // no such route
	Unavailable                 // upstream cannot be asked now
	BadUpstream                 // upstream answered nonsense
	Timeout                     // upstream did not answer in time
	RangesRefused               // several ranges that we will not serve together
	numCodes
)

// ErrorRow is what the protocol says about a Code.
type ErrorRow struct {
	Wire      string // the code in the JSON body
	Status    int    // the HTTP status
	Message   string // the spec's text for humans
	Retryable bool   // trouble that may pass: what stale-if-error means
}

// errorTable is the only place that ties codes to HTTP. Wire codes that two
// rows share are told apart by status.
var errorTable = [numCodes]ErrorRow{
	Internal:        {"UNKNOWN", http.StatusInternalServerError, "internal error", true},
	BlobUnknown:     {"BLOB_UNKNOWN", http.StatusNotFound, "blob unknown to registry", false},
	ManifestUnknown: {"MANIFEST_UNKNOWN", http.StatusNotFound, "manifest unknown to registry", false},
	NameUnknown:     {"NAME_UNKNOWN", http.StatusNotFound, "repository name not known to registry", false},
	NameInvalid:     {"NAME_INVALID", http.StatusBadRequest, "invalid repository name", false},
	DigestInvalid:   {"DIGEST_INVALID", http.StatusBadRequest, "provided digest did not match uploaded content", false},
	ManifestInvalid: {"MANIFEST_INVALID", http.StatusBadRequest, "manifest invalid", false},
	Unauthorized:    {"UNAUTHORIZED", http.StatusUnauthorized, "authentication required", false},
	Denied:          {"DENIED", http.StatusForbidden, "requested access to the resource is denied", false},
	Unsupported:     {"UNSUPPORTED", http.StatusMethodNotAllowed, "the operation is unsupported", false},
	TooManyRequests: {"TOOMANYREQUESTS", http.StatusTooManyRequests, "too many requests", true},
	RangeInvalid:    {"RANGE_INVALID", http.StatusRequestedRangeNotSatisfiable, "requested range cannot be satisfied", false},
	PageInvalid:     {"PAGINATION_NUMBER_INVALID", http.StatusBadRequest, "invalid number of results requested", false},
	NotFound:        {"NOT_FOUND", http.StatusNotFound, "no such route", false},
	Unavailable:     {"UNAVAILABLE", http.StatusServiceUnavailable, "upstream registry unavailable", true},
	BadUpstream:     {"UNAVAILABLE", http.StatusBadGateway, "upstream registry answered nonsense", true},
	Timeout:         {"UNAVAILABLE", http.StatusGatewayTimeout, "upstream registry did not answer in time", true},
	RangesRefused:   {"RANGE_INVALID", http.StatusBadRequest, "too many ranges in one request", false},
}

// Row is what the protocol says about c.
func (c Code) Row() ErrorRow { return errorTable[c] }

// String is the wire form of c.
func (c Code) String() string { return errorTable[c].Wire }

// Error is a failure with its place in the protocol.
type Error struct {
	Code       Code
	Detail     string        // what a client may read: no credential, no signed URL
	When       string        // the end of Detail that says when to come again; empty if it does not
	RetryAfter time.Duration // how long to leave upstream alone; 0 if nobody said
	Err        error         // the cause, for our log alone
}

// Errorf makes an Error whose detail clients may read. A %w becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: err.Error(), Err: errors.Unwrap(err)}
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return strings.ToLower(e.Code.String())
	}
	return strings.ToLower(e.Code.String()) + ": " + e.Detail
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes Errors of one code equal, so that errors.Is(err, oci.ErrBlobUnknown)
// holds whichever side of the network made err.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Detail == "" && t.Err == nil
}

// About is err as it is told of a thing by its name: whoever reads it, in a list of
// many perhaps, knows what it is about. Its text may hold the name already.
func About(name string, err error) *Error {
	told := Error{Code: CodeOf(err), RetryAfter: RetryAfter(err), Err: err}
	if e, ok := errors.AsType[*Error](err); ok {
		told.Detail, told.When = e.Detail, e.When
	}
	switch {
	case told.Detail == "":
		told.Detail = told.Code.Row().Message
		fallthrough
	case !strings.Contains(told.Detail, name):
		told.Detail = name + ": " + told.Detail
	}
	return &told
}

// The sentinels that callers branch on.
var (
	ErrBlobUnknown     error = &Error{Code: BlobUnknown}
	ErrManifestUnknown error = &Error{Code: ManifestUnknown}
	ErrNameUnknown     error = &Error{Code: NameUnknown}
	ErrDenied          error = &Error{Code: Denied}
	ErrUnsupported     error = &Error{Code: Unsupported}
	ErrTooManyRequests error = &Error{Code: TooManyRequests}
	ErrRangeInvalid    error = &Error{Code: RangeInvalid}
	ErrUnavailable     error = &Error{Code: Unavailable}
)

// ErrRule is in the chain of a Denied that a rule of the operator's decided, and
// not an upstream: who may ask at all may read why.
var ErrRule = errors.New("a rule says so")

// ErrHidden is in the chain of a Denied by which an upstream says of a repository
// that it does not exist, or not for whom it knows us to be: many do not tell the
// one from the other. A login that is refused itself is no such word.
var ErrHidden = errors.New("missing, or hidden")

// ErrAstray is in the chain of an error by which we refuse to go where somebody has
// led us. Who asks again is led there again.
var ErrAstray = errors.New("it leads where nothing is fetched from")

// ErrSpoilt is in the chain of an error about a manifest that was given to us, which a
// registry may count as a pull, and that is of no use: its body stalled, was cut, or is
// not what was asked for.
var ErrSpoilt = errors.New("what came is of no use")

// ErrCrowded is in the chain of an error by which we turn away who has no turn, or no
// place, among all that ask: upstream was not asked, and has not said so.
var ErrCrowded = errors.New("too much is asked at once")

// ErrFilling is in the chain of an Unavailable that comes in the background of what is on
// its way for others: it can be had once that is here.
var ErrFilling = errors.New("it is on its way for others")

// ErrOffline is in the chain of an Unavailable by which we keep to what is held, as we
// are told to: that does not pass by waiting.
var ErrOffline = errors.New("its upstream is set to be offline")

// ErrReserved is in the chain of a TooManyRequests by which we keep the last of a
// quota for others: upstream would give it.
var ErrReserved = errors.New("kept for clients who ask for what is not held")

// CodeOf is the code in err's chain, or Internal.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// Reason is what clients may read of why err came about, without what was being done:
// for those who know that.
func Reason(err error) string {
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return err.Error()
	case e.Detail == "":
		return e.Code.Row().Message
	}
	return e.Detail
}

// Why is Reason with the causes that an Error keeps from clients: for operators who know
// what was being done.
func Why(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return withCauses(Reason(e), e)
	}
	return err.Error()
}

// LastingWhy is Why without the time after which to come again: for who tells that
// beside it, or later, or compares what stood in the way twice.
func LastingWhy(err error) string {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err.Error()
	}
	lasting := *e
	lasting.Detail, lasting.When = strings.TrimSuffix(e.Detail, e.When), ""
	return Why(&lasting)
}

// When is what err says of when to come again, as the end of its Detail; empty if it does
// not.
func When(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.When
	}
	return ""
}

// Causes is err's text with the causes that an Error keeps from clients, without what
// it quotes of them.
func Causes(err error) string { return withCauses(err.Error(), err) }

func withCauses(text string, err error) string {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Err == nil {
		return text
	}
	cause := Causes(e.Err)
	before, after := text, ""
	if inner, ok := errors.AsType[*Error](e.Err); ok && inner.Detail != "" && strings.Contains(text, inner.Detail) {
		_, cause, _ = strings.Cut(cause, inner.Error()+": ")
		before, after, _ = strings.Cut(text, inner.Detail) // what follows is about more than the cause
		before += inner.Detail
	}
	if cause == "" || strings.Contains(text, cause) {
		return text
	}
	return before + ": " + cause + after
}

// IsUnknown reports whether upstream said that the thing does not exist.
func IsUnknown(err error) bool { return unknowns[CodeOf(err)] }

var unknowns = map[Code]bool{BlobUnknown: true, ManifestUnknown: true, NameUnknown: true}

// IsRetryable reports whether err is trouble that may pass.
func IsRetryable(err error) bool { return CodeOf(err).Row().Retryable }

// RetryAfter is how long err asks to be left alone; 0 if it does not say.
func RetryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

type wireErrors struct {
	Errors []wireError `json:"errors"`
}

type wireError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// defaultRetryAfter goes out with a 429 or 503 for which nobody named a time.
const defaultRetryAfter = 5 * time.Second

// WriteError answers with err as OCI error JSON and returns the status. An err
// without an Error in its chain is answered as an internal error whose text
// stays with us.
func WriteError(w http.ResponseWriter, err error) int {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Code: Internal}
	}
	row := e.Code.Row()
	message := row.Message
	if e.Detail != "" {
		message = e.Detail
	}
	body, _ := json.Marshal(wireErrors{[]wireError{{Code: row.Wire, Message: message + comeAgain(e)}}})
	h := w.Header()
	for _, name := range []string{"Content-Range", "Docker-Content-Digest", "ETag", "Last-Modified"} {
		if name != "Content-Range" || row.Status != http.StatusRequestedRangeNotSatisfiable {
			h.Del(name)
		}
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	if row.Status == http.StatusTooManyRequests || row.Status == http.StatusServiceUnavailable {
		wait := e.RetryAfter
		if wait <= 0 {
			wait = defaultRetryAfter
		}
		h.Set("Retry-After", strconv.FormatInt(int64(inSeconds(wait)/time.Second), 10))
	}
	w.WriteHeader(row.Status)
	_, _ = w.Write(body)
	return row.Status
}

// comeAgain says when to ask again, which few clients show of the headers, unless the
// message does.
func comeAgain(e *Error) string {
	if e.Code != TooManyRequests || e.RetryAfter <= 0 || e.When != "" {
		return ""
	}
	return fmt.Sprintf("; come again in %v", inSeconds(e.RetryAfter))
}

// inSeconds rounds up, so that who comes then is not too early.
func inSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// ReadError turns a registry's answer that is not a success into an Error.
// body is the start of the answer's body, however malformed; unknown is the
// code that a 404 means for the thing that was asked for. now is for a
// Retry-After that is a date, where header has no Date. Upstream's 401 and 403 become Denied: its
// challenge is not the client's to answer.
func ReadError(status int, header http.Header, body []byte, unknown Code, now time.Time) *Error {
	var code Code
	switch {
	case status == http.StatusNotFound:
		if code = rowOf(wireCode(body), status); !unknowns[code] {
			code = unknown
		}
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		code = Denied
	case status == http.StatusTooManyRequests:
		code = TooManyRequests
	case status == http.StatusMethodNotAllowed, status == http.StatusNotImplemented:
		code = Unsupported
	case status == http.StatusRequestedRangeNotSatisfiable:
		code = RangeInvalid
	case status == http.StatusBadGateway:
		code = BadUpstream
	case status == http.StatusGatewayTimeout, status == http.StatusRequestTimeout:
		code = Timeout
	case status >= 500:
		code = Unavailable
	case status >= 400:
		code = rowOf(wireCode(body), status)
	default:
		code = BadUpstream
	}
	detail := wireMessage(body)
	if detail == "" {
		detail = code.Row().Message
	}
	return &Error{Code: code, Detail: detail, RetryAfter: parseRetryAfter(header, now)}
}

// rowOf is the code whose row has this wire form and status; a request that
// upstream refuses as malformed is otherwise nonsense on its side.
func rowOf(wire string, status int) Code {
	for c, row := range errorTable {
		if row.Wire == wire && row.Status == status {
			return Code(c)
		}
	}
	return BadUpstream
}

func wireCode(body []byte) string {
	if e := firstWireError(body); e != nil {
		return e.Code
	}
	return ""
}

func wireMessage(body []byte) string {
	e := firstWireError(body)
	if e == nil {
		return ""
	}
	return clip(printable(e.Message))
}

func firstWireError(body []byte) *wireError {
	var w wireErrors
	if json.Unmarshal(body, &w) != nil || len(w.Errors) == 0 {
		return nil
	}
	return &w.Errors[0]
}

// printable drops what could disturb a terminal or a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}

// MaxRetryAfter bounds how long an upstream can make us wait by a Retry-After.
// Docker Hub's quota, which names the longest known, is refilled after six hours.
const MaxRetryAfter = 24 * time.Hour

// parseRetryAfter reads both forms of RFC 9110, section 10.2.3; 0 if malformed.
// A date is by the clock of whoever sent it, which the answer's Date tells.
func parseRetryAfter(h http.Header, now time.Time) time.Duration {
	s := h.Get("Retry-After")
	if s == "" {
		return 0
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Duration(min(max(0, n), int64(MaxRetryAfter/time.Second))) * time.Second // bounded first: a product may overflow
	}
	if t, err := http.ParseTime(s); err == nil {
		if theirs, err := http.ParseTime(h.Get("Date")); err == nil {
			now = theirs
		}
		return min(max(0, t.Sub(now)), MaxRetryAfter)
	}
	return 0
}
