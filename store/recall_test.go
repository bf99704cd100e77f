package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// TestReadInKnowsAtOnceWhatChanged: what was found together a moment ago is
// served again, but never for another repository, nor after its marker or its
// bytes have gone.
func TestReadInKnowsAtOnceWhatChanged(t *testing.T) {
	content := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}`)
	dg := oci.Sum(content)
	mine, others := oci.Repository{Host: oci.DockerHub, Path: "library/app"}, oci.Repository{Host: oci.DockerHub, Path: "library/other"}
	for _, row := range []struct {
		name   string
		change func(t *testing.T, d *Disk)
		want   error
	}{
		{name: "nothing", change: func(*testing.T, *Disk) {}},
		{name: "something else is marked", change: func(t *testing.T, d *Disk) {
			t.Helper()
			if err := d.Mark(others, dg, Marker{Size: 1, State: Proven}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "removed", change: func(t *testing.T, d *Disk) {
			t.Helper()
			if err := d.RemoveManifest(t.Context(), mine, dg); err != nil {
				t.Fatal(err)
			}
		}, want: ErrNotHeld},
		{name: "marked anew", change: func(t *testing.T, d *Disk) {
			t.Helper()
			if err := d.Mark(mine, dg, Marker{MediaType: "application/x", Size: 2, State: Proven}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "removed by hand, a while ago", change: func(t *testing.T, d *Disk) {
			t.Helper()
			if err := os.Remove(filepath.Join(d.root.Name(), markerName(mine, dg))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(recheck + time.Millisecond)
		}, want: ErrNotHeld},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, err := Open(t.Context(), Config{Dir: t.TempDir(), Memory: 1 << 20})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				if err := errors.Join(d.Put(dg, content), d.Mark(mine, dg, Marker{MediaType: "application/vnd.oci.image.manifest.v1+json", Size: int64(len(content)), State: Proven})); err != nil {
					t.Fatal(err)
				}
				for d.recall.find(mine, dg, time.Now()) == nil { // the memory tier takes its time
					if _, got, err := d.ReadIn(t.Context(), mine, dg, 1<<20); err != nil || !bytes.Equal(got, content) {
						t.Fatalf("%q, %v", got, err)
					}
					time.Sleep(time.Millisecond)
				}
				if _, _, err := d.ReadIn(t.Context(), others, dg, 1<<20); !errors.Is(err, ErrNotHeld) {
					t.Errorf("another repository: %v", err)
				}
				row.change(t, d)
				held, err := d.Marker(mine, dg)
				m, got, rerr := d.ReadIn(t.Context(), mine, dg, 1<<20)
				if !errors.Is(rerr, row.want) || m != held || rerr == nil && (err != nil || !bytes.Equal(got, content)) {
					t.Errorf("%+v, %q, %v; the marker is %+v, %v", m, got, rerr, held, err)
				}
			})
		})
	}
}
