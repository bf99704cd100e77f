package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"entrepot/oci"
)

// ErrNotHeld says that the content is not on our disk.
var ErrNotHeld = errors.New("not held")

// proofMode is the mode of every file that passed the gate. A file with another
// mode was copied in by somebody, and is hashed before its first answer. So is
// one whose times are not ours: see isOurs.
const proofMode fs.FileMode = 0o444

// settling is how long a file that is too short may still be somebody's copy in
// progress. Until then it is a miss; after that it is damage, and is dropped.
const settling = time.Minute

// touchEvery bounds how often a file's time is set to tell of its use.
const touchEvery = 10 * time.Minute

// Content is held content, open for reading.
type Content struct {
	file   *openBlob // nil when the bytes are in memory
	memory []byte
	size   int64
}

// openBlob is a file of content that is not evicted while it is open.
type openBlob struct {
	*os.File
	disk    *Disk
	digest  oci.Digest
	closing sync.Once
}

func (o *openBlob) Read(p []byte) (int, error) {
	if err := o.disk.readFault(o.digest, blobName); err != nil {
		return 0, err
	}
	return o.File.Read(p)
}

func (o *openBlob) Close() error {
	o.closing.Do(func() { o.disk.inUse.release(o.digest) })
	return o.File.Close()
}

// Open opens content that is held. want is the size that it should have, or -1
// where nobody knows: the file is then hashed before its first answer. Content
// that is not held, is being copied in, or turned out to be damaged (and was
// dropped) is ErrNotHeld. ctx bounds the hashing of a file that did not come
// through the gate. What is open is not evicted.
func (d *Disk) Open(ctx context.Context, dg oci.Digest, want int64) (*Content, error) {
	if e := d.memory.get(dg); e != nil {
		d.touchFromMemory(dg, e, time.Now())
		return &Content{memory: e.content, size: int64(len(e.content))}, nil
	}
	f, info, err := d.openProven(ctx, dg, want)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxInMemory {
		return &Content{file: f, size: info.Size()}, nil
	}
	defer f.done()
	b, err := d.readProven(dg, f, info)
	if err != nil {
		return nil, err
	}
	return &Content{memory: b, size: int64(len(b))}, nil
}

// Read returns content whole: proven bytes of at most limit, never to be
// changed. Errors as Open.
func (d *Disk) Read(ctx context.Context, dg oci.Digest, limit int64) ([]byte, error) {
	if e := d.memory.get(dg); e != nil {
		d.touchFromMemory(dg, e, time.Now())
		return e.content, nil
	}
	f, info, err := d.openProven(ctx, dg, -1)
	if err != nil {
		return nil, err
	}
	defer f.done()
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", dg, info.Size(), limit, ErrNotHeld)
	}
	return d.readProven(dg, f, info)
}

// Size is the size of held content; ErrNotHeld otherwise. It opens nothing.
func (d *Disk) Size(dg oci.Digest) (int64, error) {
	if e := d.memory.get(dg); e != nil {
		return int64(len(e.content)), nil
	}
	info, err := d.root.Lstat(blobName(dg))
	if err != nil || !info.Mode().IsRegular() {
		return 0, notHeld(err)
	}
	return info.Size(), nil
}

// readProven reads a small file and hashes it: what is read into memory is
// checked each time, since that costs next to nothing.
func (d *Disk) readProven(dg oci.Digest, f *openBlob, info fs.FileInfo) ([]byte, error) {
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, d.lose(dg, info, err)
	}
	if err := dg.Verify(b); err != nil {
		return nil, d.unread(blobName(dg), d.drop(dg, info, "its bytes have changed on disk"))
	}
	d.memory.put(dg, b, info.ModTime())
	return b, nil
}

func (d *Disk) openProven(ctx context.Context, dg oci.Digest, want int64) (*openBlob, fs.FileInfo, error) {
	f, info, err := d.openFile(dg)
	if err != nil {
		return nil, nil, err
	}
	if d.believes(dg, info, want) {
		d.touch(f.File, dg, info)
		return f, info, nil
	}
	if err := d.judge(ctx, dg, f, info, want); err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// openFile opens a blob's file, whatever it is.
func (d *Disk) openFile(dg oci.Digest) (*openBlob, fs.FileInfo, error) {
	d.inUse.hold(dg)
	name := blobName(dg)
	f, err := d.openToRead(name)
	if err != nil {
		d.inUse.release(dg)
		return nil, nil, d.unread(name, err)
	}
	o := &openBlob{File: f, disk: d, digest: dg}
	info, err := f.Stat()
	if err != nil {
		_ = o.Close()
		return nil, nil, d.unread(name, err)
	}
	return o, info, nil
}

// believes reports that a file may be served as what its name says, unhashed: it
// came through the gate, its size is known to be right, and nobody has touched it
// since. What is read into memory is hashed by whoever reads it. What we know of
// a file goes before what it says itself: times can be copied while they are new.
func (d *Disk) believes(dg oci.Digest, info fs.FileInfo, want int64) bool {
	if !info.Mode().IsRegular() {
		return false
	}
	if p, ok := d.proofs.get(dg); ok {
		return isUnchanged(p.file, info)
	}
	if want < 0 || info.Size() != want || info.Mode().Perm() != proofMode {
		return false
	}
	if info.Size() <= maxInMemory {
		return true
	}
	ours := isOurs(info)
	if ours {
		d.proofs.put(dg, proof{info})
	}
	return ours
}

// judge hashes a file that is not believed, to tell whether it is what its name
// says: an expectation of its size may be wrong as well.
func (d *Disk) judge(ctx context.Context, dg oci.Digest, f *openBlob, info fs.FileInfo, want int64) error {
	if !info.Mode().IsRegular() {
		return d.unread(blobName(dg), d.drop(dg, info, "it is not a regular file"))
	}
	if want >= 0 && info.Size() != want && info.Mode().Perm() != proofMode && justWritten(info) {
		return fmt.Errorf("%s is being copied in: %w", dg, ErrNotHeld)
	}
	if info.Size() > maxInMemory {
		return d.proveOnce(ctx, dg, info)
	}
	if err := d.prove(ctx, dg, f, info); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read %s: %w", dg, err)
	}
	return nil
}

func justWritten(info fs.FileInfo) bool {
	age := time.Since(info.ModTime())
	return age >= 0 && age < settling
}

// drop removes content that is not what its name says, unless another file has
// taken the name since bad was looked at.
func (d *Disk) drop(dg oci.Digest, bad fs.FileInfo, why string) error {
	d.forgetContent(dg)
	if now, err := d.root.Lstat(blobName(dg)); err != nil || !os.SameFile(now, bad) {
		return fmt.Errorf("%s was replaced, %s: %w", dg, why, ErrNotHeld)
	}
	if _, err := d.remove(blobName(dg)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop damaged %s (%s): %w", dg, why, err)
	}
	d.damaged.Add(1)
	err := fmt.Errorf("%s was dropped, %s: %w", dg, why, ErrNotHeld)
	d.warn("damaged content was dropped", err)
	return err
}

// lose deals with content that reading failed of: if its sector is gone, so is
// the content.
func (d *Disk) lose(dg oci.Digest, info fs.FileInfo, err error) error {
	if errors.Is(err, syscall.EIO) {
		err = d.drop(dg, info, err.Error())
	}
	return d.unread(blobName(dg), err)
}

// touch records a use of a file that is right in its time, now and then. info is
// what was just seen of it.
func (d *Disk) touch(f *os.File, dg oci.Digest, info fs.FileInfo) {
	idle := time.Since(info.ModTime())
	if idle >= -ahead && idle < touchEvery {
		return
	}
	p, known := d.proofs.get(dg)
	d.mark(f, dg, hintOf(info.ModTime()).again(idle))
	if known && isUnchanged(p.file, info) {
		d.remember(dg, f)
	}
}

func (d *Disk) touchFromMemory(dg oci.Digest, e *inMemory, at time.Time) {
	last, now := e.touched.Load(), at.Unix()
	if now-last < int64(touchEvery/time.Second) || !e.touched.CompareAndSwap(last, now) {
		return
	}
	f, info, err := d.openFile(dg)
	if err != nil {
		return
	}
	defer f.done()
	if info.Mode().IsRegular() && info.Size() == int64(len(e.content)) { // and if it is not right, who reads it will see
		d.touch(f.File, dg, info)
	}
}

// Put is PutFrom where nobody knows where the content comes from.
func (d *Disk) Put(dg oci.Digest, content []byte) error { return d.PutFrom(dg, content, "") }

// PutFrom takes content of an upstream in through the gate: written aside,
// compared with its digest, renamed. It is for what is already whole in memory.
// The bytes are synced before the rename, so that a name never stands for less
// than its file. Errors of the disk, and of what it may hold, are ErrCannotKeep.
func (d *Disk) PutFrom(dg oci.Digest, content []byte, upstream string) error {
	if err := dg.Verify(content); err != nil {
		return err
	}
	if info, err := d.root.Lstat(blobName(dg)); err == nil && info.Mode().IsRegular() && info.Size() == int64(len(content)) {
		return nil
	}
	if !d.account.fits(int64(len(content))) {
		return fmt.Errorf("keep %s: %d bytes: %w", dg, len(content), ErrTooLarge)
	}
	now := time.Now()
	h := hint{owner: ownerOf(upstream), uses: 1}
	d.proofs.forget(dg) // it is of an earlier file
	if err := d.writeFile(blobName(dg), content, written{mode: proofMode, sync: true, large: true, stamp: h.proving(now)}); err != nil {
		return fmt.Errorf("keep %s: %w", dg, err)
	}
	d.account.own(h.owner, blocks(int64(len(content))))
	d.memory.put(dg, content, now)
	return nil
}

// done is Close for who has only read.
func (o *openBlob) done() { _ = o.Close() }

// Size is the number of bytes.
func (c *Content) Size() int64 { return c.size }

// Section gives length bytes from offset and takes c over: closing the section
// closes c. offset and length must lie within c.
func (c *Content) Section(offset, length int64) (*Section, error) {
	if c.file == nil {
		return &Section{memory: c.memory[offset : offset+length]}, nil
	}
	if _, err := c.file.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Section{file: c.file, left: length}, nil
}

// Close gives back what c holds open.
func (c *Content) Close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}

// Section reads a stretch of content.
type Section struct {
	memory []byte
	file   *openBlob
	left   int64 // bytes of file still to read
}

func (s *Section) Read(p []byte) (int, error) {
	if s.file == nil {
		if len(s.memory) == 0 {
			return 0, io.EOF
		}
		n := copy(p, s.memory)
		s.memory = s.memory[n:]
		return n, nil
	}
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.file.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if err != nil {
		return n, s.failed(err)
	}
	return n, nil
}

// Left is how many bytes are still to read.
func (s *Section) Left() int64 {
	if s.file == nil {
		return int64(len(s.memory))
	}
	return s.left
}

// failed is what it means that reading failed: ErrDisk, and that the content is
// not held any more if its sector is gone.
func (s *Section) failed(err error) error {
	if info, serr := s.file.Stat(); serr == nil && errors.Is(err, syscall.EIO) {
		_ = s.file.disk.lose(s.file.digest, info, err) // it says so itself
	}
	return onDisk(noEOF(err)) // an EOF: the file was cut while we read it
}

// WriteTo hands the file itself to w, so that a TCP connection can have the
// kernel send it. ErrDisk is the file's failure; any other error is w's.
func (s *Section) WriteTo(w io.Writer) (int64, error) {
	if s.file == nil {
		n, err := w.Write(s.memory)
		s.memory = s.memory[n:]
		return int64(n), err
	}
	if err := s.file.disk.readFault(s.file.digest, blobName); err != nil {
		return 0, s.failed(err)
	}
	n, err := io.Copy(w, &io.LimitedReader{R: s.file.File, N: s.left}) // the very file, or sendfile is lost
	s.left -= n
	if err == nil && s.left > 0 {
		err = io.EOF
	}
	if errors.Is(err, io.EOF) || isRead(err) {
		return n, s.failed(err)
	}
	return n, err
}

// isRead tells a failure to read a file, which may be part of a copy, from one
// to write to a connection, which has no EIO.
func isRead(err error) bool { return errors.Is(err, syscall.EIO) }

// Close ends the reading.
func (s *Section) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// isGone reports an error that means that nothing is there.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR)
}

func notHeld(err error) error {
	if err == nil || isGone(err) {
		return ErrNotHeld
	}
	return err
}

// blocks is what a file of n bytes takes on the usual file system.
func blocks(n int64) int64 { return (n + blockSize - 1) / blockSize * blockSize }

const blockSize = 4096
