package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"entrepot/oci"
)

// TestFillAlteredWhileItRuns: what somebody does to its file, at any time before
// it is content, becomes no content, and completes at no reader.
func TestFillAlteredWhileItRuns(t *testing.T) {
	b := content(1, 6*mib)
	zeros := append(make([]byte, 3*mib), b[3*mib:]...) // these may be a hole
	size := int64(len(b))
	cut := func(n int64) func(string) error {
		return func(name string) error { return os.Truncate(name, n) }
	}
	// copyBack is cp -a of what was copied when 1 MiB was there.
	copyBack := func(name string) error { return errors.Join(os.Truncate(name, mib), os.Truncate(name, size)) }
	other := func(name string) error {
		return errors.Join(os.Remove(name), os.WriteFile(name, make([]byte, size), proofMode))
	}
	alter := func(name string) error {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte{b[9] ^ 1}, 9)
		return errors.Join(err, f.Close())
	}
	for name, tc := range map[string]struct {
		content []byte
		at      string // halfway, whole, or while it is synced
		do      func(name string) error
		commit  error // of Commit
		kept    bool
	}{
		"untouched":                      {b, "halfway", func(string) error { return nil }, nil, true},
		"untouched, a hole of zeros":     {zeros, "whole", func(name string) error { return os.Truncate(name, size) }, nil, true},
		"cut":                            {b, "halfway", cut(1000), ErrMismatch, false},
		"cut inside a block":             {b, "halfway", cut(3*mib - 5), ErrMismatch, false},
		"cut when it is whole":           {b, "whole", cut(1000), ErrMismatch, false},
		"cut by a byte when it is whole": {b, "whole", cut(size - 1), ErrMismatch, false},
		"longer when it is whole":        {b, "whole", cut(size + 1), ErrMismatch, false},
		"cut while it is synced":         {b, "sync", cut(1000), ErrDisk, false},
		"copied over":                    {b, "halfway", copyBack, ErrMismatch, false},
		"copied over when it is whole":   {b, "whole", copyBack, ErrMismatch, false},
		"altered while it is synced":     {b, "sync", alter, ErrDisk, false},
		"replaced":                       {b, "halfway", other, ErrDisk, false},
		"replaced while it is synced":    {b, "sync", other, ErrDisk, false},
		"removed":                        {b, "halfway", os.Remove, ErrDisk, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, dg := t.TempDir(), oci.Sum(tc.content)
			at := filepath.Join(dir, fillName(dg))
			syncing := false
			d := openDisk(t, dir, func(op Op, of string) error {
				if op == OpSync && syncing && of == fillName(dg) {
					syncing = false
					return tc.do(at)
				}
				return nil
			})
			f, err := d.Fill(dg, busybox)
			if err != nil {
				t.Fatal(err)
			}
			r := f.Open(t.Context(), 0, -1)
			defer r.Close()
			if err := f.SetSize(size); err != nil {
				t.Fatal(err)
			}
			for from := int64(0); from < size; from += 3 * mib {
				if bytes.Equal(tc.content[from:from+8], make([]byte, 8)) {
					if !f.land(tc.content[from:from+3*mib], from) { // as a file system has it that does not store zeros
						t.Fatal("surplus")
					}
				} else if _, err := f.WriteAt(tc.content[from:from+3*mib], from); err != nil {
					t.Fatal(err)
				}
				if from == 0 && tc.at == "halfway" {
					if err := tc.do(at); err != nil {
						t.Fatal(err)
					}
				}
			}
			if tc.at == "whole" {
				if err := tc.do(at); err != nil {
					t.Fatal(err)
				}
			}
			syncing = tc.at == "sync"
			if err := f.Commit(); !errors.Is(err, tc.commit) || (err == nil) != tc.kept {
				t.Errorf("commit: %v, want %v", err, tc.commit)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(r); err == nil && !bytes.Equal(got, tc.content) && tc.at != "sync" {
				t.Errorf("a reader got the whole, %d bytes, and it is wrong", len(got))
			}
			got, err := readAll(t, d, dg, size)
			if tc.kept && (err != nil || !bytes.Equal(got, tc.content)) || !tc.kept && !errors.Is(err, ErrNotHeld) {
				t.Errorf("held afterwards: %d bytes, %v; want it held: %v", len(got), err, tc.kept)
			}
		})
	}
}
