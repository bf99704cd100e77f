package store

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

// TestWhatIsRecalledIsTrue: what was found together a moment ago is found again,
// but never for another repository, and no longer once its marker or its bytes
// have changed or gone.
func TestWhatIsRecalledIsTrue(t *testing.T) {
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	content := []byte(`{"schemaVersion":2,"mediaType":"` + mediaType + `","layers":[]}`)
	dg := oci.Sum(content)
	mine, others := oci.Repository{Host: oci.DockerHub, Path: "library/app"}, oci.Repository{Host: oci.DockerHub, Path: "library/other"}
	for _, row := range []struct {
		name   string
		change func(t *testing.T, d *Disk) error
		known  bool // afterwards, still
	}{
		{name: "nothing", change: func(*testing.T, *Disk) error { return nil }, known: true},
		{name: "marked as it is", known: true, change: func(_ *testing.T, d *Disk) error {
			return d.Mark(mine, dg, Marker{MediaType: mediaType, Size: int64(len(content)), State: Proven})
		}},
		{name: "marked anew", change: func(_ *testing.T, d *Disk) error {
			return d.Mark(mine, dg, Marker{MediaType: "application/x", Size: 2, State: Proven})
		}},
		{name: "the manifest is removed", change: func(t *testing.T, d *Disk) error {
			t.Helper()
			return d.RemoveManifest(t.Context(), mine, dg)
		}},
		{name: "the repository is removed", change: func(t *testing.T, d *Disk) error {
			t.Helper()
			return d.RemoveRepository(t.Context(), mine)
		}},
		{name: "the marker was removed by hand", change: func(_ *testing.T, d *Disk) error {
			err := os.Remove(filepath.Join(d.root.Name(), markerName(mine, dg)))
			time.Sleep(recheck - 100*time.Millisecond) // it was read 200 ms ago
			return err
		}},
		{name: "the bytes are found damaged", change: func(t *testing.T, d *Disk) error {
			t.Helper()
			file := filepath.Join(d.root.Name(), blobName(dg))
			if err := errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, bytes.ToUpper(content), 0o644), os.Chmod(file, proofMode)); err != nil {
				return err
			}
			_, err := d.Verify(t.Context(), func(Verified) {})
			return err
		}},
		{name: "the bytes are evicted", change: func(t *testing.T, d *Disk) error {
			t.Helper()
			info, err := d.root.Stat(blobName(dg))
			if err != nil {
				return err
			}
			if freed, _ := d.evict(candidate{entry: entry{dir: path.Dir(blobName(dg)), name: path.Base(blobName(dg)), when: info.ModTime()}, digest: dg}); freed == 0 {
				t.Error("nothing was evicted")
			}
			return nil
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, err := Open(t.Context(), Config{Dir: t.TempDir(), Memory: 1 << 20})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				marker := Marker{MediaType: mediaType, Size: int64(len(content)), State: Proven}
				if err := errors.Join(d.Put(dg, content), d.Mark(mine, dg, marker)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // the memory tier takes its time
				time.Sleep(200 * time.Millisecond)
				d.Remember(others, dg, marker)
				d.Remember(mine, dg, Marker{MediaType: "application/wrong"})
				if m, _, known := d.Recall(mine, dg); known {
					t.Fatalf("what nobody found is known: %+v", m)
				}
				d.Remember(mine, dg, marker)
				if m, got, known := d.Recall(mine, dg); !known || m != marker || !bytes.Equal(got, content) {
					t.Fatalf("%+v, %q, %v", m, got, known)
				}
				if _, _, known := d.Recall(others, dg); known {
					t.Error("another repository has it too")
				}
				if err := row.change(t, d); err != nil {
					t.Fatal(err)
				}
				if m, got, known := d.Recall(mine, dg); known != row.known {
					t.Errorf("%+v, %q, %v", m, got, known)
				}
			})
		})
	}
}
