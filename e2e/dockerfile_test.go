//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"

	"github.com/google/go-cmp/cmp"
)

const buildTimeout = 8 * time.Minute // two slow cores compile everything, the standard library too

// The Dockerfile as it stands: built by a real daemon that pulls its base image
// through the cache, then run as a cache itself.
func TestDockerfile(t *testing.T) {
	s := newSite(t)
	golang := toolchain(t)
	s.hub.Push("library/golang", "1.26", golang)
	image := newHello(t, "hello through a container", false, 64<<10)
	s.hub.Push("library/e2e-container", "latest", image.Image)

	d := newDocker(t, s, tempDir(t), s.clientFile(t, "docker"))
	if _, err := try(t.Context(), buildTimeout, d.env, "docker", "build", "--network", "host",
		"--build-arg", "GOPROXY="+moduleProxy(t), "--build-arg", "VERSION=v0.0.1-e2e", "--tag", "entrepot", ".."); err != nil {
		t.Fatal(err)
	}
	want := s.hub.cold("library/golang", "1.26", golang)
	if diff := cmp.Diff(want, s.hub.spent()); diff != "" {
		t.Errorf("the base image did not cost the upstream what it should (-want +got):\n%s", diff)
	}
	if got := d.run(t, "run", "--rm", "--network", "none", "entrepot", "version"); !strings.HasPrefix(got, "entrepot v0.0.1-e2e ") {
		t.Errorf("entrepot version printed %q, want the version it was built with", got)
	}
	checkContents(t, d)

	// Its port is the one that the test's own cache had.
	addr := s.addr
	s.stopCache(t)
	d.run(t, "run", "--detach", "--name", "cache", "--network", "host", "--health-interval", "1s",
		"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", // as in deploy/compose
		"--env", "ENTREPOT_LISTEN="+addr, "--env", "ENTREPOT_ADMIN_LISTEN=", "--env", "ENTREPOT_MIN_FREE=0",
		"--env", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "--env", "ENTREPOT_UPSTREAM_0_URL="+s.hub.URL(), "entrepot")
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := try(context.WithoutCancel(t.Context()), commandTimeout, d.env, "sh", "-c", "docker logs cache 2>&1")
			t.Logf("docker logs: %v\n%s", err, logs)
		}
	})
	awaitHealthy(t, d, "cache")
	d.run(t, "pull", "e2e-container")
	d.greets(t, "e2e-container", image.greeting)
	d.run(t, "stop", "cache")
	if got := d.run(t, "inspect", "--format", "{{.State.ExitCode}}", "cache"); strings.TrimSpace(got) != "0" {
		t.Errorf("after docker stop the exit code is %s, want 0", got)
	}
}

// awaitHealthy waits for the container's own health check.
func awaitHealthy(t *testing.T, d docker, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	poll := time.NewTicker(200 * time.Millisecond) // docker wait knows no health
	defer poll.Stop()
	for {
		status := strings.TrimSpace(d.run(t, "inspect", "--format", "{{.State.Health.Status}}", name))
		if status == "healthy" {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("the container is %s", status)
		}
	}
}

// checkContents compares all files of the image with those that it may have.
func checkContents(t *testing.T, d docker) {
	t.Helper()
	d.run(t, "create", "--name", "contents", "entrepot")
	archive := filepath.Join(tempDir(t), "contents.tar")
	d.run(t, "export", "--output", archive, "contents")
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := []string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "data/" && (h.Uid != 65532 || h.Gid != 65532) {
			t.Errorf("/data belongs to %d:%d, want 65532:65532", h.Uid, h.Gid)
		}
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			got = append(got, h.Name)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"entrepot", "etc/ssl/certs/ca-certificates.crt"}, got); diff != "" {
		t.Errorf("files in the image (-want +got):\n%s", diff)
	}
	if got := d.run(t, "inspect", "--format", "{{.Config.User}} {{.Config.Volumes}}", "contents"); got != "65532:65532 map[/data:{}]\n" {
		t.Errorf("user and volumes are %s", got)
	}
}

// moduleProxy serves the modules that this build used, so that the one in the
// container needs nothing from outside.
func moduleProxy(t *testing.T) string {
	t.Helper()
	modules := strings.TrimSpace(run(t, os.Environ(), "go", "env", "GOMODCACHE"))
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(modules, "cache", "download"))))
	t.Cleanup(server.Close)
	return server.URL
}

// toolchain stands in for the golang image, which tests cannot fetch: the Go of
// this machine, a busybox and the CA roots.
func toolchain(t *testing.T) ocitest.Image {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}),
		addFile(w, "etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt"),
		addFile(w, "bin/busybox", "/bin/busybox"),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/sh", Linkname: "busybox"}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/mkdir", Linkname: "busybox"}),
		addToolchain(w, strings.TrimSpace(run(t, os.Environ(), "go", "env", "GOROOT"))),
		w.Close(),
	)
	if err != nil {
		t.Fatal(err)
	}
	content := ocitest.Bytes("application/vnd.oci.image.layer.v1.tar", layer.Bytes())
	return runnable(t, false, oci.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil, ocitest.Layer{Content: content, DiffID: content.Digest})
}

// addToolchain adds what of a Go root a build without cgo reads.
func addToolchain(w *tar.Writer, root string) error {
	unused := []string{"api", "doc", "misc", "test"}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (slices.Contains(unused, name) || entry.Name() == "testdata"):
			return fs.SkipDir
		case !entry.Type().IsRegular() || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		return addFile(w, filepath.Join("usr/local/go", name), path)
	})
}

func addFile(w *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
