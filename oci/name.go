package oci

import "strings"

// Repository is a repository of an upstream, in canonical form:
// {"docker.io", "library/alpine"}. It is safe as a relative file path: no part
// is empty, starts with a dot or holds a separator.
type Repository struct {
	Host string // the upstream's name; may have a port
	Path string // slash-separated components
}

// String is the path form, host/path.
func (r Repository) String() string { return r.Host + "/" + r.Path }

// IsZero reports whether r names nothing.
func (r Repository) IsZero() bool { return r == Repository{} }

// The bounds of the distribution spec, section "Pulling manifests": clients
// limit host and name together to 255 characters, a tag to 128.
const (
	maxNameLen = 255
	maxTagLen  = 128
)

// NewRepository checks both parts: NAME_INVALID if one breaks the grammar.
func NewRepository(host, path string) (Repository, error) {
	if !validHost(host) {
		return Repository{}, Errorf(NameInvalid, "registry name %q is not a host name with an optional port", clip(host))
	}
	if !validPath(path) {
		return Repository{}, Errorf(NameInvalid, "repository name %q breaks the grammar of the distribution spec: lower-case letters and digits, separated by '.', '_', '__' or dashes, in parts joined by '/'", clip(path))
	}
	r := Repository{Host: host, Path: path}
	if len(r.Host)+1+len(r.Path) > maxNameLen {
		return Repository{}, Errorf(NameInvalid, "name %q has more than %d characters", clip(r.String()), maxNameLen)
	}
	return r, nil
}

// ParseRepository reads the path form, host/path.
func ParseRepository(s string) (Repository, error) {
	host, path, _ := strings.Cut(s, "/")
	return NewRepository(host, path)
}

// ValidTag reports whether s is a tag: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func ValidTag(s string) bool {
	if len(s) == 0 || len(s) > maxTagLen || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// validPath is the spec's grammar of <name>:
// [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*.
func validPath(s string) bool {
	if len(s) == 0 || len(s) > maxNameLen {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if !validComponent(part) {
			return false
		}
	}
	return true
}

func validComponent(s string) bool {
	if len(s) == 0 || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if isAlnum(s[i]) {
			i++
			continue
		}
		start := i
		for !isAlnum(s[i]) { // ends: the last byte is alphanumeric
			i++
		}
		switch sep := s[start:i]; {
		case sep == ".", sep == "_", sep == "__", strings.Trim(sep, "-") == "":
		default:
			return false
		}
	}
	return true
}

// validHost accepts a DNS name or an IPv4 address in lower case, or a bracketed
// IPv6 address, each with an optional port.
func validHost(s string) bool {
	host, port, hasPort := s, "", false
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port, hasPort = s[:i], s[i+1:], true
	}
	if hasPort && !validPort(port) {
		return false
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		v6, ok = strings.CutSuffix(v6, "]")
		return ok && v6 != "" && len(v6) <= 45 && strings.Trim(v6, "0123456789abcdef:.") == ""
	}
	for label := range strings.SplitSeq(host, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !isAlnum(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return true
}

func validPort(s string) bool {
	return len(s) >= 1 && len(s) <= 5 && strings.Trim(s, "0123456789") == ""
}

func isAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
