package proxy

import (
	"hash/maphash"
	"net/http"
	"strings"
	"sync/atomic"

	"entrepot/oci"
)

// A meaning is what the words of a request for content mean. That depends on
// them and on the configuration alone, and a fleet asks for the same content all
// day, so it is worked out once.
type meaning struct {
	path, rawQuery, host string // the words

	req   oci.Request
	query query
	repo  oci.Repository
	scope []string // the value of OCI-Namespace; nil where ns did not decide

	told atomic.Pointer[description] // by the answer before
}

// description holds the header values of answers about content. They belong to
// all those answers: nobody may change them.
type description struct {
	oci.Descriptor
	mediaType, digest, entityTag, length []string // length is nil where nobody knows it
}

// meanings are those asked for lately, each in the one place that its words
// lead to, where it takes that of another. No lock is needed, and none is kept
// that takes more than maxWords bytes: a stranger can make us forget, which
// costs a microsecond a request, and nothing else.
type meanings struct {
	seed   maphash.Seed
	places [meaningPlaces]atomic.Pointer[meaning]
}

const (
	meaningPlaces = 1024
	maxWords      = 1 << 10
)

func (m *meanings) place(path, rawQuery string) *atomic.Pointer[meaning] {
	h := maphash.String(m.seed, path)
	if rawQuery != "" {
		h = h*31 + maphash.String(m.seed, rawQuery)
	}
	return &m.places[h%meaningPlaces]
}

// find is the meaning of a request, or nil if it is not known.
func (m *meanings) find(r *http.Request) *meaning {
	at := m.place(r.URL.Path, r.URL.RawQuery).Load()
	if at == nil || at.path != r.URL.Path || at.rawQuery != r.URL.RawQuery || at.host != r.Host {
		return nil
	}
	return at
}

// keep has a meaning known from now on, unless it is too long.
func (m *meanings) keep(at *meaning) {
	if len(at.path)+len(at.rawQuery)+len(at.host) <= maxWords {
		m.place(at.path, at.rawQuery).Store(at)
	}
}

// newMeaning makes out what words mean that led to req. It copies them, since a
// part of a request's text would keep all of that.
func newMeaning(names *oci.Names, r *http.Request) (*meaning, error) {
	at := &meaning{path: strings.Clone(r.URL.Path), rawQuery: strings.Clone(r.URL.RawQuery), host: strings.Clone(r.Host)}
	var err error
	if at.req, err = oci.ParseRequest(at.path); err != nil {
		return nil, err
	}
	if at.query, err = parseQuery(at.rawQuery); err != nil {
		return nil, err
	}
	if at.req.Name == "" {
		return at, nil
	}
	repo, scoped, err := names.Repository(at.req.Name, at.query.ns, at.host)
	if err != nil {
		return nil, err
	}
	at.repo = repo
	if scoped {
		at.scope = []string{at.query.ns}
	}
	return at, nil
}

// describing gives the header values for desc: those of the answer before, if
// they are the same.
func (at *meaning) describing(desc oci.Descriptor) (*description, error) {
	known := at.told.Load()
	if known != nil && known.Descriptor.Digest == desc.Digest && known.Size == desc.Size && known.MediaType == desc.MediaType {
		return known, nil
	}
	told, err := describe(desc)
	if err == nil {
		at.told.Store(told)
	}
	return told, err
}
