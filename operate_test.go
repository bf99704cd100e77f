package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// operator runs commands as a person at a shell does.
type operator struct {
	t       *testing.T
	environ []string
}

// run gives what a command wrote, and how it ended. Times are replaced.
func (o operator) run(args ...string) (out string, err error) {
	o.t.Helper()
	var stdout, stderr bytes.Buffer
	err = run(o.t.Context(), args, o.environ, &stdout, &stderr)
	return withoutTimes(stdout.String() + stderr.String()), err
}

// must runs a command that is to succeed.
func (o operator) must(args ...string) string {
	o.t.Helper()
	out, err := o.run(args...)
	if err != nil {
		o.t.Errorf("%v: %v", args, err)
	}
	return out
}

// refused runs a command that is to fail, with these words in its error.
func (o operator) refused(code int, words []string, args ...string) {
	o.t.Helper()
	out, err := o.run(args...)
	if err == nil {
		o.t.Errorf("%v: succeeded:\n%s", args, out)
		return
	}
	if got := exitCode(err); got != code {
		o.t.Errorf("%v: exit code %d, want %d: %v", args, got, code, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			o.t.Errorf("%v: no %q in the error:\n%v", args, word, err)
		}
	}
}

// keeps runs an rm that is to fail, with these words in its error: first as a dry
// run, which is to fail likewise.
func (o operator) keeps(words []string, args ...string) {
	o.t.Helper()
	o.refused(1, words, append([]string{"rm", "--dry-run"}, args...)...)
	o.refused(1, words, append([]string{"rm"}, args...)...)
}

var (
	times = regexp.MustCompile(`"(since|lastUse|checked|changed)":"[^"]+"`)
	since = regexp.MustCompile(`(just now|about a minute ago|\d+ \w+ ago)`)
)

func withoutTimes(s string) string {
	s = times.ReplaceAllStringFunc(s, func(m string) string {
		name, _, _ := strings.Cut(m, ":")
		return name + `:"` + strings.ToUpper(strings.Trim(name, `"`)) + `"`
	})
	return since.ReplaceAllString(s, "AGO")
}

// heldWorld is a server with some images, and the same data directory at rest
// once it has been stopped.
func heldWorld(t *testing.T) (p *program, dir string, server, rest operator) {
	t.Helper()
	hub := ocitest.NewHub(t, ocitest.Config{})
	amd, arm := ocitest.RandomImage(1, 100_000), ocitest.ImageSpec{Platform: oci.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, Layers: []ocitest.Content{ocitest.Blob(2, 1000)}}.Build()
	hub.Push("library/alpine", "3.20", ocitest.Index(amd, arm))
	hub.Push("library/alpine", "3.19", ocitest.RandomImage(3, 50_000))
	hub.Push("team/app", "1", ocitest.RandomImage(4, 300_000))
	dir = t.TempDir()
	p = startProgram(t, hub, "ENTREPOT_DATA="+dir, "ENTREPOT_CACHE_SIZE=1GiB", "ENTREPOT_UPSTREAM_0_SHARE=80%")
	client := newClient(t)
	if status, _, _ := get(t, client, p.registry+"/v2/alpine/manifests/3.20"); status != http.StatusOK {
		t.Fatal(status)
	}
	p.pull(t, client, "library/alpine", amd.Digest.String(), amd)
	p.pull(t, client, "library/alpine", "3.19", ocitest.RandomImage(3, 50_000))
	p.pull(t, client, "team/app", "1", ocitest.RandomImage(4, 300_000))
	awaitNoFills(t, client, p.admin)
	common := []string{"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_DATA=" + dir, "ENTREPOT_CACHE_SIZE=1GiB", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_SHARE=80%"}
	server = operator{t, environ(append(common, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	rest = operator{t, environ(append(common, "ENTREPOT_ADMIN_LISTEN=")...)}
	return p, dir, server, rest
}

func stopProgram(t *testing.T, p *program) {
	t.Helper()
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
}

func wantLines(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, line := range want {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(got) {
			t.Errorf("no line %q in:\n%s", line, got)
		}
	}
}

// Whoever answers, a server or the command itself, answers the same.
func TestOperatorsSeeTheSameOfAServerAndAtRest(t *testing.T) {
	p, _, server, rest := heldWorld(t)
	server.must("pin", "alpine:3.20", "docker.io/team/later")
	commands := [][]string{{"ls"}, {"ls", "--table"}, {"ls", "alpine"}, {"ls", "--table", "alpine"}, {"ls", "alpine:3.1*"}, {"ls", "docker.io/t*", "--table"}, {"pin"}, {"pin", "--table"}}
	var told []string
	for _, args := range commands {
		told = append(told, server.must(args...))
	}
	wantLines(t, told[1], `REPOSITORY +TAGS +BLOBS +SIZE +LAST USE +PINNED`, `docker.io/library/alpine +2 +7 +\S+KiB +AGO +yes`, `docker.io/team/app +1 +3 +\S+KiB +AGO +-`)
	wantLines(t, told[3], `docker.io/library/alpine +3.20 +sha256:\w{12} +linux/amd64, 1 not held +\S+KiB +AGO +AGO +yes`, `docker.io/library/alpine +3.19 +sha256:\w{12} +linux/amd64 +\S+KiB +AGO +AGO +-`)
	wantLines(t, told[4], `\{"repository":"docker.io/library/alpine","tag":"3.19",.*"pinned":false,"platforms":\[\{"platform":"linux/amd64",.*`)
	wantLines(t, told[5], `docker.io/team/app .*`)
	if strings.Contains(told[5], "alpine") {
		t.Errorf("a pattern lists others:\n%s", told[5])
	}
	wantLines(t, told[7], `docker.io/library/alpine:3.20 +sha256:\w{12} +\S+KiB +[1-9]\d* +AGO`, `docker.io/team/later:latest +- +0B +all +AGO`)
	wantLines(t, told[6], `.*"reference":"latest",.*"missing":-1\}`)
	stopProgram(t, p)
	for i, args := range commands {
		if got := rest.must(args...); got != told[i] {
			t.Errorf("%v at rest:\n%s\nof the server:\n%s", args, got, told[i])
		}
	}
	for _, args := range [][]string{{"status", "--hours", "25"}, {"status", "--hours", "0"}, {"status", "--top", "101"}, {"df", "--next", "1001"}, {"df", "--next", "0"}} {
		rest.refused(2, []string{args[0] + `: invalid value "` + args[2] + `" for flag ` + args[1] + ": want a number from "}, args...)
	}
	rest.refused(2, []string{`pin "A": `}, "pin", "A")
	rest.refused(1, []string{`explain "a@": digest "" has no algorithm`}, "explain", "a@")
	for _, args := range [][]string{{"df", "--table"}, {"df", "--next", "3", "--table"}} {
		out := rest.must(args...)
		wantLines(t, out, map[int]string{2: `docker.io +2 +3 +\d+ +\S+KiB +0B +80%`, 4: `sha256:\w{12} +\S+KiB +docker.io +docker.io/\S+ +last used .*`}[len(args)])
	}
	wantLines(t, rest.must("df", "--table"), `\S+KiB are held: 0% of 1GiB; .*`)
	wantLines(t, rest.must("df"), `\{"held":\d+,"budget":1073741824,.*"upstreams":\[\{"upstream":"docker.io","share":0.8,.*`)
}

// A name that leads to no upstream is refused by every command, as a client's is; that
// of an upstream that is no more shows what is left of it.
func TestNamesOfNoUpstream(t *testing.T) {
	p, _, server, rest := heldWorld(t)
	refused := []string{"ghcr.io is not an upstream of this server, nor this cache's own address (ENTREPOT_OWN_NAMES); its upstreams are docker.io"}
	typo := []string{"doker.io is not an upstream of this server, nor this cache's own address (ENTREPOT_OWN_NAMES); its upstreams are docker.io; did you mean docker.io?"}
	everywhere := func(o operator, commands ...[]string) {
		t.Helper()
		for _, command := range commands {
			o.refused(1, refused, append(command, "ghcr.io/x/y:1")...)
			o.refused(1, typo, append(command, "doker.io/x:1")...)
		}
	}
	atRest := [][]string{{"explain"}, {"pin"}, {"ls"}, {"rm"}, {"rm", "--dry-run"}}
	everywhere(server, append(atRest, []string{"warm"}, []string{"refresh"})...)
	server.refused(1, refused, "rm", "--all", "ghcr.io/x/y")
	if pins := server.must("pin"); pins != "" {
		t.Errorf("pinned: %s", pins)
	}
	server.refused(1, []string{`explain "localhost:1/team/app": localhost:1 is not an upstream of this server`}, "explain", "localhost:1/team/app")
	stopProgram(t, p)
	everywhere(rest, atRest...)

	// The cache's own address is no registry, for no command.
	const note = `note +cache.lan:5000 is no upstream and has the port of this cache, so it is taken for its address; as a registry's name it would be answered with 404`
	for _, own := range []string{"localhost:5000", "127.0.0.1:5000", "[::1]:5000", "cache.lan:5000"} {
		out := rest.must("explain", "--table", own+"/team/app:1")
		wantLines(t, out, `repository +docker.io/team/app`, `held +true`)
		if want := own == "cache.lan:5000"; strings.Contains(out, "\nnote ") != want {
			t.Errorf("explained as %s", out)
		} else if want {
			wantLines(t, out, note)
		}
		wantLines(t, rest.must("ls", "--table", own+"/team/app:1"), `docker.io/team/app +1 .*`)
		wantLines(t, rest.must("ls", "--table", own+"/team/*"), `docker.io/team/app .*`)
		wantLines(t, rest.must("pin", "--table", own+"/team/app:1"), `pinned docker.io/team/app:1`)
	}

	// Without a port it has that of its scheme.
	usual := operator{t, append(rest.environ, "ENTREPOT_URL=https://cache.example", "ENTREPOT_LISTEN=127.0.0.1:443")}
	for _, own := range []string{"cache.example", "localhost"} {
		wantLines(t, usual.must("explain", "--table", own+"/team/app:1"), `repository +docker.io/team/app`)
		wantLines(t, usual.must("ls", "--table", own+"/team/app"), `docker.io/team/app +1 .*`)
	}
	wantLines(t, usual.must("explain", "--table", "cache.lan/team/app:1"), `note +cache.lan is no upstream and has the port of this cache, .*`)
	for _, command := range []string{"ls", "pin", "rm"} {
		usual.refused(1, []string{"cache.lan is not an upstream of this server"}, command, "cache.lan/team/app:1")
	}

	// One letter from an upstream, and no misspelling.
	ghcr := operator{t, append(rest.environ, "ENTREPOT_UPSTREAMS=ghcr.io", "ENTREPOT_UPSTREAM_0_NAME=ghcr.io", "ENTREPOT_DEFAULT_UPSTREAM=ghcr.io")}
	if _, err := ghcr.run("explain", "gcr.io/x:1"); err == nil || !strings.HasSuffix(err.Error(), "; its upstreams are ghcr.io") {
		t.Errorf("a registry that is not configured: %v", err)
	}

	// What is held of an upstream that was taken out.
	gone := operator{t, append(rest.environ, "ENTREPOT_UPSTREAMS=quay.io", "ENTREPOT_UPSTREAM_0_NAME=quay.io", "ENTREPOT_DEFAULT_UPSTREAM=quay.io")}
	const left = `docker.io is not an upstream any more: what is held of it stays as long as there is room, and clients do not get it`
	wantLines(t, gone.must("ls", "--table", "docker.io/team/app"), `docker.io/team/app +1 .*`, left)
	wantLines(t, gone.must("pin", "--table", "docker.io/team/app:1"), `pinned docker.io/team/app:1`, left)
	gone.must("unpin", "docker.io/team/app:1")
	gone.must("rm", "docker.io/team/app:1")
	gone.refused(1, []string{"docker.io is not an upstream of this server"}, "rm", "docker.io/team/app:1")
}

func TestRemovingIsRefusedForWhatIsPinned(t *testing.T) {
	_, _, server, _ := heldWorld(t)
	wantLines(t, server.must("pin", "--table", "alpine:3.20"), `pinned docker.io/library/alpine:3.20, of which not all is held yet: 1 digest`)
	wantLines(t, server.must("pin", "--table", "nosuch:1"), `pinned docker.io/library/nosuch:1, of which nothing is held yet`)
	server.keeps([]string{"rm docker.io/library/alpine:3.20: it is pinned; first: entrepot unpin docker.io/library/alpine:3.20"}, "alpine:3.20")
	server.keeps([]string{"rm docker.io/library/alpine: some of it is pinned; entrepot pin lists"}, "--all", "alpine")
	server.keeps([]string{"rm docker.io/library/alpine: some of it is pinned"}, "--all", "docker.io/library/*")
	server.keeps([]string{"rm docker.io/library/nosuch2: nothing is held by this name"}, "--all", "nosuch2")

	// A dry run says of each what the real one does.
	dry, err := server.run("rm", "--dry-run", "--table", "alpine:*", "docker.io/team/app:1", "docker.io/team/app:2")
	wantLines(t, dry, `would remove docker.io/library/alpine:3.19`, `would remove docker.io/team/app:1`)
	if err == nil || !strings.Contains(err.Error(), "3.20: it is pinned") || !strings.Contains(err.Error(), "app:2: nothing is held") {
		t.Errorf("dry run of both: %v", err)
	}

	// What may go, goes.
	out, err := server.run("rm", "--table", "alpine:*", "docker.io/team/app:1")
	wantLines(t, out, `removed docker.io/library/alpine:3.19`, `removed docker.io/team/app:1`)
	if err == nil || !strings.Contains(err.Error(), "3.20: it is pinned") || strings.Contains(err.Error(), "3.19") {
		t.Errorf("rm of both: %v", err)
	}
	if out := server.must("ls", "alpine", "--table"); strings.Contains(out, " 3.19 ") || !strings.Contains(out, " 3.20 ") {
		t.Errorf("after rm:\n%s", out)
	}
	server.must("unpin", "alpine:3.20")
	server.must("rm", "--all", "alpine", "docker.io/team/*")
	if out := server.must("ls"); out != "" {
		t.Errorf("after rm of everything:\n%s", out)
	}
	wantLines(t, server.must("ls", "--table"), "nothing is held")
	server.refused(1, []string{"unpin docker.io/library/alpine:3.20: there is no such pin"}, "unpin", "alpine:3.20")
	server.keeps([]string{"rm docker.io/library/alpine:3.20: nothing is held by this name; entrepot ls"}, "alpine:3.20")
	server.keeps([]string{`nothing that is held matches "alpine:*"`}, "alpine:*")
}

// What was told of a repository's referrers goes with it.
func TestRemovedRepositoriesHaveNoReferrers(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Referrers: true}})
	image := ocitest.RandomImage(1, 1000)
	hub.Push("library/app", "1", image)
	p := startProgram(t, hub)
	client := newClient(t)
	p.pull(t, client, "library/app", "1", image)
	referrers := func(want int) {
		t.Helper()
		if status, body, _ := get(t, client, p.registry+"/v2/app/referrers/"+image.Digest.String()); status != want {
			t.Errorf("%d %s, want %d", status, body, want)
		}
	}
	referrers(http.StatusOK)
	hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(http.StatusServiceUnavailable)})
	referrers(http.StatusOK) // as it was told last
	operatorOf(t, p).must("rm", "--all", "docker.io/library/app")
	referrers(http.StatusServiceUnavailable)
}

func TestOneManifestIsRemovedByDigest(t *testing.T) {
	p, _, server, rest := heldWorld(t)
	loose := ocitest.RandomImage(1, 100_000).Digest.String() // of the index of 3.20
	tagged := ocitest.RandomImage(3, 50_000).Digest.String()
	server.keeps([]string{"rm docker.io/library/alpine@" + tagged + ": docker.io/library/alpine:3.19 leads to it: remove that first"}, "alpine@"+tagged)
	server.keeps([]string{"docker.io/library/alpine:3.20 leads to it"}, "*@"+tagged, "alpine@"+loose)
	server.must("rm", "alpine:3.19", "alpine:3.20")
	wantLines(t, server.must("ls", "--table", "alpine"), `docker.io/library/alpine +- +`+tagged[:19]+` .*`)
	server.must("pin", "alpine@"+tagged)
	server.keeps([]string{"it is pinned; first: entrepot unpin docker.io/library/alpine@" + tagged}, "alpine@"+tagged)
	server.must("unpin", "alpine@"+tagged)
	wantLines(t, server.must("rm", "--dry-run", "--table", "alpine@"+tagged), `would remove docker.io/library/alpine@`+tagged)
	wantLines(t, server.must("rm", "--table", "docker.io/*@"+tagged), `removed docker.io/library/alpine@`+tagged)
	server.keeps([]string{"nothing is held by this name"}, "alpine@"+tagged)
	stopProgram(t, p)
	out := rest.must("ls", "alpine")
	_, index, _ := strings.Cut(out, `"digest":"`)
	index, _, _ = strings.Cut(index, `"`)
	if strings.Contains(out, tagged) || strings.Count(out, "\n") != 1 {
		t.Errorf("after rm:\n%s", out)
	}
	rest.keeps([]string{"docker.io/library/alpine@" + index + " leads to it"}, "alpine@"+loose)
	rest.must("rm", "alpine@"+index)
	if out := rest.must("ls", "alpine"); out != "" {
		t.Errorf("after rm at rest:\n%s", out)
	}
}

func TestPruneAndVerify(t *testing.T) {
	p, dir, server, rest := heldWorld(t)
	wantLines(t, server.must("prune", "--table"), `removed 0 blobs, 0 unfinished ones and 0 records, and freed 0B`)
	server.must("rm", "--all", "team/app")
	const stay = `3 blobs, \S+KiB, that no repository has stay for now: they came, or were used, within the last `
	for _, dry := range []string{"", "--dry-run"} {
		args := strings.Fields("prune --table " + dry)
		wantLines(t, server.must(args...), `(removed|would remove) 0 blobs, .*`, stay+`1h`)
		wantLines(t, server.must(append(args, "--unused", "10m")...), `(removed|would remove) 0 blobs, .*`, stay+`10m`)
	}
	wantLines(t, server.must("prune"), `\{"blobs":0,.*"recent":3,"recentBytes":\d+\}`)
	client := newClient(t)
	p.pull(t, client, "team/app", "1", ocitest.RandomImage(4, 300_000))
	awaitNoFills(t, client, p.admin)
	wantLines(t, server.must("verify", "--table"), `read \d+ files, \S+KiB`)
	wantLines(t, server.must("verify"), `\{"files":\d+,"bytes":\d+,"total":\d+,"damaged":0,"unreadable":0\}`)
	stopProgram(t, p)
	layer := ocitest.RandomImage(4, 300_000).Blobs[1].Digest
	name := filepath.Join(dir, "blobs", "sha256", layer.Hex()[:2], layer.Hex())
	if err := errors.Join(os.Chmod(name, 0o644), os.WriteFile(name, []byte("something else"), 0o644), os.Chtimes(name, time.Now().Add(-time.Hour), time.Now().Add(-time.Hour))); err != nil {
		t.Fatal(err)
	}
	out, err := rest.run("verify", "--table")
	wantLines(t, out, `dropped `+layer.String())
	if exitCode(err) != 3 || !strings.Contains(err.Error(), "1 damaged") {
		t.Errorf("verify of a damaged file: %v", err)
	}
	rest.must("verify")

	// A week later nobody has used anything.
	for _, file := range filesBelow(t, dir) {
		if err := os.Chtimes(file, time.Now().Add(-8*24*time.Hour), time.Now().Add(-8*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	rest.must("pin", "alpine:3.19")
	wantLines(t, rest.must("prune", "--table", "--dry-run", "--unused", "7d"), `sha256:\S+ +blob +\S+ +AGO +it was not used for so long`,
		`would remove [1-9]\d* blobs, 0 unfinished ones and [1-9]\d* records, and free \S+KiB`)
	wantLines(t, rest.must("prune", "--table", "--unused", "7d"), `removed [1-9]\d* blobs, 0 unfinished ones and [1-9]\d* records, and freed \S+KiB`)
	wantLines(t, rest.must("ls", "--table"), `docker.io/library/alpine +2 +3 .* yes`, `docker.io/team/app +1 +0 +0B .*`)
	wantLines(t, rest.must("pin", "--table"), `docker.io/library/alpine:3.19 +sha256:\w{12} +\S+KiB +0 +AGO`)
}

func TestWhoeverCannotBeAskedIsNamed(t *testing.T) {
	p, dir, server, rest := heldWorld(t)
	rest.refused(1, []string{dir, "another process holds it: pid ", "ENTREPOT_ADMIN_LISTEN is empty"}, "ls")
	other := operator{t, environ("ENTREPOT_DATA="+t.TempDir(), server.environ[3], "ENTREPOT_UPSTREAMS=docker.io")}
	for i, v := range server.environ {
		if strings.HasPrefix(v, "ENTREPOT_ADMIN_LISTEN=") {
			other.environ[3] = server.environ[i]
		}
	}
	other.refused(1, []string{"is no data directory", "has another data directory, " + dir, "--server"}, "ls")
	if out, err := other.run("ls", "--server", p.admin); err != nil || !strings.Contains(out, "library/alpine") {
		t.Errorf("a named server: %s %v", out, err)
	}
	other.refused(1, []string{p.registry + " is not the admin API of Entrepôt: 404"}, "ls", "--server", p.registry)
	other.refused(2, []string{"--server: want the address"}, "ls", "--server", "ftp://x/y")
	stopProgram(t, p)
	other.refused(1, []string{p.admin + " does not answer: connection refused"}, "ls", "--server", p.admin)
	server.must("ls") // by itself now
}

func TestATokenIsAskedForAndSent(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	data := "ENTREPOT_DATA=" + t.TempDir()
	p := startProgram(t, hub, data, "ENTREPOT_ADMIN_LISTEN=:0", "ENTREPOT_ADMIN_TOKEN="+testToken)
	address := "ENTREPOT_ADMIN_LISTEN=127.0.0.1" + p.admin[strings.LastIndex(p.admin, ":"):]
	with := operator{t, environ(data, address, "ENTREPOT_ADMIN_TOKEN_FILE="+writeFile(t, testToken+"\n"))}
	with.must("pin", "alpine")
	for _, wrong := range [][]string{{}, {"ENTREPOT_ADMIN_TOKEN=" + testToken + "x"}} {
		operator{t, environ(append(wrong, data, address)...)}.refused(1, []string{"another process holds it", "asks for a token: set ENTREPOT_ADMIN_TOKEN"}, "ls")
	}
	if strings.Contains(p.log.String(), testToken) {
		t.Error("the log tells the token")
	}
}

func TestMistakesInOperatorsCommandLines(t *testing.T) {
	o := operator{t, environ("ENTREPOT_DATA="+t.TempDir(), "ENTREPOT_ADMIN_LISTEN=")}
	for _, row := range []struct{ line, want string }{
		{"ls --tabel", "flag provided but not defined: --tabel: entrepot help ls"},
		{"ls a b", `takes 1 argument at most, and not "b"`},
		{"ls --json --table", "and not both"},
		{"rm", "needs a reference"},
		{"unpin", "needs a reference"},
		{"prune x", `takes no argument, and not "x"`},
		{"df --next x", `invalid value "x" for flag --next: want a number from 1 to 1000`},
		{"df --next", "flag needs an argument: --next"},
		{"rm --all=-x y", `invalid boolean value "-x" for --all: `},
	} {
		o.refused(2, []string{row.want, strings.Fields(row.line)[0] + ": "}, strings.Fields(row.line)...)
	}
	// These are found once the data directory is open.
	closed := t.TempDir()
	if err := os.WriteFile(filepath.Join(closed, "VERSION"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.environ = environ("ENTREPOT_DATA="+closed, "ENTREPOT_ADMIN_LISTEN=")
	for _, row := range []struct{ line, want string }{
		{"ls UPPER/case", `ls "UPPER/case": `},
		{"ls ghcr.example.com:x/y", "ls "},
		{"rm alpine:3@sha256:" + strings.Repeat("0", 64), "names a tag and a digest"},
		{"rm --all alpine@sha256:" + strings.Repeat("0", 64), "names tags or a digest"},
		{"rm alp*", "add --all"},
		{"rm --all alpine:3", "names tags"},
		{"rm alpine:-", "is not a tag"},
		{"pin alpine:*", "is a pattern"},
		{"prune --unused soon", "want a number with a unit, such as 12h or 30d"},
		{"prune --unused 0s", "want 1s or more"},
	} {
		o.refused(2, []string{row.want}, strings.Fields(row.line)...)
	}
}

func TestHelpTellsEveryFlag(t *testing.T) {
	help := map[string]string{}
	for _, c := range commands() {
		help[c.name] = c.help
	}
	for name, flags := range map[string][]string{
		"ls": {"--server", "--json", "--table"}, "rm": {"--all", "--dry-run", "--server"}, "pin": {"--json"}, "unpin": {"--json"},
		"refresh": {"--all", "--json"}, "warm": {"--platform", "--file", "--wait", "--json"}, "prune": {"--unused", "--dry-run", "--table"}, "verify": {"--server"}, "df": {"--next", "--json"},
	} {
		for _, f := range flags {
			if !strings.Contains(help[name], f) {
				t.Errorf("help %s does not tell of %s", name, f)
			}
		}
	}
}

// An interrupt ends long work, also in this process.
func TestAnInterruptEndsACommand(t *testing.T) {
	p, _, _, rest := heldWorld(t)
	stopProgram(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"verify"}, {"ls"}, {"prune"}, {"df"}, {"rm", "alpine:3.20"}} {
		var out bytes.Buffer
		if err := run(ctx, args, rest.environ, &out, &out); !errors.Is(err, context.Canceled) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
