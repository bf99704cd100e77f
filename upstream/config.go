package upstream

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"time"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// Config describes one upstream.
type Config struct {
	Name         string                                // canonical: "docker.io", "registry.example:5000"
	URL          string                                // http(s)://host[:port][/path]; empty: the well-known endpoint of Name
	Credentials  Credentials                           // nil: anonymous
	Accounts     []string                              // the names that it, or a mirror, is signed in to with: of others Set.Load believes nothing
	CA           func() ([]byte, error)                // PEM, trusted beside the system's roots; read by New and ReloadCAs; nil, or no bytes: none
	AllowPrivate bool                                  // token realms and redirects may lead to private addresses
	Proxy        func(*http.Request) (*url.URL, error) // nil: none; as http.Transport.Proxy
	Limits       ratelimit.Limits                      // zero fields: what suits Name
	Mirrors      []Mirror                              // other addresses
	ForeignHosts []string                              // where foreign layers may come from: host[:port] or *.domain[:port], with http:// before it in clear
	UserAgent    string                                // "entrepot" if empty
	Dial         DialFunc                              // nil: the system's, with a look at each address
	MaxManifest  int64                                 // bytes; 0: oci.MaxManifest
	Timeouts     Timeouts

	// Observe is told of each HTTP request that was sent, when its answer's
	// headers are there or it has failed. Warn is told what an operator should
	// know, each kind at most once a minute. Received is told of the bytes of
	// manifests and blobs that a Call brought, some at a time. All must return
	// quickly and may be called concurrently; nil: nobody listens.
	Observe  func(Call)
	Received func(Call, int64)
	Warn     func(Warning)
}

// Mirror is another address of an upstream, trusted to tell its tags. It is
// asked where those before it are in trouble, and where they do not have
// something, the primary excepted: that there is none is only its to say.
type Mirror struct {
	URL          string
	Credentials  Credentials            // nil: anonymous
	CA           func() ([]byte, error) // as in Config
	AllowPrivate bool                   // as in Config
	First        bool                   // it is asked before the primary
}

// DialFunc makes a connection. One that is given in place of the system's is
// still held to Timeouts.Dial, and to the addresses that an upstream may lead
// to as far as the names and its connections tell them.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Timeouts bound every wait on an upstream. A zero field takes its default.
type Timeouts struct {
	Dial           time.Duration // name look-up and connection; 5 s
	TLS            time.Duration // handshake; 5 s
	ResponseHeader time.Duration // from the request sent to the answer's headers; 10 s
	Token          time.Duration // a new token, from the look-up of credentials to its last byte; 15 s
	FirstByte      time.Duration // from an answer's headers to the first byte of its body; 10 s
	Stall          time.Duration // between two bytes of a body; 20 s; of a token half of Token at most, as FirstByte; a quarter of it where another address may go on with a blob
	Body           time.Duration // from an answer's headers to its last byte, of what is no blob; 30 s

	// Answer is the time that a client has for the headers of an answer; 15 s. Of
	// less than that the other defaults, but Stall and Body, take their share.
	Answer time.Duration
	// Next is how long one of several addresses may say nothing until the next is
	// asked, too, or less if all could not be asked within half of Answer; thrice
	// that for what may cost a pull, and for blobs; 1 s.
	Next time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	const usual = 15 * time.Second
	if t.Answer <= 0 {
		t.Answer = usual
	}
	share := func(d time.Duration) time.Duration {
		return min(d, time.Duration(float64(d)*float64(t.Answer)/float64(usual)))
	}
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Dial, share(5 * time.Second)},
		{&t.TLS, share(5 * time.Second)},
		{&t.ResponseHeader, share(10 * time.Second)},
		{&t.Token, share(usual)},
		{&t.FirstByte, share(10 * time.Second)},
		{&t.Stall, 20 * time.Second},
		{&t.Body, 30 * time.Second},
		{&t.Next, share(time.Second)},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}

// headers bounds one exchange as a whole, up to the answer's headers.
func (t Timeouts) headers() time.Duration { return t.Dial + t.TLS + t.ResponseHeader }

// of are those for the body of a kind: that a token stalls is to be noted before the time
// for all of it is up, unless its headers took most of that.
func (t Timeouts) of(k Kind) Timeouts {
	if k == TokenKind {
		t.FirstByte, t.Stall = min(t.FirstByte, t.Token/2), min(t.Stall, t.Token/2)
	}
	return t
}

// Kind is what a request is for.
type Kind string

// The kinds. A request to the target of a redirect has the kind of the one that
// was redirected, and another host.
const (
	ManifestKind  Kind = "manifest"
	BlobKind      Kind = "blob"
	TagsKind      Kind = "tags"
	ReferrersKind Kind = "referrers"
	TokenKind     Kind = "token"
	ProbeKind     Kind = "probe" // whether a host that did not answer does so again
)

// Call is one HTTP request that was sent.
type Call struct {
	Upstream   string
	Host       string // that it went to, with port
	Repository string // path
	Account    string // whose credentials went with it, or led to it; empty: nobody's
	Client     string // for whom it was sent; empty: for nobody in particular
	Kind       Kind
	Method     string
	Redirected bool          // it went where the answer to another one led
	Status     int           // 0 if no answer came
	Duration   time.Duration // to the answer's headers
	Err        error         // why no answer came
}

// Trouble is a kind of Warning.
type Trouble string

// The troubles.
const (
	CredentialsRefused  Trouble = "credentials refused"  // upstream says no to them: it is asked anonymously
	CredentialsMissing  Trouble = "credentials missing"  // they could not be looked up: the last ones are used, or none
	CredentialsWithheld Trouble = "credentials withheld" // the token service is a stranger: likewise
	AddressRefused      Trouble = "address refused"      // a realm or redirect leads where it may not
	HostDown            Trouble = "host down"            // it is not asked, but for probes, until it answers
	HostUp              Trouble = "host up"              // it is well again
	HostSlow            Trouble = "host slow"            // others are asked before it for a while
	WrongBytes          Trouble = "wrong bytes"          // likewise: it gave what a digest does not name
	HostLimits          Trouble = "host limits us"       // it asked to be left alone for a while
)

// Warning is something that an operator should know. It holds no secret.
type Warning struct {
	Upstream string
	Trouble  Trouble
	Host     string // that it concerns
	Account  string // likewise; empty: none in particular
	Detail   string

	Anonymous bool // HostLimits: it limits whoever asks without a login
}

// defaultUserAgent is sent where the configuration names none.
const defaultUserAgent = "entrepot"

func (cfg *Config) setDefaults() {
	cfg.Timeouts = cfg.Timeouts.withDefaults()
	if cfg.UserAgent == "" {
		cfg.UserAgent = defaultUserAgent
	}
	if cfg.MaxManifest <= 0 {
		cfg.MaxManifest = oci.MaxManifest
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Call) {}
	}
	if cfg.Received == nil {
		cfg.Received = func(Call, int64) {}
	}
	if cfg.Warn == nil {
		cfg.Warn = func(Warning) {}
	}
}
