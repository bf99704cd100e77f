package main

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// citation is a test as documents name it: `package/TestName`, with main for the
// top level.
var citation = regexp.MustCompile("`((?:[a-z0-9]+/)+)((?:Test|Fuzz|Benchmark|Soak)[A-Za-z0-9_]*)`")

// TestCitedTestsExist: what a document says is held by a test is held by one.
func TestCitedTestsExist(t *testing.T) {
	known := testNames(t)
	cited := 0
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range citation.FindAllStringSubmatch(string(text), -1) {
			cited++
			if name := m[1] + m[2]; !known[name] && name != "package/TestName" {
				t.Errorf("%s cites %s, which does not exist", doc, name)
			}
		}
	}
	if cited < 100 {
		t.Errorf("only %d citations were found: is the pattern right?", cited)
	}
}

func documents(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md", "SECURITY.md"}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// testNames are all tests of the module and of its benchmarks, whatever their
// build tags.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		room := filepath.ToSlash(filepath.Dir(path))
		if room == "." {
			room = "main"
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
				known[room+"/"+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}
