package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"entrepot/oci"
)

// TestContract is what every store promises, however it is set up. Another kind
// of store is another row.
func TestContract(t *testing.T) {
	for name, cfg := range map[string]Config{
		"plain":                 {},
		"memory":                {Memory: 1 << 20},
		"budget":                {Budget: 64 << 20},
		"budget and shares":     {Budget: 64 << 20, Shares: map[string]float64{"docker.io": 0.5}, Memory: 1 << 20},
		"disk space to spare":   {MinFree: Headroom{Bytes: 1}},
		"scrubbed all the time": {ScrubRate: 1 << 30, Memory: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg.Dir, cfg.LockWait = t.TempDir(), time.Nanosecond
			s := &contract{t: t, cfg: cfg}
			s.open()
			t.Cleanup(func() { closeDisk(t, s.Disk) })
			s.content()
			s.fills()
			s.records()
		})
	}
}

// contract holds a store to its promises.
type contract struct {
	*Disk
	t   *testing.T
	cfg Config
}

func (s *contract) open() {
	s.t.Helper()
	d, err := Open(s.t.Context(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Disk = d
}

// reopened runs a check now, and again after a restart.
func (s *contract) reopened(check func()) {
	s.t.Helper()
	check()
	closeDisk(s.t, s.Disk)
	s.open()
	check()
}

// holds says that content is held, whole, in every way to ask.
func (s *contract) holds(b []byte) {
	s.t.Helper()
	dg := oci.Sum(b)
	if n, err := s.Size(dg); n != int64(len(b)) || err != nil {
		s.t.Errorf("size of %d bytes: %d, %v", len(b), n, err)
	}
	for _, want := range []int64{int64(len(b)), -1} {
		if got, err := readAll(s.t, s.Disk, dg, want); err != nil || !bytes.Equal(got, b) {
			s.t.Errorf("open %d bytes, expecting %d: %d, %v", len(b), want, len(got), err)
		}
	}
	if got, err := s.Read(s.t.Context(), dg, 1<<30); err != nil || !bytes.Equal(got, b) {
		s.t.Errorf("read %d bytes: %d, %v", len(b), len(got), err)
	}
	c, err := s.Open(s.t.Context(), dg, int64(len(b)))
	if err != nil {
		s.t.Fatal(err)
	}
	half := int64(len(b) / 2)
	section, err := c.Section(half, c.Size()-half)
	if err != nil {
		s.t.Fatal(err)
	}
	var rest bytes.Buffer
	if _, err := section.WriteTo(&rest); err != nil || !bytes.Equal(rest.Bytes(), b[half:]) {
		s.t.Errorf("second half of %d bytes: %d, %v", len(b), rest.Len(), err)
	}
	_ = section.Close()
}

func (s *contract) lacks(dg oci.Digest) {
	s.t.Helper()
	_, sizeErr := s.Size(dg)
	_, readErr := s.Read(s.t.Context(), dg, 1<<20)
	_, openErr := s.Open(s.t.Context(), dg, -1)
	for _, err := range []error{sizeErr, readErr, openErr} {
		if !errors.Is(err, ErrNotHeld) {
			s.t.Errorf("%s: %v, want that it is not held", dg, err)
		}
	}
}

func (s *contract) content() {
	s.lacks(oci.Sum([]byte("never put")))
	all := [][]byte{nil, content(1, 1), content(2, 3000), content(3, 300_000)}
	for _, b := range all {
		if err := errors.Join(s.PutFrom(oci.Sum(b), b, "docker.io"), s.Put(oci.Sum(b), b)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.Put(oci.Sum([]byte("right")), []byte("wrong")); err == nil {
		s.t.Error("wrong bytes passed the gate")
	}
	s.reopened(func() {
		for _, b := range all {
			s.holds(b)
		}
		s.lacks(oci.Sum([]byte("right")))
	})
}

// fills: bytes may come in any order and with pauses, and are content once all
// are right.
func (s *contract) fills() {
	b := content(4, 5*mib+3)
	dg := oci.Sum(b)
	f := s.fill(dg, int64(len(b)))
	ctx, leave := context.WithCancel(s.t.Context())
	gone, early := f.Open(ctx, 10, -1), f.Open(s.t.Context(), 0, -1)
	leave()
	if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		s.t.Errorf("a reader that left: %v", err)
	}
	if _, err := f.WriteAt(b[4*mib:], 4*mib); err != nil {
		s.t.Fatal(err)
	}
	s.lacks(dg)
	if err := errors.Join(gone.Close(), f.Close()); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.ReadAll(early); err == nil {
		s.t.Error("a fill that was given up ended cleanly")
	}
	_ = early.Close()
	closeDisk(s.t, s.Disk)
	s.open()
	f = s.fill(dg, int64(len(b)))
	if n := f.Landed(); n != mib+3 {
		s.t.Errorf("after a restart %d bytes are there, want %d", n, mib+3)
	}
	r := f.Open(s.t.Context(), 0, -1)
	if err := fillAll(s.t, f, b); err != nil {
		s.t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
		s.t.Errorf("a reader got %d bytes, %v", len(got), err)
	}
	if err := errors.Join(r.Close(), f.Close()); err != nil {
		s.t.Error(err)
	}
	wrong := s.fill(oci.Sum([]byte("right")), 5)
	if err := fillAll(s.t, wrong, []byte("wrong")); !errors.Is(err, ErrMismatch) {
		s.t.Errorf("commit of wrong bytes: %v", err)
	}
	if err := wrong.Close(); err != nil {
		s.t.Error(err)
	}
	s.reopened(func() {
		s.holds(b)
		s.lacks(oci.Sum([]byte("right")))
	})
}

func (s *contract) fill(dg oci.Digest, size int64) *Fill {
	s.t.Helper()
	f, err := s.Fill(dg, busybox)
	if err == nil {
		err = f.SetSize(size)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

// records are read as they were written, until they are removed.
func (s *contract) records() {
	dg := oci.Sum([]byte("x"))
	now := time.Now().UTC().Truncate(time.Second)
	tag := Tag{Repository: busybox.String(), Tag: "latest", Digest: dg, MediaType: manifestType, Size: 1, Checked: now, Changed: now}
	marker := Marker{MediaType: manifestType, Size: 1, State: Proven}
	if err := errors.Join(s.PutTag(busybox, "latest", tag), s.Mark(busybox, dg, marker), s.Pin(s.t.Context(), busybox, "latest")); err != nil {
		s.t.Fatal(err)
	}
	s.reopened(func() {
		if got, err := s.Tag(busybox, "latest"); got != tag || err != nil {
			s.t.Errorf("tag %+v, %v", got, err)
		}
		if got, err := s.Marker(busybox, dg); got != marker || err != nil {
			s.t.Errorf("marker %+v, %v", got, err)
		}
		if pins, err := s.Pins(s.t.Context()); len(pins) != 1 || pins[0].Digest != dg || err != nil {
			s.t.Errorf("pins %+v, %v", pins, err)
		}
		if names, _, err := s.Repositories("", -1); len(names) != 1 || err != nil {
			s.t.Errorf("repositories %q, %v", names, err)
		}
	})
	if err := errors.Join(s.Unpin(s.t.Context(), busybox, "latest"), s.RemoveTag(s.t.Context(), busybox, "latest"), s.RemoveManifest(s.t.Context(), busybox, dg)); err != nil {
		s.t.Error(err)
	}
	s.reopened(func() {
		_, tagErr := s.Tag(busybox, "latest")
		_, markerErr := s.Marker(busybox, dg)
		if names, _, err := s.Repositories("", -1); !errors.Is(tagErr, ErrNotHeld) || !errors.Is(markerErr, ErrNotHeld) || len(names) != 0 || err != nil {
			s.t.Errorf("after their removal: %v, %v, %q, %v", tagErr, markerErr, names, err)
		}
	})
}
