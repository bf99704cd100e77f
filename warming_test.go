package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"entrepot/admin"
	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/warm"
)

// warmWorld is a server over a hub with an index for two platforms, and an
// operator beside it.
func warmWorld(t *testing.T, pairs ...string) (hub *ocitest.Hub, p *program, o operator, amd, arm ocitest.Image) {
	t.Helper()
	hub = ocitest.NewHub(t, ocitest.Config{})
	amd = ocitest.RandomImage(1, 100_000, 5000)
	arm = ocitest.ImageSpec{Platform: oci.Platform{OS: "linux", Architecture: "arm64"}, Layers: []ocitest.Content{ocitest.Blob(2, 1000)}}.Build()
	hub.Push("library/alpine", "latest", ocitest.Index(amd, arm))
	hub.Push("team/app", "1", ocitest.RandomImage(3, 2000))
	dir := t.TempDir()
	p = startProgram(t, hub, append(pairs, "ENTREPOT_DATA="+dir)...)
	return hub, p, operator{t, environ("ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_DATA="+dir, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))}, amd, arm
}

// What is on the list is here before a client asks, and needs no upstream then.
func TestAServerKeepsItsListWarm(t *testing.T) {
	hub, p, o, amd, arm := warmWorld(t, "ENTREPOT_WARM=alpine, team/app:1,nosuch:1", "ENTREPOT_WARM_PLATFORMS=linux/amd64")
	for strings.Contains(o.must("warm"), `"status":"pending"`) || strings.Contains(o.must("warm"), `"status":"fetching"`) {
		if t.Context().Err() != nil {
			t.Fatal(o.must("warm"))
		}
	}
	wantLines(t, o.must("warm", "--table"), `IMAGE +STATUS +NEXT +CHECKED +SIZE +DIGEST`,
		`docker.io/library/alpine:latest +warm +\S+ +AGO +10\dKiB +sha256:\w{12}`, `docker.io/library/nosuch:1 +missing +\S+ +- +0B +-`, `    localhost:\d+ answers 401: missing, or hidden`, `docker.io/team/app:1 +warm .*`)
	wantLines(t, o.must("warm"), `\{"repository":"docker.io/library/alpine","reference":"latest","status":"warm","digest":"sha256:.*`)
	for _, image := range []struct {
		image ocitest.Image
		gets  int
	}{{amd, 1}, {arm, 0}} {
		if n := hub.Count(ocitest.Match{Role: ocitest.Registry, Method: "GET", Reference: image.image.Digest.String()}); n != image.gets {
			t.Errorf("%d GETs of the manifest for %s, want %d", n, image.image.Platform.Architecture, image.gets)
		}
	}
	wantLines(t, o.must("status", "--table"), `WARM +█+░+ +2 of 3 here, 1 missing`)
	hub.Reset()
	client := newClient(t)
	if status, _, _ := get(t, client, p.registry+"/v2/alpine/manifests/latest"); status != http.StatusOK {
		t.Errorf("the index: %d", status)
	}
	p.pull(t, client, "alpine", amd.Digest.String(), amd)
	p.pull(t, client, "team/app", "1", ocitest.RandomImage(3, 2000))
	for _, r := range hub.Requests() {
		if r.Repo != "library/nosuch" {
			t.Errorf("a client's pull costs %s", r)
		}
	}
	_, scrape, _ := get(t, client, p.admin+"/metrics")
	for _, line := range []string{`entrepot_warm_images{state="warm"} 2`, `entrepot_warm_images{state="missing"} 1`, `entrepot_warm_images{state="pending"} 0`} {
		if !strings.Contains(scrape, "\n"+line+"\n") {
			t.Errorf("no metric %s", line)
		}
	}
	var told []string
	for _, line := range p.log.lines(t) {
		if text, ok := line["message"].(string); ok && strings.HasPrefix(text, "warm list: ") {
			told = append(told, fmt.Sprint(text, " ", line["repository"]))
		}
	}
	slices.Sort(told)
	want := []string{"warm list: fetched library/alpine", "warm list: fetched team/app", "warm list: not fetched or not confirmed; it is tried again library/nosuch", "warm list: read <nil>"}
	if !slices.Equal(told, want) {
		t.Errorf("the log says %q, want %q", told, want)
	}
}

func TestWarmingAtOnce(t *testing.T) {
	hub, p, o, amd, _ := warmWorld(t, "ENTREPOT_WARM_PLATFORMS=linux/amd64")
	wantLines(t, o.must("warm", "--table"), "no image is kept warm: .*")
	wantLines(t, o.must("warm", "--table", "alpine"), `docker.io/library/alpine:latest fetched 10\dKiB: sha256:\w{12}, 10\dKiB in 2 manifests and 3 blobs`)
	wantLines(t, o.must("warm", "--table", "alpine"), `docker.io/library/alpine:latest is held already: sha256:\w{12}, 10\dKiB in 2 manifests and 3 blobs`)
	wantLines(t, o.must("warm", "alpine", "--platform", "all"), `\{"repository":"docker.io/library/alpine","reference":"latest","digest":"sha256:\w{64}","manifests":3,"blobs":5,"bytes":\d+,"fetched":\d+\}`)
	wantLines(t, o.must("warm", "alpine", "--table", "--platform", "linux/amd64,windows/amd64"), `.* is held already: .* and 3 blobs, nothing for windows/amd64`)
	hub.Reset()
	list := writeFile(t, "# what the nodes run\nteam/app:1   # by tag\n\nalpine@"+amd.Digest.String()+"\n")
	wantLines(t, o.must("warm", "--file", list, "--table"), `docker.io/team/app:1 fetched .*`, `docker.io/library/alpine@`+amd.Digest.String()+` is held already: .*`)
	client := newClient(t)
	hub.Reset()
	p.pull(t, client, "alpine", amd.Digest.String(), amd)
	if lines := hub.Lines(); len(lines) > 0 {
		t.Errorf("a client's pull costs %q", lines)
	}

	// One that fails does not keep the others back.
	out, err := o.run("warm", "--table", "--wait", "0s", "nosuch:1", "alpine")
	wantLines(t, out, `docker.io/library/alpine:latest is held already: .*`)
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "warm docker.io/library/nosuch:1: localhost:") {
		t.Errorf("warm of what does not exist: %v", err)
	}
	o.refused(1, []string{"has nothing for linux/s390x, but for linux/amd64, linux/arm64"}, "warm", "--platform", "linux/s390x", "alpine")
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.RetryLater(http.StatusTooManyRequests, "3600")})
	o.refused(1, []string{"warm docker.io/team/new:1: localhost:"}, "warm", "--wait", "1m", "team/new:1")

	for _, row := range []struct{ line, want string }{
		{"warm --platform linux alpine", `"linux" is not a platform`},
		{"warm --wait soon alpine", "--wait"},
		{"warm --wait 8d alpine", "--wait"},
		{"warm alp*", "is a pattern"},
	} {
		o.refused(2, []string{row.want}, strings.Fields(row.line)...)
	}
	o.refused(1, []string{`"alpine:"`, "(line 2 of file"}, "warm", "--file", writeFile(t, "alpine\nalpine:\n"))
	o.refused(1, []string{"names no image"}, "warm", "--file", writeFile(t, "# none\n"))
	o.refused(1, []string{"is not an upstream of this server"}, "warm", "ghcr.io/x/y")
	stopProgram(t, p)
	o.environ = append(o.environ[:len(o.environ)-1:len(o.environ)-1], "ENTREPOT_ADMIN_LISTEN=")
	o.refused(1, []string{"only a running server can do that"}, "warm", "alpine")
}

// An operator who leaves ends the work, and its place is free for the next.
func TestLeavingEndsTheWarming(t *testing.T) {
	hub, _, o, _, _ := warmWorld(t)
	for i := range admin.MaxWarmJobs + 2 {
		image := ocitest.RandomImage(uint64(100+i), 3000)
		tag := fmt.Sprint(i)
		hub.Push("team/slow", tag, image)
		gate := hub.Gate(ocitest.Match{Role: ocitest.CDN, Reference: image.Blobs[1].Digest.String()})
		for {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			var stdout, stderr bytes.Buffer
			go func() {
				ended <- run(ctx, []string{"warm", "--platform", "all", "team/slow:" + tag}, o.environ, &stdout, &stderr)
			}()
			held := make(chan error, 1)
			go func() { held <- gate.AwaitHeld(ctx, 1) }()
			select {
			case err := <-held:
				if err != nil {
					t.Fatal(err)
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("the command that was interrupted: %v", err)
				}
			case err := <-ended: // the server has not noticed yet that the one before has left
				cancel()
				t.Log("the one before:", <-held)
				if err == nil || !strings.Contains(err.Error(), "being fetched for operators already") {
					t.Fatalf("the command ended with %v", err)
				}
				continue
			}
			break
		}
		gate.Open()
	}
}

func TestWarmSettings(t *testing.T) {
	list := writeFile(t, "alpine\n# comment\nteam/app:1\nalpine:latest\n")
	c := mustLoad(t, "ENTREPOT_WARM_FILE="+list, "ENTREPOT_WARM_PLATFORMS=linux/arm/v7,linux/amd64", "ENTREPOT_WARM_EVERY=1h", "ENTREPOT_WARM_WINDOW=22:00-06:00")
	images, err := newWarmList(c).read()
	if err != nil || fmt.Sprint(images) != "[docker.io/library/alpine:latest docker.io/team/app:1]" {
		t.Errorf("%v, %v", images, err)
	}
	for _, row := range []struct {
		pairs      []string
		name, text string
	}{
		{[]string{"ENTREPOT_WARM=alpine,"}, warmVar, "empty item"},
		{[]string{"ENTREPOT_WARM=alpine,alpine"}, warmVar, "twice"},
		{[]string{"ENTREPOT_WARM=Alpine"}, warmVar, `"Alpine"`},
		{[]string{"ENTREPOT_WARM=other.test/x/y"}, warmVar, "is not an upstream"},
		{[]string{"ENTREPOT_WARM_FILE=/nowhere"}, warmFileVar, "no such file"},
		{[]string{"ENTREPOT_WARM=alpine", "ENTREPOT_WARM_FILE=" + list}, warmFileVar, "want one of them"},
		{[]string{"ENTREPOT_WARM_PLATFORMS=amd64"}, "ENTREPOT_WARM_PLATFORMS", "is not a platform: want os/architecture"},
		{[]string{"ENTREPOT_WARM_EVERY=1s"}, "ENTREPOT_WARM_EVERY", "want 30s or more"},
		{[]string{"ENTREPOT_WARM_WINDOW=night"}, "ENTREPOT_WARM_WINDOW", "such as 22:00-06:00"},
	} {
		_, found := readConfig(environ(row.pairs...))
		if len(found) != 1 || found[0].name != row.name || !strings.Contains(found[0].text, row.text) {
			t.Errorf("%q: %v, want %s: ... %s", row.pairs, found, row.name, row.text)
		}
	}
}

func TestAWarmListIsReadWhenItChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list")
	write := func(text string, age time.Duration) {
		t.Helper()
		at := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(file, []byte(text), 0o644), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write("alpine\n", time.Hour)
	l := newWarmList(mustLoad(t, "ENTREPOT_WARM_FILE="+file))
	want := func(images int, bad bool) {
		t.Helper()
		if got, err := l.read(); len(got) != images || (err != nil) != bad {
			t.Errorf("%v, %v; want %d", got, err, images)
		}
	}
	want(1, false)
	want(1, false)
	write("alpine\ndebian\n", time.Minute)
	want(2, false)
	write("alpine\n:::\n", time.Second) // what is no image is left out
	want(1, true)
	want(1, true)
	write("\ufeffalpine\r\n:::\r\ndebian\r\n", time.Millisecond)
	want(2, true)
	write("# nothing any more\n", 0)
	want(0, false)
}

// A slip of the pen keeps neither the server from starting nor the other images from
// coming, and is told wherever an operator looks; so is a list that is gone.
func TestAWarmListThatCannotBeReadIsTold(t *testing.T) {
	file := writeFile(t, "team/app:1\n\n:x\n"+strings.Repeat("a", 300)+"\n")
	_, p, o, _, _ := warmWorld(t, "ENTREPOT_WARM_FILE="+file, "ENTREPOT_WARM_PLATFORMS=all")
	for !strings.Contains(o.must("warm"), `"status":"warm"`) {
		if t.Context().Err() != nil {
			t.Fatal(o.must("warm"))
		}
	}
	why := `":x": .* \(line 3 of file .*, and 1 line more\)`
	wantLines(t, o.must("warm", "--table"), "some of the list was left out: "+why, "IMAGE .*", "docker.io/team/app:1 +warm .*")
	wantLines(t, o.must("warm"), `.*"repository":"docker.io/team/app".*`, `\{"count":1,"error":".*","partial":true\}`)
	wantLines(t, o.must("status", "--table"), "WARM .* 1 of 1 here", " +ENTREPOT_WARM_FILE cannot be taken as it is: \":x\": .*")
	if status := o.must("status", "--json"); !strings.Contains(status, `"warmError":"\":x\": `) {
		t.Errorf("status says %s", status)
	}
	if _, scrape, _ := get(t, newClient(t), p.admin+"/metrics"); !strings.Contains(scrape, "\nentrepot_warm_list_failed 1\n") {
		t.Error("no metric tells of it")
	}
	if !strings.Contains(p.log.String(), "warm list: read, but for what is no image") {
		t.Error("the log does not say so")
	}
}

// A list of which no line is an image is none, and not a setting that is missing.
func TestAWarmListOfNoImagesIsTold(t *testing.T) {
	_, _, o, _, _ := warmWorld(t, "ENTREPOT_WARM_FILE="+writeFile(t, ":x\n"))
	for !strings.Contains(o.must("warm"), `"error":`) {
		if t.Context().Err() != nil {
			t.Fatal(o.must("warm"))
		}
	}
	wantLines(t, o.must("warm", "--table"), `the list cannot be read as it is: ":x": .*`, "no image is kept warm: no line of the list is an image")
	wantLines(t, o.must("warm"), `\{"count":0,"error":".*"\}`)
}

// That a list is too long is told beside its first line that is no image.
func TestAWarmListThatIsTooLongIsTold(t *testing.T) {
	lines := []string{":x", ":y"}
	for i := range warm.MaxImages + 1 {
		lines = append(lines, fmt.Sprint("team/app:", i))
	}
	images, err := parseImages(mustLoad(t).Names(), lines, "")
	if want := `there are 10001 images: want 10000 at most; ":x": `; len(images) != warm.MaxImages || err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), " (and 1 line more)") {
		t.Errorf("%d images, %v; want %s", len(images), err, want)
	}
}

// Where a relative file was looked for is said while the server runs, too.
func TestARelativeFileThatGoesMissingIsSaidToBe(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"images", "password"} {
		if err := os.WriteFile(name, []byte("alpine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list := newWarmList(mustLoad(t, "ENTREPOT_WARM_FILE=images"))
	secret, err := newSecretFile("password")
	if err != nil {
		t.Fatal(err)
	}
	reads := map[string]func() error{
		"images":   func() error { _, err := list.read(); return err },
		"password": func() error { _, err := secret.Value(); return err },
	}
	for name, read := range reads {
		if err := errors.Join(read(), os.Remove(name)); err != nil {
			t.Fatal(err)
		}
		if err := read(); err == nil || strings.Count(err.Error(), " (in ") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What clients may not pull is not fetched for them either.
func TestWarmingAsksThePolicy(t *testing.T) {
	hub, _, o, _, _ := warmWorld(t, "ENTREPOT_POLICY_0_MATCH=docker.io/team/*", "ENTREPOT_POLICY_0_ACTION=deny")
	o.refused(1, []string{"warm docker.io/team/app:1: policy: ", "denies"}, "warm", "team/app:1")
	if n := hub.Count(ocitest.Match{Repo: "team/app", Method: "GET", Role: ocitest.Registry}); n != 0 {
		t.Errorf("%d GETs for what is denied", n)
	}
	o.must("warm", "alpine")
}

// An image of the list is told of as evicted as soon as it was pruned.
func TestWhatIsPrunedIsNotWarm(t *testing.T) {
	_, _, o, _, _ := warmWorld(t, "ENTREPOT_WARM=team/app:1,alpine")
	await := func(what string, isSo func() bool) {
		t.Helper()
		for !isSo() {
			if t.Context().Err() != nil {
				t.Fatalf("%s:\n%s", what, o.must("warm"))
			}
		}
	}
	await("not all is fetched", func() bool { return o.status().Warm["warm"] == 2 })
	o.must("rm", "--all", "team/app")
	await("something is in use", func() bool {
		o.must("prune", "--unused", "1s")
		return strings.HasPrefix(o.must("verify", "--table"), "read 0 files")
	})
	wantLines(t, o.must("warm", "--table"), "IMAGE .*", "docker.io/library/alpine:latest +evicted .*", "docker.io/team/app:1 +evicted .*")
	wantLines(t, o.must("status", "--table"), "WARM .* 0 of 2 here, 2 evicted")
}

// Where credentials are in play, what one image has shown to be its own is not yet
// another's: that reads it once.
func TestImagesThatShareAForeignLayerAreWarmed(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.AddUser("robot", "hunter2")
	place := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	layer := ocitest.Blob(9, 50_000).As("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
	place.PushBlob("windows/servercore", layer)
	at := place.URL() + "/v2/windows/servercore/blobs/" + layer.Digest.String()
	for i, repo := range []string{"team/one", "team/other"} {
		hub.Push(repo, "1", ocitest.ImageSpec{Docker: true, Layers: []ocitest.Content{layer, ocitest.Blob(uint64(i), 100)}, URLs: map[oci.Digest][]string{layer.Digest: {at}}}.Build())
		hub.DeleteDigest(repo, layer.Digest)
	}
	dir := t.TempDir()
	p := startProgram(t, hub, "ENTREPOT_DATA="+dir, "ENTREPOT_FOREIGN_HOSTS="+place.URL()+","+place.CDNURL(), "ENTREPOT_UPSTREAM_0_USERNAME=robot", "ENTREPOT_UPSTREAM_0_PASSWORD=hunter2")
	o := operator{t, environ("ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_DATA="+dir, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))}
	for _, name := range []string{"team/one:1", "team/other:1"} {
		wantLines(t, o.must("warm", "--table", name), "docker.io/"+name+" fetched .*")
		wantLines(t, o.must("warm", "--table", name), "docker.io/"+name+" is held already: .*")
	}
}
