package ocitest

import "time"

// Auth is how the registry wants to know who asks.
type Auth string

// The ways. Docker Hub's is the zero value.
const (
	TokenAuth Auth = ""      // a bearer token from the token service
	BasicAuth Auth = "basic" // name and password with every request
	NoAuth    Auth = "none"
)

// Habits are the ways of a registry. The zero value is Docker Hub's way, as
// far as it is known; each field is a way that some registry has.
type Habits struct {
	Auth Auth

	// Tokens.
	TokenField     string        // "token" or "access_token"; empty: both
	NoExpiresIn    bool          // as GHCR; the token then lives 60 s
	TokenLife      time.Duration // 0: 300 s, as Docker Hub
	TokenUses      int           // a token is refused after so many requests; 0: never
	FirstScopeOnly bool          // of several scope parameters only the first is read
	DenyToken      int           // status with which the token service refuses a private or missing repository; 0: it gives a token without rights
	Realm          string        // the challenge's realm, if it is not the token service
	NameUnknown    bool          // 404 for a repository that does not exist, also with tokens (Docker Hub: 401)
	HidePrivate    bool          // with tokens, 404 for a private repository to whom it is not for

	// Redirects and signed URLs. A URL is signed for one method.
	InlineBlobs       bool          // no redirect
	RedirectManifests bool          // as registry.k8s.io
	RedirectTo        string        // where redirects lead, if not to the CDN: scheme and host
	URLLife           time.Duration // 0: 20 min
	URLUses           int           // a URL is refused after so many requests; 0: never

	// Quota.
	PullLimit  int           // manifest GETs per window and account; 0: no limit and no headers
	PullWindow time.Duration // as the headers name it; 0: 6 h
	Uncounted  string        // a repository whose manifests cost nothing and come without the headers

	// Headers and methods.
	OmitDigest   bool   // no Docker-Content-Digest
	RefuseHead   int    // status for HEAD of a manifest or blob: 405, 501
	Chunked      bool   // no Content-Length, on HEAD neither
	IgnoreRange  bool   // 200 to a Range
	Compress     bool   // gzip for who accepts it
	StrictAccept bool   // 404 for a manifest whose type is not accepted
	ManifestType string // Content-Type of every manifest, wrong or not
	BlobType     string // likewise; empty: application/octet-stream

	// Lists.
	Referrers    bool // has the referrers API
	TagPage      int  // most tags in a page; 0: as many as asked for
	IgnorePaging bool // every tag, whatever n and last say

	// The line, for benchmarks.
	Rate    int64         // bytes per second of each connection; 0: no bound
	Latency time.Duration // before each answer
}
