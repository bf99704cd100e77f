package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/store"
	"entrepot/words"

	"github.com/rs/zerolog"
)

// The types of the settings. Each checks its own text, and its error reads on
// after the variable's name: what is wrong, and what would be right. String is
// the inverse of UnmarshalText, except where a secret is masked.

// Size is a number of bytes, written with a unit.
type Size int64

const sizeWant = "want a number with a unit, such as 64MiB, 200GiB (2^30 bytes) or 200GB (10^9 bytes)"

// sizeUnits are the accepted units in lower case, since nobody means bits. A
// bare K, M or G is refused: half of the world means 1000 by it.
var sizeUnits = map[string]int64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50,
}

func parseSize(s string) (Size, error) {
	number, unit := splitNumber(s)
	factor, ok := sizeUnits[strings.ToLower(unit)]
	n, isNumber := parseDecimal(number)
	if !ok || !isNumber {
		return 0, fmt.Errorf("%s is not a size: %s", words.Quote(s), sizeWant)
	}
	n.Mul(n, new(big.Rat).SetInt64(factor))
	whole := new(big.Int).Quo(n.Num(), n.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("%s is more than any disk holds: %s", words.Quote(s), sizeWant)
	}
	return Size(whole.Int64()), nil
}

// splitNumber cuts s after its leading digits and dots.
func splitNumber(s string) (number, rest string) {
	rest = strings.TrimLeft(s, "0123456789.")
	return s[:len(s)-len(rest)], rest
}

// parseDecimal reads digits with at most one dot between them, exactly. The
// bound keeps a long run of digits from costing time.
func parseDecimal(s string) (*big.Rat, bool) {
	if len(s) > 30 || strings.Trim(s, "0123456789.") != "" || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") {
		return nil, false
	}
	return new(big.Rat).SetString(s)
}

func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = parseSize(string(text))
	return err
}

// String is exact, in the unit that makes it shortest.
func (s Size) String() string {
	shortest := strconv.FormatInt(int64(s), 10)
	for _, unit := range []string{"KB", "MB", "GB", "TB", "PB", "KiB", "MiB", "GiB", "TiB", "PiB"} {
		factor := sizeUnits[strings.ToLower(unit)]
		if s == 0 || int64(s)%factor != 0 {
			continue
		}
		if text := strconv.FormatInt(int64(s)/factor, 10) + unit; len(text) <= len(shortest) {
			shortest = text
		}
	}
	return shortest
}

// Headroom is a part of a disk to leave free: bytes, or a share of the disk.
type Headroom struct {
	bytes Size
	ppm   int64 // parts per million of the disk
}

const headroomWant = "want a share of the disk such as 5%, or a size such as 20GiB"

func parseHeadroom(s string) (Headroom, error) {
	number, isShare := strings.CutSuffix(s, "%")
	if !isShare {
		size, err := parseSize(s)
		if err != nil {
			return Headroom{}, fmt.Errorf("%s is neither a share nor a size: %s", words.Quote(s), headroomWant)
		}
		return Headroom{bytes: size}, nil
	}
	ppm, err := parseShare(number)
	if err == nil && ppm >= 1e6 {
		err = errors.New("would leave no room for anything")
	}
	if err != nil {
		return Headroom{}, fmt.Errorf("%s %w: %s", words.Quote(s), err, headroomWant)
	}
	return Headroom{ppm: ppm}, nil
}

// parseShare reads per cent and returns parts per million, of which it is
// exactly some.
func parseShare(number string) (ppm int64, err error) {
	share, ok := parseDecimal(number)
	if !ok {
		return 0, errors.New("is not a share")
	}
	share.Mul(share, big.NewRat(1e4, 1))
	switch {
	case !share.IsInt():
		return 0, errors.New("has more than four digits after the point")
	case share.Cmp(big.NewRat(1e6, 1)) > 0:
		return 0, errors.New("is more than everything")
	}
	return share.Num().Int64(), nil
}

// Share is a part of a whole, more than nothing, in parts per million.
type Share int64

func (s *Share) UnmarshalText(text []byte) error {
	const want = "want a share such as 30%, at most 100%"
	number, ok := strings.CutSuffix(string(text), "%")
	ppm, err := parseShare(number)
	switch {
	case !ok || err == nil && ppm == 0:
		return fmt.Errorf("%s is not a share: %s", words.Quote(string(text)), want)
	case err != nil:
		return fmt.Errorf("%s %w: %s", words.Quote(string(text)), err, want)
	}
	*s = Share(ppm)
	return nil
}

func (s Share) String() string {
	if s == 0 {
		return ""
	}
	return words.Share(int64(s))
}

// Fraction is the share of 1; 0 for none.
func (s Share) Fraction() float64 { return float64(s) / 1e6 }

func (h *Headroom) UnmarshalText(text []byte) (err error) {
	*h, err = parseHeadroom(string(text))
	return err
}

// Of is the headroom in bytes on a disk of this many bytes.
func (h Headroom) Of(disk int64) int64 {
	return int64(h.bytes) + disk/1e6*h.ppm + disk%1e6*h.ppm/1e6
}

// store is the headroom as the store takes it.
func (h Headroom) store() store.Headroom {
	return store.Headroom{Bytes: int64(h.bytes), Fraction: float64(h.ppm) / 1e6}
}

func (h Headroom) String() string {
	if h.ppm == 0 {
		return h.bytes.String()
	}
	return words.Share(h.ppm)
}

// Portion is a part of a whole, from nothing to everything, in parts per million.
type Portion int64

func (p *Portion) UnmarshalText(text []byte) error {
	const want = "want a share such as 10%, from 0% to 100%"
	number, ok := strings.CutSuffix(string(text), "%")
	ok = ok || number == "0" // of whatever
	ppm, err := parseShare(number)
	switch {
	case !ok:
		return fmt.Errorf("%s is not a share: %s", words.Quote(string(text)), want)
	case err != nil:
		return fmt.Errorf("%s %w: %s", words.Quote(string(text)), err, want)
	}
	*p = Portion(ppm)
	return nil
}

func (p Portion) String() string { return words.Share(int64(p)) }

// Fraction is the portion of 1.
func (p Portion) Fraction() float64 { return float64(p) / 1e6 }

// Rate is how many of something per second.
type Rate struct {
	text  string // empty: not set
	value float64
}

// maxRate is more than any registry bears from one client.
const maxRate = 10_000

func (r *Rate) UnmarshalText(text []byte) error {
	n, ok := parseDecimal(string(text))
	if ok {
		r.value, _ = n.Float64()
	}
	if !ok || r.value > maxRate || r.value > 0 && r.value < 0.01 {
		return fmt.Errorf("%s is not a rate: want requests per second, from 0.01 to %d, or 0 for no bound", words.Quote(string(text)), maxRate)
	}
	r.text = string(text)
	return nil
}

func (r Rate) String() string { return r.text }

// perSecond is 0 if nothing is set, and below 0 for no bound.
func (r Rate) perSecond() float64 {
	if r.text != "" && r.value == 0 {
		return -1
	}
	return r.value
}

// Networks is a comma-separated list of networks, or of addresses.
type Networks []netip.Prefix

func (n *Networks) UnmarshalText(text []byte) (err error) {
	*n, err = parseList(string(text), func(item string) (netip.Prefix, error) {
		if address, err := netip.ParseAddr(item); err == nil && address.Zone() == "" {
			address = address.Unmap()
			return netip.PrefixFrom(address, address.BitLen()), nil
		}
		network, err := netip.ParsePrefix(item)
		if err != nil || network.Addr().Is4In6() {
			return network, fmt.Errorf("%s is not a network: want such as 10.0.0.0/8, fd00::/8 or 192.0.2.7", words.Quote(item))
		}
		if network != network.Masked() {
			return network, fmt.Errorf("%s has bits set behind its prefix: want %s", words.Quote(item), network.Masked())
		}
		return network, nil
	})
	return err
}

func (n Networks) String() string { return joinList(n) }

// Contains reports whether the address of a connection, host:port, lies in one
// of the networks.
func (n Networks) Contains(remote string) bool {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	address := at.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(n, func(p netip.Prefix) bool { return p.Contains(address) })
}

// ForeignHosts is a comma-separated list of hosts, each with an optional port,
// with *. before the domain for all its subdomains, and with http:// before that
// where there is no TLS.
type ForeignHosts []string

func (f *ForeignHosts) UnmarshalText(text []byte) (err error) {
	*f, err = parseList(string(text), func(item string) (string, error) {
		host := strings.ToLower(item)
		bare := strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
		domain, wild := strings.CutPrefix(bare, "*.")
		if _, err := oci.NewRepository(domain, "x"); err != nil || wild && !strings.Contains(domain, ".") {
			return "", fmt.Errorf("%s is not a host: want host or host:port, such as mcr.microsoft.com, or *.data.mcr.microsoft.com for all of a domain's, with http:// before it where there is no TLS", words.Quote(item))
		}
		return host, nil
	})
	return err
}

func (f ForeignHosts) String() string { return joinList(f) }

// Duration is a time span, zero or more.
type Duration time.Duration

func (d *Duration) UnmarshalText(text []byte) error {
	v, ok := words.ParseSpan(string(text))
	if !ok {
		return fmt.Errorf("%s is not a duration: want a number with a unit, such as 90s, 5m, 24h or 7d", words.Quote(string(text)))
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string { return words.Span(time.Duration(d)) }

// Count is how many of something, at least one.
type Count int

const maxCount = 64

func (c *Count) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil || v < 1 || v > maxCount {
		return fmt.Errorf("%s is not a number from 1 to %d", words.Quote(string(text)), maxCount)
	}
	*c = Count(v)
	return nil
}

// Bound is a most of something, 0 for none.
type Bound int

const maxBound = 1_000_000

func (b *Bound) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil || v > maxBound {
		return fmt.Errorf("%s is not a number from 1 to %d, or 0 for no bound", words.Quote(string(text)), maxBound)
	}
	*b = Bound(v)
	return nil
}

// Switch is on or off.
type Switch bool

func (b *Switch) UnmarshalText(text []byte) error {
	switch s := string(text); s {
	case "on", "off":
		*b = s == "on"
		return nil
	}
	v, err := strconv.ParseBool(string(text))
	if err != nil {
		return fmt.Errorf("%s is neither true nor false", words.Quote(string(text)))
	}
	*b = Switch(v)
	return nil
}

// Address is where to listen, "host:port"; without a host on every interface.
type Address string

func (a *Address) UnmarshalText(text []byte) error {
	host, port, err := net.SplitHostPort(string(text))
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || host != "" && !isHost(host) {
		return fmt.Errorf("%s is not an address to listen on: want [host]:port, such as :5000, 127.0.0.1:5000 or [::1]:5000", words.Quote(string(text)))
	}
	*a = Address(text)
	return nil
}

func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	_, err := oci.NewRepository(strings.ToLower(host), "x")
	return err == nil && !strings.ContainsAny(host, ":[]")
}

func (a Address) split() (host, port string) {
	host, port, _ = net.SplitHostPort(string(a))
	return host, port
}

// isEverywhere reports whether a takes connections on every interface.
func (a Address) isEverywhere() bool {
	host, _ := a.split()
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// isLoopback reports whether only this machine reaches a.
func (a Address) isLoopback() bool {
	host, _ := a.split()
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// overlaps reports whether a and b cannot both be listened on.
func (a Address) overlaps(b Address) bool {
	hostA, portA := a.split()
	hostB, portB := b.split()
	return a != "" && b != "" && portA == portB && portA != "0" &&
		(hostA == hostB || a.isEverywhere() || b.isEverywhere())
}

// Dir is a directory.
type Dir string

func (d *Dir) UnmarshalText(text []byte) error {
	if s := string(text); strings.TrimSpace(s) != s || strings.ContainsFunc(s, isControl) {
		return fmt.Errorf("%s is not a directory: it starts or ends with a space, or holds a control character", words.Quote(s))
	}
	*d = Dir(text)
	return nil
}

// UpstreamName is the name of an upstream, folded as clients' names are.
type UpstreamName string

func (u *UpstreamName) UnmarshalText(text []byte) error {
	name := oci.FoldHost(string(text))
	if _, err := oci.NewRepository(name, "x"); err != nil {
		return fmt.Errorf("%s is not a registry's name: want host or host:port, without https:// and without a path, such as ghcr.io", words.Quote(string(text)))
	}
	if !strings.ContainsAny(name, ".:") && name != "localhost" {
		return fmt.Errorf("%s has neither a dot nor a port, so clients could not tell it from a repository: want a name such as ghcr.io or %s:5000", words.Quote(string(text)), name)
	}
	*u = UpstreamName(name)
	return nil
}

// UpstreamNames is a comma-separated list of upstreams.
type UpstreamNames []UpstreamName

func (u *UpstreamNames) UnmarshalText(text []byte) (err error) {
	*u, err = parseList(string(text), func(item string) (name UpstreamName, err error) {
		return name, name.UnmarshalText([]byte(item))
	})
	return err
}

func (u UpstreamNames) String() string { return joinList(u) }

// HostNames is a comma-separated list of names that clients have for us, each
// with an optional port.
type HostNames []string

func (h *HostNames) UnmarshalText(text []byte) (err error) {
	*h, err = parseList(string(text), func(item string) (string, error) {
		if _, err := oci.NewRepository(strings.ToLower(item), "x"); err != nil {
			return "", fmt.Errorf("%s is not a host name: want host or host:port, such as cache.example:5000", words.Quote(item))
		}
		return strings.ToLower(item), nil
	})
	return err
}

func (h HostNames) String() string { return joinList(h) }

func parseList[T comparable](text string, parse func(string) (T, error)) ([]T, error) {
	var list []T
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			return nil, fmt.Errorf("%s has an empty item: want names with one comma between them", words.Quote(text))
		}
		v, err := parse(item)
		if err != nil {
			return nil, err
		}
		if slices.Contains(list, v) {
			return nil, fmt.Errorf("%s names %v twice", words.Quote(text), v)
		}
		list = append(list, v)
	}
	return list, nil
}

func joinList[T any](list []T) string {
	items := make([]string, len(list))
	for i, item := range list {
		items[i] = fmt.Sprint(item)
	}
	return strings.Join(items, ",")
}

// Username is a name for basic authentication, which ends it at a colon.
type Username string

func (u *Username) UnmarshalText(text []byte) error {
	if s := string(text); strings.TrimSpace(s) != s || strings.ContainsFunc(s, isControl) || strings.Contains(s, ":") {
		return fmt.Errorf("%s is not a user name: it holds a colon or a control character, or starts or ends with a space", words.Quote(s))
	}
	*u = Username(text)
	return nil
}

// BaseURL is where an upstream is, "https://host[:port][/path]" or http://. The
// API lies below its path.
type BaseURL string

func (b *BaseURL) UnmarshalText(text []byte) error {
	const want = "want https://host[:port], or http:// for a registry without TLS, and behind it the path that /v2/ is under, if any"
	u, err := url.Parse(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("this is not a URL: %s", want) // its text may hold a password
	case u.User != nil:
		return errors.New("a URL with a user name in it would be shown in logs: use _USERNAME and _PASSWORD beside it")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		return fmt.Errorf("%s is not a registry's URL: %s", words.Quote(string(text)), want)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("%s has a query or a fragment: %s", words.Quote(string(text)), want)
	case path.Clean("/"+u.Path) != "/"+strings.Trim(u.Path, "/") || u.RawPath != "":
		return fmt.Errorf("%s has a path with empty, dotted or escaped parts: %s", words.Quote(string(text)), want)
	case u.Path == "/v2" || strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/v2"):
		return fmt.Errorf("%s ends in /v2, which is added to it: %s", words.Quote(string(text)), want)
	}
	if _, err := oci.NewRepository(strings.ToLower(u.Host), "x"); err != nil {
		return fmt.Errorf("%s has no valid host: %s", words.Quote(string(text)), want)
	}
	*b = BaseURL(u.Scheme + "://" + strings.ToLower(u.Host) + strings.TrimRight(u.Path, "/"))
	return nil
}

// CollectorURL is where traces go.
type CollectorURL string

func (c *CollectorURL) UnmarshalText(text []byte) error {
	const want = "want http(s)://host[:port] of a collector's OTLP over HTTP, usually on port 4318"
	u, err := url.Parse(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("this is not a URL: %s", want) // its text may hold a password
	case u.User != nil:
		return fmt.Errorf("a URL with a user name in it would be shown in logs: %s", want)
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("%s is not where a collector can be: %s", words.Quote(string(text)), want)
	}
	*c = CollectorURL(strings.TrimRight(u.String(), "/"))
	return nil
}

// isClear reports whether b is spoken to without TLS.
func (b BaseURL) isClear() bool { return strings.HasPrefix(string(b), "http://") }

// ProxyURL is a forward proxy on the way to the upstreams. The library that
// uses it ignores what it cannot read, so it is checked here.
type ProxyURL string

func (p *ProxyURL) UnmarshalText(text []byte) error {
	u, err := parseProxyURL(string(text))
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return errors.New("this is not a proxy: want http://host:port, https://host:port or socks5://host:port") // its text may hold a password
	}
	*p = ProxyURL(text)
	return nil
}

func parseProxyURL(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	return url.Parse(s)
}

// String masks a password.
func (p ProxyURL) String() string {
	if p == "" {
		return ""
	}
	u, err := parseProxyURL(string(p))
	if err != nil {
		return mask
	}
	return u.Redacted()
}

// CAFile is a file of certificates in PEM form, read at start, and again when it
// changes.
type CAFile struct{ path string }

func (c *CAFile) UnmarshalText(text []byte) error {
	c.path = string(text)
	_, err := c.PEM()
	return err
}

func (c CAFile) String() string { return c.path }

// PEM is what the file has now; nil if no file is set.
func (c CAFile) PEM() ([]byte, error) {
	if c.path == "" {
		return nil, nil
	}
	pem, err := readSmallFile(c.path)
	if err != nil {
		return nil, err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate: want PEM, -----BEGIN CERTIFICATE-----", words.Quote(c.path))
	}
	return pem, nil
}

// File is a file that is read at start, and again when it changes.
type File string

func (f *File) UnmarshalText(text []byte) error {
	content, err := readSmallFile(string(text))
	if err != nil {
		return err
	}
	if len(content) == 0 {
		return fmt.Errorf("file %s is empty", words.Quote(string(text)))
	}
	*f = File(text)
	return nil
}

// EmailAddress is where somebody can be written to.
type EmailAddress string

func (e *EmailAddress) UnmarshalText(text []byte) error {
	if a, err := mail.ParseAddress(string(text)); err != nil || a.Address != string(text) {
		return fmt.Errorf("%s is not an address for mail: want name@host", words.Quote(string(text)))
	}
	*e = EmailAddress(text)
	return nil
}

// SecureURL is an https:// URL.
type SecureURL string

func (s *SecureURL) UnmarshalText(text []byte) error {
	u, err := url.Parse(string(text))
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("this is not an https:// URL without a user name in it")
	}
	*s = SecureURL(text)
	return nil
}

// ClientAuth is whether a client has to show a certificate.
type ClientAuth string

func (c *ClientAuth) UnmarshalText(text []byte) error {
	return unmarshalChoice(c, text, "optional", "required")
}

// LogLevel is the least important level that is logged.
type LogLevel string

func (l *LogLevel) UnmarshalText(text []byte) error {
	return unmarshalChoice(l, text, "debug", "info", "warn", "error")
}

func (l LogLevel) zerolog() zerolog.Level {
	level, _ := zerolog.ParseLevel(string(l))
	return level
}

// LogFormat is how the log is written.
type LogFormat string

func (f *LogFormat) UnmarshalText(text []byte) error {
	return unmarshalChoice(f, text, "auto", "console", "json")
}

func unmarshalChoice[T ~string](v *T, text []byte, choices ...string) error {
	if !slices.Contains(choices, string(text)) {
		last := len(choices) - 1
		if last == 1 {
			return fmt.Errorf("%s is neither %s nor %s", words.Quote(string(text)), choices[0], choices[1])
		}
		return fmt.Errorf("%s is none of %s or %s", words.Quote(string(text)), strings.Join(choices[:last], ", "), choices[last])
	}
	*v = T(text)
	return nil
}

// mask stands for a secret wherever one would be shown.
const mask = "********"

// Secret is a value that nothing prints: not %v or %#v, not JSON, not the log.
// It stands in a variable, or in a file that is read again when it changes.
// Copies share one state; the zero Secret is empty.
type Secret struct {
	state func() *secretState // nil: no secret. fmt follows a pointer in an unexported field; a function it cannot open
}

type secretState struct {
	path string // empty: the value came from the environment

	mu    sync.Mutex // guards all below; held across the read, which is local and small
	value string
	seen  os.FileInfo
}

// UnmarshalText takes the secret itself. Surrounding space stays: it may be
// part of a password, and a key of a cloud has lines.
func (s *Secret) UnmarshalText(text []byte) error { //nolint:unparam // encoding.TextUnmarshaler has an error
	*s = newSecret(&secretState{value: string(text)})
	return nil
}

// path is the file that the secret is in; empty: none.
func (s Secret) path() string {
	if s.state == nil {
		return ""
	}
	return s.state().path
}

func newSecret(st *secretState) Secret { return Secret{func() *secretState { return st }} }

// newSecretFile reads a secret from a file, of which one trailing newline is
// cut.
func newSecretFile(path string) (Secret, error) {
	s := newSecret(&secretState{path: path})
	_, err := s.Value()
	return s, err
}

// fromHere says of a file that is not there where it was looked for.
func fromHere(path string, err error) error {
	here, werr := os.Getwd()
	if werr != nil || filepath.IsAbs(path) || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w (in %s)", err, here)
}

// IsSet reports whether there is a secret.
func (s Secret) IsSet() bool { return s.state != nil }

// Value is the secret as it is now. A file that cannot be read any more, or
// became empty, gives the last value with an error: a rotation in progress must
// not log anybody out.
func (s Secret) Value() (string, error) {
	if s.state == nil {
		return "", nil
	}
	return s.state().read()
}

func (st *secretState) read() (string, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.path == "" {
		return st.value, nil
	}
	now, err := os.Stat(st.path)
	if err != nil {
		return st.value, fromHere(st.path, err)
	}
	if st.seen != nil && os.SameFile(now, st.seen) && now.ModTime().Equal(st.seen.ModTime()) && now.Size() == st.seen.Size() {
		return st.value, nil
	}
	content, err := readSmallFile(st.path)
	if err != nil {
		return st.value, err
	}
	value := cutNewline(string(content))
	if value == "" {
		return st.value, fmt.Errorf("file %s is empty", words.Quote(st.path))
	}
	st.value, st.seen = value, now
	return st.value, nil
}

func cutNewline(s string) string {
	if cut, ok := strings.CutSuffix(s, "\r\n"); ok {
		return cut
	}
	return strings.TrimSuffix(s, "\n")
}

func (s Secret) String() string {
	if s.state == nil {
		return ""
	}
	return mask
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText hides the secret from JSON.
func (s Secret) MarshalText() ([]byte, error) { //nolint:unparam // encoding.TextMarshaler has an error
	return []byte(s.String()), nil
}

// maxSmallFile is more than any secret or bundle of certificates needs.
const maxSmallFile = 1 << 20

func readSmallFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fromHere(path, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory: want a file", words.Quote(path))
	}
	content, err := io.ReadAll(io.LimitReader(f, maxSmallFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxSmallFile {
		return nil, fmt.Errorf("file %s is larger than %s", words.Quote(path), Size(maxSmallFile))
	}
	return content, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
