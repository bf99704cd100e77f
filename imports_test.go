package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowedImports are the only doors between the packages of the product. main
// may import all of them.
var allowedImports = map[string][]string{
	"oci":       nil,
	"ratelimit": {"oci"},
	"trace":     {"oci"},
	"store":     {"oci"},
	"upstream":  {"oci", "ratelimit"},
	"cache":     {"oci", "store"},
	"ledger":    {},
	"policy":    {"oci", "words"},
	"proxy":     {"oci", "ratelimit"},
	"certs":     nil,
	"warm":      {"oci"},
	"access":    {"oci"},
	"words":     {"oci"},
	"operate":   {"oci", "admin", "ledger", "warm", "words"},
	"admin":     {"oci", "store", "cache", "upstream", "ledger", "warm", "words"},
}

// owners says which package a library belongs to, by the start of its import
// path; the longest that fits decides. Tests are free.
var owners = map[string]string{
	"github.com/caarlos0/env":                             "main",
	"github.com/docker/go-units":                          "words",
	"github.com/prometheus":                               "main",
	"github.com/rs/zerolog":                               "main",
	"github.com/schollz/progressbar":                      "operate",
	"golang.org/x/net/http/httpproxy":                     "main",
	"github.com/dgraph-io/ristretto":                      "store",
	"golang.org/x/net/publicsuffix":                       "upstream",
	"golang.org/x/sys":                                    "store, proxy", // the kernel: files there, sockets here
	"golang.org/x/term":                                   "operate",
	"golang.org/x/time/rate":                              "ratelimit",
	"github.com/google/go-containerregistry/pkg/authn":    "upstream",
	"github.com/google/go-containerregistry/pkg/v1/types": "oci",
	"github.com/google/go-containerregistry/pkg/name":     "upstream",
	"github.com/coreos/go-oidc":                           "access",
	"github.com/go-jose/go-jose":                          "access",
	"go.yaml.in/yaml":                                     "access",
	"golang.org/x/crypto/acme":                            "certs",
	"golang.org/x/crypto/bcrypt":                          "access",
	"golang.org/x/sync/singleflight":                      "access",
	"software.sslmate.com/src/go-pkcs12":                  "certs",
	"go.opentelemetry.io":                                 "trace",
	"google.golang.org/protobuf":                          "trace",
}

// listed is a package as go list tells of it. Imports leaves out tests.
type listed struct {
	ImportPath string
	Name       string
	Standard   bool
	Imports    []string
}

// listPackages lists the module's packages and all that they lead to.
func listPackages(t *testing.T, patterns ...string) []listed {
	t.Helper()
	args := append([]string{"list", "-e", "-deps", "-json=ImportPath,Name,Standard,Imports"}, patterns...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var packages []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

const module = "entrepot"

// room is the product's package of an import path: "main", or its place in
// allowedImports. exempt is for what the product does not ship.
func room(path string) (name string, ours, exempt bool) {
	if path == module {
		return "main", true, false
	}
	name, ours = strings.CutPrefix(path, module+"/")
	for _, prefix := range []string{"internal", "e2e", "bench"} {
		if name == prefix || strings.HasPrefix(name, prefix+"/") {
			exempt = true
		}
	}
	return name, ours, exempt
}

// TestPackagesImportOnlyWhatTheyMay keeps rooms on one floor without doors.
func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	for _, p := range listPackages(t, "./...") {
		from, ours, exempt := room(p.ImportPath)
		if !ours || exempt {
			continue
		}
		allowed, known := allowedImports[from]
		if !known && from != "main" {
			t.Errorf("package %s has no place in the layout: give it a row in allowedImports", from)
			continue
		}
		for _, path := range p.Imports {
			to, ours, exempt := room(path)
			switch {
			case exempt && ours:
				t.Errorf("%s imports %s, which only tests may", from, path)
			case ours && from != "main" && !slices.Contains(allowed, to):
				t.Errorf("%s imports %s; it may import %v", from, to, allowed)
			}
		}
	}
}

// TestEachLibraryHasOneOwner: what a library is good for is decided in one
// place, and can be changed there.
func TestEachLibraryHasOneOwner(t *testing.T) {
	for _, p := range listPackages(t, "./...") {
		from, ours, exempt := room(p.ImportPath)
		if !ours || exempt {
			continue
		}
		for _, path := range p.Imports {
			first, _, _ := strings.Cut(path, "/")
			if _, ours, _ := room(path); ours || !strings.Contains(first, ".") {
				continue
			}
			if owner, known := ownerOf(path); !known {
				t.Errorf("%s imports %s, which has no owner: give it a row in owners", from, path)
			} else if !slices.Contains(strings.Split(owner, ", "), from) {
				t.Errorf("%s imports %s, which belongs to %s", from, path, owner)
			}
		}
	}
}

func ownerOf(path string) (owner string, known bool) {
	longest := ""
	for prefix, name := range owners {
		if (path == prefix || strings.HasPrefix(path, prefix+"/")) && len(prefix) > len(longest) {
			longest, owner = prefix, name
		}
	}
	return owner, longest != ""
}

// TestTheImageIsBuiltOfEveryPackage: what .dockerignore does not name is not
// there when the image is built.
func TestTheImageIsBuiltOfEveryPackage(t *testing.T) {
	text, err := os.ReadFile(".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	for name := range allowedImports {
		if !slices.Contains(strings.Split(string(text), "\n"), "!"+name) {
			t.Errorf(".dockerignore has no line !%s", name)
		}
	}
}

// TestTheBinaryHoldsNoTestCode, however it would get there.
func TestTheBinaryHoldsNoTestCode(t *testing.T) {
	for _, p := range listPackages(t, ".") {
		if _, ours, exempt := room(p.ImportPath); ours && exempt || p.ImportPath == "testing" || strings.HasPrefix(p.ImportPath, "go.uber.org/goleak") {
			t.Errorf("the binary holds %s", p.ImportPath)
		}
	}
}

// TestNothingIsDecompressed: a layer's bytes are what its digest names, and a few
// of them can stand for very many. The product unpacks nothing that it is sent.
func TestNothingIsDecompressed(t *testing.T) {
	for _, p := range listPackages(t, "./...") {
		if _, ours, exempt := room(p.ImportPath); !ours || exempt {
			continue
		}
		for _, path := range p.Imports {
			if strings.HasPrefix(path, "compress/") || strings.HasPrefix(path, "archive/") || strings.HasPrefix(path, "github.com/klauspost/compress") {
				t.Errorf("%s imports %s", p.ImportPath, path)
			}
		}
	}
}
