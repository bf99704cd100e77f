package oci

import "strings"

// Kind is a route of the distribution API.
type Kind int

// The routes. Upload stands for every route that only writes.
const (
	Ping Kind = iota
	ManifestKind
	BlobKind
	TagsKind
	ReferrersKind
	CatalogKind
	UploadKind
)

var kindNames = [...]string{"ping", "manifest", "blob", "tags", "referrers", "catalog", "upload"}

func (k Kind) String() string { return kindNames[k] }

// Kinds are all routes.
func Kinds() []Kind {
	all := make([]Kind, len(kindNames))
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Request is a parsed /v2/ path: what is asked, of which name as the client
// wrote it. Names.Repository tells which repository that is.
type Request struct {
	Kind   Kind
	Name   string // the name in the path, with whatever host stands before it
	Tag    string // of a manifest, when asked by tag
	Digest Digest // of a manifest, blob or subject
	Upload string // the session of an upload; empty for a new one
}

// ParseRequest reads a decoded URL path. An escaped slash has become an
// ordinary one by then and means the same. Errors: NotFound for a path that is
// no route, NameInvalid, DigestInvalid, and ManifestUnknown for a reference
// that cannot name anything. A path's route is known even when its name or
// reference is wrong: Kind is set beside the error, and Name if it is right.
func ParseRequest(path string) (Request, error) {
	rest, ok := strings.CutPrefix(path, "/v2")
	if !ok || rest != "" && rest[0] != '/' {
		return Request{}, Errorf(NotFound, "no such route: %q is not below /v2/", clip(path))
	}
	switch rest {
	case "", "/":
		return Request{Kind: Ping}, nil
	case "/_catalog":
		return Request{Kind: CatalogKind}, nil
	}
	name, route, ref, ok := splitRoute(rest[1:])
	if !ok {
		return Request{}, Errorf(NotFound, "no such route: %q", clip(path))
	}
	req := Request{Kind: routeKinds[route]}
	if !validName(name) {
		return req, Errorf(NameInvalid, "repository name %q breaks the grammar of the distribution spec", clip(name))
	}
	req.Name = name
	return req, req.setReference(ref)
}

var routeKinds = map[string]Kind{
	"manifests": ManifestKind,
	"blobs":     BlobKind,
	"uploads":   UploadKind,
	"tags":      TagsKind,
	"referrers": ReferrersKind,
}

// splitRoute cuts from the right, since a name may hold any of the route words.
func splitRoute(s string) (name, route, ref string, ok bool) {
	head, ref, ok := cutLast(s)
	if !ok {
		return "", "", "", false
	}
	if before, ok := strings.CutSuffix(head, "/blobs/uploads"); ok {
		return before, "uploads", ref, true
	}
	if before, ok := strings.CutSuffix(s, "/blobs/uploads"); ok {
		return before, "uploads", "", true
	}
	name, route, ok = cutLast(head)
	if !ok || route == "tags" && ref != "list" || route == "uploads" {
		return "", "", "", false
	}
	_, known := routeKinds[route]
	return name, route, ref, known
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func (r *Request) setReference(ref string) (err error) {
	switch r.Kind {
	case ManifestKind:
		if strings.IndexByte(ref, ':') < 0 {
			if !ValidTag(ref) {
				return Errorf(ManifestUnknown, "%q is neither a tag nor a digest", clip(ref))
			}
			r.Tag = ref
			return nil
		}
		r.Digest, err = ParseDigest(ref)
	case BlobKind, ReferrersKind:
		r.Digest, err = ParseDigest(ref)
	case UploadKind:
		r.Upload = ref
	}
	return err
}

// Full is what r asks for of a repository by that name, as people write it: with a
// tag or a digest, or the name alone for a list.
func (r Request) Full(name string) string {
	switch {
	case r.Tag != "":
		return name + ":" + r.Tag
	case !r.Digest.IsZero():
		return name + "@" + r.Digest.String()
	}
	return name
}

// validName accepts <name> with or without a host before it.
func validName(s string) bool {
	if len(s) > maxNameLen {
		return false
	}
	if validPath(s) {
		return true
	}
	host, path, ok := strings.Cut(s, "/")
	return ok && validHost(host) && validPath(path)
}

// Path is the inverse of ParseRequest.
func (r Request) Path() string {
	switch r.Kind {
	case ManifestKind:
		return "/v2/" + r.Name + "/manifests/" + r.Reference()
	case BlobKind:
		return "/v2/" + r.Name + "/blobs/" + r.Digest.String()
	case UploadKind:
		return "/v2/" + r.Name + "/blobs/uploads/" + r.Upload
	case TagsKind:
		return "/v2/" + r.Name + "/tags/list"
	case ReferrersKind:
		return "/v2/" + r.Name + "/referrers/" + r.Digest.String()
	case CatalogKind:
		return "/v2/_catalog"
	}
	return "/v2/"
}

// Reference is the tag or the digest that r asks for; empty for a list.
func (r Request) Reference() string {
	if r.Tag != "" {
		return r.Tag
	}
	return r.Digest.String()
}
