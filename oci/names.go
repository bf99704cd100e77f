package oci

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// DockerHub is the name that all names of Docker Hub fold onto.
const DockerHub = "docker.io"

// Names decides which repository a client means. The set of upstreams is
// closed: a name that leads to no known one is an error, never a dial.
type Names struct {
	Default   string   // the upstream of names without a registry
	Upstreams []string // every upstream's name, the default among them
	Own       []string // host names that are ours beside the request's Host
	OwnPorts  []string // ports that we take requests at; only CutOwn needs them
	Rules     *Rules   // names of our own; they come before all others; nil: none
}

// FoldHost gives the canonical name of an upstream: Docker Hub has three.
func FoldHost(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return DockerHub
	}
	return host
}

// Repository maps a name from a request's path, with the value of its ns
// parameter and the Host it was sent to, to a repository. scoped says that ns
// decided, and the answer is to carry OCI-Namespace. Errors: NameUnknown,
// NameInvalid.
//
// A registry stands in ns or in the first part of the name, if that has a dot or
// a colon. ns wins; a first part that names the same registry is then dropped,
// since containerd's override_path sends both. An ns that is our own host counts
// as absent. Then the rules are asked; a name with a registry is only for those
// whose target has that registry too: who says docker.io means it. What no rule
// takes leads to the upstream of that name.
func (n *Names) Repository(name, ns, host string) (repo Repository, scoped bool, err error) {
	upstream, path, scoped := n.split(name, ns, host)
	if rule := n.rule(upstream, path); rule != nil {
		upstream, path = rule.apply(fullName(upstream, path))
	} else if upstream == "" {
		upstream = n.Default
	}
	repo, err = n.repository(upstream, path)
	return repo, scoped, err
}

// Rule is the rule that decides what a name means; nil if none does.
func (n *Names) Rule(name, ns, host string) *Rule {
	upstream, path, _ := n.split(name, ns, host)
	return n.rule(upstream, path)
}

// split takes the registry off a name; it is empty where the client said none.
func (n *Names) split(name, ns, host string) (upstream, path string, scoped bool) {
	first, rest, _ := strings.Cut(name, "/")
	switch {
	case ns != "" && !n.isOwn(ns, host):
		upstream = FoldHost(ns)
		if FoldHost(first) == upstream {
			name = rest
		}
		return upstream, name, true
	case IsRegistry(first):
		return FoldHost(first), rest, false
	}
	return "", name, false
}

func (n *Names) rule(upstream, path string) *Rule {
	if n.Rules == nil || path == "" {
		return nil
	}
	r := n.Rules.find(fullName(upstream, path))
	if r != nil && upstream != "" && !r.Target.hasRegistry() {
		return nil
	}
	return r
}

// fullName is how the targets of rules are written.
func fullName(upstream, path string) string {
	if upstream == "" {
		return path
	}
	return upstream + "/" + inLibrary(upstream, path)
}

// inLibrary gives a one-part name of Docker Hub the rest of its path.
func inLibrary(upstream, path string) string {
	if upstream == DockerHub && path != "" && !strings.Contains(path, "/") {
		return "library/" + path
	}
	return path
}

// IsRegistry reports whether the first part of a name is a registry.
func IsRegistry(first string) bool {
	return strings.ContainsAny(first, ".:") || first == "localhost"
}

// Reference reads what a person types, "[registry/]name[:tag][@digest]", by the
// same rules. The tag is "latest" where neither tag nor digest is given.
func (n *Names) Reference(s string) (repo Repository, tag string, d Digest, err error) {
	name, tag, d, err := SplitReference(s)
	if err != nil {
		return Repository{}, "", Digest{}, err
	}
	repo, _, err = n.Repository(name, "", "")
	return repo, tag, d, err
}

// SplitReference reads "name[:tag][@digest]". The tag is "latest" where neither
// is given. Errors: NameInvalid, DigestInvalid.
func SplitReference(s string) (name, tag string, d Digest, err error) {
	name = s
	if before, after, ok := strings.Cut(name, "@"); ok {
		if d, err = ParseDigest(after); err != nil {
			return "", "", Digest{}, err
		}
		name = before
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
		if !ValidTag(tag) {
			return "", "", Digest{}, Errorf(NameInvalid, "%q is not a tag", clip(tag))
		}
	}
	if tag == "" && d.IsZero() {
		tag = "latest"
	}
	return name, tag, d, nil
}

// CutOwn takes our own address off a name as a person writes it, "localhost:5000/alpine".
// The Host that clients send is not known here: what is no upstream and has one of our
// ports is taken for it. guessed is that, unless it is this machine's by its name.
func (n *Names) CutOwn(name string) (rest, guessed string) {
	first, rest, _ := strings.Cut(name, "/")
	if n.isOwn(first, "") {
		return rest, ""
	}
	switch host, atOurs := n.atOwnPort(first); {
	case rest == "" || slices.Contains(n.Upstreams, FoldHost(first)) || n.Rule(name, "", "") != nil:
	case !atOurs:
	case host == "localhost" || net.ParseIP(host).IsLoopback():
		return rest, ""
	case !IsPublic(first):
		return rest, first
	}
	return name, ""
}

// atOwnPort reports whether a name's first part is a registry at one of our ports: 443
// or 80 where it says none.
func (n *Names) atOwnPort(first string) (host string, ours bool) {
	if host, port, err := net.SplitHostPort(first); err == nil {
		return host, slices.Contains(n.OwnPorts, port)
	}
	atUsual := slices.Contains(n.OwnPorts, "443") || slices.Contains(n.OwnPorts, "80")
	return strings.Trim(first, "[]"), atUsual && IsRegistry(first)
}

// IsPublic reports whether host is a registry that everybody knows, and so neither ours
// nor another one's name misspelt.
func IsPublic(host string) bool { return slices.Contains(publicRegistries, FoldHost(host)) }

var publicRegistries = []string{
	DockerHub, "ghcr.io", "gcr.io", "quay.io", "lscr.io", "nvcr.io", "cgr.dev", "icr.io", "registry.k8s.io", "k8s.gcr.io", "mcr.microsoft.com",
	"public.ecr.aws", "registry.gitlab.com", "registry.access.redhat.com", "registry.redhat.io", "docker.elastic.co", "xpkg.upbound.io",
}

// UnknownUpstream is in the chain of the error that a name has which leads to no
// upstream of ours: the registry that it says.
type UnknownUpstream string

func (u UnknownUpstream) Error() string { return string(u) }

func (n *Names) repository(upstream, path string) (Repository, error) {
	if !slices.Contains(n.Upstreams, upstream) {
		detail := fmt.Sprintf("%q is not an upstream of this registry: it serves %s", clip(upstream), strings.Join(n.Upstreams, ", "))
		return Repository{}, &Error{Code: NameUnknown, Detail: detail, Err: UnknownUpstream(upstream)}
	}
	if path == "" {
		return Repository{}, Errorf(NameUnknown, "the name holds a registry, %q, and no repository", clip(upstream))
	}
	return NewRepository(upstream, inLibrary(upstream, path))
}

func (n *Names) isOwn(ns, host string) bool {
	return strings.EqualFold(ns, host) || slices.ContainsFunc(n.Own, func(own string) bool { return strings.EqualFold(own, ns) })
}
