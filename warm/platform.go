package warm

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"entrepot/oci"
)

// Platforms says which of an index's manifests are wanted. The zero value wants
// all.
type Platforms struct {
	text string
	list []oci.Platform
}

// The words that stand for platforms.
const (
	allPlatforms   = "all"
	nativePlatform = "native" // Linux on what this program runs on
)

const wantPlatforms = "want os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7, native, or all"

// ParsePlatforms reads "linux/amd64,linux/arm/v7", "native", "all". Without a
// variant each variant is meant.
func ParsePlatforms(s string) (Platforms, error) {
	p := Platforms{text: s}
	if s == allPlatforms {
		return p, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		one, err := parsePlatform(strings.TrimSpace(item))
		if err != nil {
			return Platforms{}, err
		}
		if slices.Contains(p.list, one) {
			return Platforms{}, fmt.Errorf("%.100q is named twice", item)
		}
		p.list = append(p.list, one)
	}
	return p, nil
}

func parsePlatform(s string) (oci.Platform, error) {
	if s == nativePlatform {
		return oci.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.ContainsFunc(parts, func(part string) bool { return !isWord(part) }) {
		return oci.Platform{}, fmt.Errorf("%.100q is not a platform: %s", s, wantPlatforms)
	}
	p := oci.Platform{OS: parts[0], Architecture: parts[1]}
	if !slices.Contains(systems(), p.OS) {
		return oci.Platform{}, fmt.Errorf("%.100q is for no system that images are made for: want one of %s", s, strings.Join(systems(), ", "))
	}
	if !slices.Contains(architectures(), p.Architecture) {
		return oci.Platform{}, fmt.Errorf("%.100q is for no architecture that images are made for: want one of %s", s, strings.Join(architectures(), ", "))
	}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// systems are what images may be for: Go's names, by which the image spec goes, those
// that Go knows and does not build for included, and those of WebAssembly.
func systems() []string {
	return strings.Fields("linux windows darwin freebsd netbsd openbsd dragonfly solaris illumos aix android ios plan9 zos hurd js wasi wasip1 wasip2")
}

// architectures are likewise.
func architectures() []string {
	return strings.Fields("amd64 arm64 arm 386 ppc64le s390x riscv64 loong64 mips mipsle mips64 mips64le ppc ppc64 armbe arm64be riscv s390 sparc sparc64 wasm")
}

func isWord(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	})
}

// String is what was parsed.
func (p Platforms) String() string {
	if p.text == "" {
		return allPlatforms
	}
	return p.text
}

// absent are those of the platforms that none of found is; none where one of found is
// not known.
func (p Platforms) absent(found []oci.Platform) (names []string) {
	if len(found) == 0 || slices.Contains(found, oci.Platform{}) {
		return nil
	}
	for _, one := range p.list {
		if alone := (Platforms{list: []oci.Platform{one}}); !slices.ContainsFunc(found, alone.want) {
			names = append(names, one.String())
		}
	}
	return names
}

// want reports whether a child of an index is to be fetched: also one of which
// the index does not say what it is for.
func (p Platforms) want(child oci.Platform) bool {
	return len(p.list) == 0 || child == (oci.Platform{}) || slices.ContainsFunc(p.list, func(one oci.Platform) bool {
		return one.OS == child.OS && one.Architecture == child.Architecture && (one.Variant == "" || one.Variant == child.Variant)
	})
}
