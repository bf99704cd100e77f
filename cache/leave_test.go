package cache

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"

	"entrepot/oci"
)

// TestWhatAReaderLeavesBehind: of a range whose reader leaves in the middle a
// window more comes, and no more; where upstream ignores ranges all of the blob
// does, since each other piece would cost all before it again.
func TestWhatAReaderLeavesBehind(t *testing.T) {
	const size, offset, length = 20 * mib, 2 * mib, 10 * mib
	content := pattern(1, size)
	for _, row := range []struct {
		name     string
		noRanges bool
		least    int64 // bytes from upstream
		most     int64
		kept     bool
	}{
		{"a window", false, mib + window, mib + window + 2*pieceSize, false},
		{"all, without ranges", true, size, size, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource()
				s.noRanges = row.noRanges
				d := s.pushBlob(alpine, content)
				open := make(chan int64)
				s.body = func(_ int, c []byte, off int64) io.Reader {
					return &gated{r: bytes.NewReader(c[off:]), open: open, left: max(0, offset+mib-off)}
				}
				c := newCache(t, s, Config{})
				defer closeCache(t, c)
				b, err := c.Blob(t.Context(), alpine, d, oci.Ask{Ranged: true})
				if err != nil {
					t.Fatal(err)
				}
				r, err := b.Open(t.Context(), offset, length)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(io.LimitReader(r, mib)); err != nil || !bytes.Equal(got, content[offset:][:mib]) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				close(open)
				synctest.Wait()
				if moved := s.bytesMoved(); moved < row.least || moved > row.most {
					t.Errorf("%d bytes came, want %d to %d", moved, row.least, row.most)
				}
				if _, err := c.disk.Size(d); (err == nil) != row.kept {
					t.Errorf("kept: %v, want %v", err, row.kept)
				}
			})
		})
	}
}
