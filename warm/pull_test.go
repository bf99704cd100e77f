package warm_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/warm"
)

// An image costs what a client's pull of it costs, for the platforms that are
// wanted; what is held costs a HEAD.
func TestPullFetchesThePlatformsThatAreWanted(t *testing.T) {
	amd, arm, windows := on("amd64", 1, 3000, 50_000), on("arm64", 2, 4000), ocitest.ImageSpec{Platform: oci.Platform{OS: "windows", Architecture: "amd64"}, Layers: []ocitest.Content{ocitest.Blob(9, 100)}}.Build()
	index := ocitest.Index(amd, arm, windows)
	for _, tc := range []struct {
		platforms string
		want      []ocitest.Image
	}{
		{"linux/amd64", []ocitest.Image{amd}},
		{"linux/arm64,windows/amd64", []ocitest.Image{arm, windows}},
		{"all", []ocitest.Image{amd, arm, windows}},
	} {
		t.Run(tc.platforms, func(t *testing.T) {
			simulate(t, ocitest.Habits{}, func(w *world) {
				w.hub.Push("library/alpine", "latest", index)
				w.login("library/alpine")
				im, want := hubImage("library/alpine", "latest"), platforms(w.t, tc.platforms)
				var progress warm.Progress
				res, err := w.puller.Pull(w.t.Context(), im, want, 0, &progress)
				if err != nil {
					w.t.Fatal(err)
				}
				bytes, blobs := index.Size, 0
				for _, image := range tc.want {
					bytes += image.Size
					for _, b := range image.Blobs {
						bytes += b.Size
						blobs++
					}
				}
				if res.Digest != index.Digest || res.Manifests != 1+len(tc.want) || res.Blobs != blobs || res.Bytes != bytes || res.Fetched != bytes {
					w.t.Errorf("%+v, want %d manifests, %d blobs, %d bytes, all of them fetched", res, 1+len(tc.want), blobs, bytes)
				}
				if now := progress.Now(); now.BlobsDone != blobs || now.BytesDone != now.Bytes || now.Waiting != "" {
					w.t.Errorf("at the end: %+v", now)
				}
				w.wantAsked(append(gets("library/alpine", tc.want...), "HEAD manifest library/alpine:latest", "GET manifest library/alpine@"+short(index.Digest))...)

				res, err = w.puller.Pull(w.t.Context(), im, want, 0, new(warm.Progress))
				if err != nil || res.Fetched != 0 || res.Bytes != bytes {
					w.t.Errorf("again: %+v, %v", res, err)
				}
				w.wantAsked("HEAD manifest library/alpine:latest")

				// By digest nothing is left to ask.
				if _, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", index.Digest.String()), want, 0, new(warm.Progress)); err != nil {
					w.t.Error(err)
				}
				w.wantAsked()
			})
		})
	}
}

// Of what is wanted, what an image is not for is named, by a list too.
func TestPullNamesThePlatformsThatAreNotThere(t *testing.T) {
	for _, tc := range []struct {
		name  string
		image ocitest.Image
		want  string
		names string
	}{
		{"an index", ocitest.Index(on("amd64", 1, 10), on("arm64", 2, 10)), "linux/amd64,windows/amd64,linux/arm/v7", "[windows/amd64 linux/arm/v7]"},
		{"a manifest", on("amd64", 1, 10), "linux/amd64,windows/amd64", "[windows/amd64]"},
		{"a manifest for another", on("amd64", 1, 10), "windows/amd64", "[windows/amd64]"},
		{"all of them", on("amd64", 1, 10), "all", "[]"},
		{"nothing missing", ocitest.Index(on("amd64", 1, 10), on("arm64", 2, 10)), "linux/amd64", "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			simulate(t, ocitest.Habits{}, func(w *world) {
				im, want := hubImage("library/alpine", "latest"), platforms(w.t, tc.want)
				w.hub.Push("library/alpine", "latest", tc.image)
				for range 2 {
					res, err := w.puller.Pull(w.t.Context(), im, want, 0, new(warm.Progress))
					if err != nil || fmt.Sprint(res.Absent) != tc.names {
						w.t.Errorf("%v, %v; want %s", res.Absent, err, tc.names)
					}
				}
				l, stop := w.list(warm.Config{Platforms: want}, im)
				defer stop()
				synctest.Wait()
				if e := wantEntry(w.t, l, im, warm.Warm); fmt.Sprint(e.Absent) != tc.names {
					w.t.Errorf("the list names %v", e.Absent)
				}
			})
		})
	}
}

func TestPullSaysWhatAnIndexHasInstead(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/alpine", "latest", ocitest.Index(on("amd64", 1, 10), on("arm64", 2, 10)))
		_, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), platforms(w.t, "linux/s390x"), time.Hour, new(warm.Progress))
		if err == nil || !strings.Contains(err.Error(), "docker.io/library/alpine has nothing for linux/s390x, but for linux/amd64, linux/arm64") {
			w.t.Errorf("error %v", err)
		}
	})
}

// What is limited or down is waited for, as long as upstream says, and said.
func TestPullWaitsForItsUpstream(t *testing.T) {
	for _, tc := range []struct {
		name    string
		fault   *ocitest.Fault
		waiting string
		atLeast time.Duration
	}{
		{"429 with Retry-After", &ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest, Method: "GET"}, Effect: ocitest.RetryLater(429, "300"), Times: 1}, "injected by a test", 5 * time.Minute},
		{"503 of blobs", &ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Kind: ocitest.BlobKind}, Effect: ocitest.RetryLater(503, "120"), Times: 1}, "", 2 * time.Minute}, // a fill sits that out by itself
		{"down", &ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest}, Effect: ocitest.Answer(502), Times: 3}, "answers 502", time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			simulate(t, ocitest.Habits{}, func(w *world) {
				image := on("amd64", 1, 1000, 2000)
				w.hub.Push("library/alpine", "latest", image)
				w.login("library/alpine")
				w.hub.Inject(tc.fault)
				began := time.Now()
				var progress warm.Progress
				done := make(chan error, 1)
				go func() {
					_, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), warm.Platforms{}, time.Hour, &progress)
					done <- err
				}()
				synctest.Wait()
				if now := progress.Now(); !strings.Contains(now.Waiting, tc.waiting) || tc.waiting != "" && now.Until.Before(began.Add(tc.atLeast)) {
					w.t.Errorf("while it waits: %+v", now)
				}
				if err := <-done; err != nil {
					w.t.Fatal(err)
				}
				if took := time.Since(began); took < tc.atLeast || took > tc.atLeast+time.Minute {
					w.t.Errorf("it took %v, want a little more than %v", took, tc.atLeast)
				}
			})
		})
	}
}

// However often a host that is down is tried, it is said in the same words: the time
// stands beside them.
func TestWhatIsWaitedForIsOneText(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/alpine", "latest", on("amd64", 1, 1000))
		w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Answer(502)})
		var progress warm.Progress
		said, tries := map[string]bool{}, map[time.Time]bool{}
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Minute)
		defer cancel()
		work := make(chan struct{})
		go func() {
			defer close(work)
			_, _ = w.puller.Pull(ctx, hubImage("library/alpine", "latest"), warm.Platforms{}, time.Hour, &progress)
		}()
		for ctx.Err() == nil {
			time.Sleep(time.Second)
			if now := progress.Now(); now.Waiting != "" {
				said[now.Waiting], tries[now.Until] = true, true
			}
		}
		<-work
		if len(said) != 1 || len(tries) < 5 {
			w.t.Errorf("said in %d tries: %q", len(tries), slices.Collect(maps.Keys(said)))
		}
	})
}

func TestPullGivesUpInTheEnd(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/alpine", "latest", on("amd64", 1, 1000))
		w.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: ocitest.Answer(502)})
		began := time.Now()
		_, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), warm.Platforms{}, 10*time.Minute, new(warm.Progress))
		if !oci.IsRetryable(err) || time.Since(began) > 10*time.Minute || time.Since(began) < 8*time.Minute {
			w.t.Errorf("after %v: %v", time.Since(began), err)
		}
		w.hub.ClearFaults()
		w.hub.Untag("library/alpine", "latest")
		w.cache.Forget()
		time.Sleep(time.Hour)
		began = time.Now()
		if _, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), warm.Platforms{}, time.Hour, new(warm.Progress)); !errors.Is(err, oci.ErrManifestUnknown) || time.Since(began) > 0 {
			w.t.Errorf("what does not exist, after %v: %v", time.Since(began), err)
		}
	})
}

// A setting does not pass by waiting.
func TestPullDoesNotWaitForWhatIsOffline(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/alpine", "latest", on("amd64", 1, 1000))
		w.cfg.Offline = true
		w.restart()
		began := time.Now()
		_, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), warm.Platforms{}, time.Hour, new(warm.Progress))
		if err == nil || !strings.Contains(err.Error(), "is set to be offline") || time.Since(began) > 0 {
			w.t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// The part of a quota that is kept for clients stays for them.
func TestPullLeavesTheReserve(t *testing.T) {
	simulate(t, ocitest.Habits{PullLimit: 20}, func(w *world) {
		for i := range 30 {
			w.hub.Push("library/app", string(rune('a'+i%26))+string(rune('0'+i/26)), on("amd64", uint64(i), 10))
		}
		failed := 0
		for i := range 30 {
			_, err := w.puller.Pull(w.t.Context(), hubImage("library/app", string(rune('a'+i%26))+string(rune('0'+i/26))), warm.Platforms{}, 0, new(warm.Progress))
			if err != nil {
				failed++
				if !errors.Is(err, oci.ErrTooManyRequests) || !strings.Contains(err.Error(), "kept for clients") || oci.RetryAfter(err) == 0 {
					w.t.Fatal(err)
				}
			}
		}
		if n := w.hub.CountedPulls(); n != 18 || failed != 12 {
			w.t.Errorf("%d counted pulls, %d refused; want 18 of 20, and 12", n, failed)
		}
		// A client has them.
		for i := 28; i < 30; i++ {
			res, _, err := w.cache.Resolve(w.t.Context(), hubImage("library/app", "").Repository, string(rune('a'+i%26))+string(rune('0'+i/26)), oci.Ask{})
			if err == nil {
				_, _, err = w.cache.Manifest(w.t.Context(), hubImage("library/app", "").Repository, res.Digest, oci.Ask{})
			}
			if err != nil {
				w.t.Errorf("a client: %v", err)
			}
		}
	})
}

// What came before the end of a process need not come again.
func TestPullGoesOnAfterARestart(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		const size = 8 << 20
		image := on("amd64", 1, size)
		w.hub.Push("library/alpine", "latest", image)
		layers := ocitest.Match{Role: ocitest.CDN, Reference: image.Blobs[1].Digest.String()}
		gate := w.hub.Gate(layers)
		gate.To(6 << 20)
		ctx, cancel := context.WithCancel(w.t.Context())
		var progress warm.Progress
		done := make(chan error, 1)
		go func() {
			_, err := w.puller.Pull(ctx, hubImage("library/alpine", "latest"), warm.Platforms{}, 0, &progress)
			done <- err
		}()
		if err := gate.AwaitHeld(w.t.Context(), 1); err != nil {
			w.t.Fatal(err)
		}
		synctest.Wait()
		if now := progress.Now(); now.BytesDone < 5<<20 || now.BytesDone >= size || now.Bytes != size+image.Blobs[0].Size {
			w.t.Errorf("in the middle: %+v", now)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("a pull that was ended: %v", err)
		}
		w.restart()
		gate.Open()
		w.hub.Reset()
		res, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), warm.Platforms{}, 0, new(warm.Progress))
		if err != nil {
			w.t.Fatal(err)
		}
		if sent := w.hub.Sent(layers); sent > size-(5<<20) {
			w.t.Errorf("%d bytes came again, of which %d were here; result %+v", sent, 6<<20, res)
		} else if res.Fetched != sent {
			w.t.Errorf("it tells of %d bytes fetched, and %d came", res.Fetched, sent)
		}
	})
}

// Layers that are had elsewhere alone are no failure.
func TestPullSkipsForeignLayers(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		near, far := ocitest.Blob(1, 100), ocitest.Blob(2, 100).As("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
		image := ocitest.ImageSpec{Layers: []ocitest.Content{near, far}, URLs: map[oci.Digest][]string{far.Digest: {"https://elsewhere.example/layer"}}}.Build()
		w.hub.Push("library/windows", "latest", image)
		w.hub.DeleteDigest("library/windows", far.Digest)
		res, err := w.puller.Pull(w.t.Context(), hubImage("library/windows", "latest"), warm.Platforms{}, 0, new(warm.Progress))
		if err != nil || res.Skipped != 1 || res.Blobs != 3 {
			w.t.Errorf("%+v, %v", res, err)
		}
		l, stop := w.list(warm.Config{}, hubImage("library/windows", "latest"))
		defer stop()
		time.Sleep(7 * time.Hour)
		synctest.Wait()
		if e := wantEntry(w.t, l, hubImage("library/windows", "latest"), warm.Warm); e.Skipped != 1 {
			w.t.Errorf("the list tells of %d layers that were skipped", e.Skipped)
		}
	})
}

func TestPullTellsOfAllThatFails(t *testing.T) {
	simulate(t, ocitest.Habits{}, func(w *world) {
		image := on("amd64", 1, 100, 200, 300)
		w.hub.Push("library/alpine", "latest", image)
		for _, b := range image.Blobs[1:3] {
			w.hub.DeleteDigest("library/alpine", b.Digest)
		}
		_, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", "latest"), warm.Platforms{}, time.Hour, new(warm.Progress))
		if !errors.Is(err, oci.ErrBlobUnknown) || !strings.HasPrefix(err.Error(), "sha256:") || !strings.HasSuffix(err.Error(), "(and 1 more of 4 blobs)") {
			w.t.Errorf("error %v", err)
		}
		// What could be had was.
		synctest.Wait()
		if b, err := w.cache.Blob(w.t.Context(), hubImage("library/alpine", "").Repository, image.Blobs[3].Digest, oci.Ask{}); err != nil {
			w.t.Error(err)
		} else if _, out, err := b.Stat(w.t.Context()); err != nil || out.Cache != oci.Hit {
			w.t.Errorf("another layer: %+v, %v", out, err)
		}
	})
}

// An index of a stranger may lead to itself, or to no end.
func TestHostileIndexesEnd(t *testing.T) {
	deep := on("amd64", 1, 10)
	for range 6 {
		deep = ocitest.Index(deep)
	}
	var wide strings.Builder
	wide.WriteString(`{"schemaVersion":2,"layers":[{}`)
	for i := range 10_001 {
		fmt.Fprintf(&wide, `,{"digest":"sha256:%064x","size":1}`, i)
	}
	wide.WriteString(`]}`)
	simulate(t, ocitest.Habits{}, func(w *world) {
		w.hub.Push("library/alpine", "deep", deep)
		w.hub.PushManifest("library/alpine", "wide", ocitest.Bytes("application/vnd.oci.image.manifest.v1+json", []byte(wide.String())))
		for _, tag := range []string{"deep", "wide"} {
			_, err := w.puller.Pull(w.t.Context(), hubImage("library/alpine", tag), warm.Platforms{}, 0, new(warm.Progress))
			if oci.CodeOf(err) != oci.ManifestInvalid {
				w.t.Errorf("%s: error %v", tag, err)
			}
		}
		if n := w.hub.Count(ocitest.Match{Kind: ocitest.BlobKind}); n != 0 {
			w.t.Errorf("%d blobs were asked for", n)
		}
	})
}
