package proxy

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"entrepot/oci"
)

// A query holds the parameters that a route of ours knows.
type query struct {
	ns           string // the registry that the client means (containerd's mirrors)
	n            string
	last         string
	artifactType string
	hasN         bool
}

// parseQuery reads the first value of each parameter that is not empty. A malformed query is
// refused: ignoring a broken ns would answer from another registry.
func parseQuery(raw string) (q query, err error) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		key, value, _ := strings.Cut(pair, "=")
		key, kerr := unescape(key)
		value, verr := unescape(value)
		if kerr != nil || verr != nil {
			return query{}, oci.Errorf(oci.NameInvalid, "the query is malformed: %q", clip(pair, 100))
		}
		switch {
		case key == "ns" && q.ns == "":
			q.ns = value
		case key == "n" && !q.hasN:
			q.n, q.hasN = value, true
		case key == "last" && q.last == "":
			q.last = value
		case key == "artifactType" && q.artifactType == "":
			q.artifactType = value
		}
	}
	return q, nil
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}

// set gives a header one value without a slice of its own. name must be in
// canonical form.
func (x *exchange) set(name, value string) {
	if x.values == nil {
		x.values = make([]string, 0, usualValues)
	}
	x.values = append(x.values, value) // where it grows, headers keep what they have
	n := len(x.values)
	x.Header()[name] = x.values[n-1 : n : n]
}

// usualValues are those of an answer that is not about content.
const usualValues = 2

func (x *exchange) setInt(name string, n int64) { x.set(name, strconv.FormatInt(n, 10)) }

// describe sets what every answer about content tells (design section 9). A
// size below zero is one that nobody knows.
func (x *exchange) describe(desc oci.Descriptor) error {
	told, err := x.at.describing(desc)
	if err != nil {
		return err
	}
	h := x.Header()
	h["Content-Type"], h["Docker-Content-Digest"], h["Etag"] = told.mediaType, told.digest, told.entityTag
	if told.length != nil {
		h["Content-Length"] = told.length
	}
	x.tellOutcome()
	return nil
}

// describe makes the header values for desc.
func describe(desc oci.Descriptor) (*description, error) {
	mediaType, err := contentType(desc.MediaType)
	if err != nil {
		return nil, err
	}
	d := &description{Descriptor: desc, mediaType: mediaType}
	digest := desc.Digest.String()
	values := [3]string{digest, `"` + digest + `"`}
	d.digest, d.entityTag = values[0:1:1], values[1:2:2]
	if desc.Size >= 0 {
		values[2] = strconv.FormatInt(desc.Size, 10)
		d.length = values[2:3:3]
	}
	return d, nil
}

var hitValue = []string{string(oci.Hit)}

var cacheValues = map[oci.CacheStatus][]string{
	oci.Miss:   {string(oci.Miss)},
	oci.Stale:  {string(oci.Stale)},
	oci.Joined: {string(oci.Joined)},
	oci.Bypass: {string(oci.Bypass)},
}

// markHeader says in one word where the content of an answer came from.
const markHeader = "X-Entrepot-Cache"

// tellOutcome says where the answer came from, as far as that is known.
func (x *exchange) tellOutcome() {
	h := x.Header()
	if x.outcome.Cache == oci.Hit {
		h[markHeader] = hitValue
		return
	}
	value, known := cacheValues[x.outcome.Cache]
	if !known {
		return
	}
	h[markHeader] = value
	if x.outcome.Cache == oci.Stale {
		h["Warning"] = []string{warning(x.outcome.Why)}
	}
}

// warning is a Warning header (RFC 7234, section 5.5, kept by the distribution
// spec) that says why an answer is stale. why may quote a stranger: it is cut
// to 200 bytes of printable ASCII.
func warning(why string) string {
	if why == "" {
		why = "served from the cache: upstream could not confirm it"
	}
	b := []byte(`299 - "`)
	for i := 0; i < len(why) && i < 200; i++ {
		switch c := why[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c > '~':
			b = append(b, '?')
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}

// mediaTypes are the header values of the content that there is.
var mediaTypes = headerValues(append([]string{octetStream}, oci.ManifestAccept...)) //nolint:gochecknoglobals // a table

func headerValues(types []string) map[string][]string {
	values := make(map[string][]string, len(types))
	for _, t := range types {
		if t != "*/*" {
			values[t] = []string{t}
		}
	}
	return values
}

// contentType is the header value for a manifest's media type. It may come from
// a manifest's body: what is no bare application/... type is refused, since a
// browser would take "text/html" as a page of ours.
func contentType(mediaType string) ([]string, error) {
	if value, known := mediaTypes[mediaType]; known {
		return value, nil
	}
	subtype, ok := strings.CutPrefix(mediaType, "application/")
	ok = ok && subtype != "" && len(subtype) <= 200
	for i := range len(subtype) {
		c := subtype[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$&-^_.+", c) >= 0)
	}
	if !ok {
		return nil, oci.Errorf(oci.BadUpstream, "the manifest has a media type that is none: %q", clip(mediaType, 100))
	}
	return []string{mediaType}, nil
}

// refreshes reports whether the client asks for a check with upstream.
func refreshes(h http.Header) bool {
	for _, line := range h["Cache-Control"] {
		for directive := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(directive), "no-cache") {
				return true
			}
		}
	}
	return false
}

// holds reports whether the client's If-None-Match says that it has d already.
func (x *exchange) holds(d oci.Digest) bool {
	for _, line := range x.r.Header["If-None-Match"] {
		for tag := range strings.SplitSeq(line, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || isTagOf(tag, d) {
				return true
			}
		}
	}
	return false
}

// isTagOf compares an entity tag in its strong form.
func isTagOf(tag string, d oci.Digest) bool {
	s := d.String()
	return len(tag) == len(s)+2 && tag[0] == '"' && tag[len(tag)-1] == '"' && tag[1:len(tag)-1] == s
}

// notModified answers 304.
func (x *exchange) notModified(d oci.Digest) error {
	x.set("Docker-Content-Digest", d.String())
	x.set("Etag", `"`+d.String()+`"`)
	x.tellOutcome()
	x.WriteHeader(http.StatusNotModified)
	return nil
}
