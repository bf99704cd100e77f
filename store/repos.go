package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"entrepot/oci"
)

// maxRecord bounds the small files that are read back.
const maxRecord = 16 << 10

// Tag is what is known of a tag: an opinion with a date.
type Tag struct {
	Repository string     `json:"repository"` // path form; told apart from Tag's neighbours on disks that fold case
	Tag        string     `json:"tag"`
	Digest     oci.Digest `json:"digest"`
	MediaType  string     `json:"mediaType,omitempty"`
	Size       int64      `json:"size"`    // -1 if upstream did not say
	Checked    time.Time  `json:"checked"` // when upstream last confirmed it
	Changed    time.Time  `json:"changed"` // when it was first seen to name Digest
	// Former is an image that the tag named before and that is held whole, while
	// what it names now is not known to be; nil: there is none.
	Former *Former `json:"former,omitempty"`
}

// Former is what a tag named before.
type Former struct {
	Digest    oci.Digest `json:"digest"`
	MediaType string     `json:"mediaType,omitempty"`
	Size      int64      `json:"size"`    // -1 if upstream did not say
	Checked   time.Time  `json:"checked"` // when upstream last confirmed it
}

// images are what a tag may stand for: what it names, then what it did before.
func (rec Tag) images() []oci.Digest {
	if rec.Former == nil {
		return []oci.Digest{rec.Digest}
	}
	return []oci.Digest{rec.Digest, rec.Former.Digest}
}

// State says how sure it is that content belongs to a repository.
type State string

// Named: a manifest of the repository lists it, which anybody who may push
// there can arrange. Proven: upstream gave it, or confirmed it, under the
// repository's name.
const (
	Named  State = "named"
	Proven State = "proven"
)

// Marker says that content belongs to a repository. It is never synced: after a
// crash it is derived again from the manifests that are held.
type Marker struct {
	MediaType string `json:"mediaType,omitempty"`
	Size      int64  `json:"size"` // a hint while State is Named; -1 if unknown
	State     State  `json:"state"`
}

// Upstream names and repository paths hold no part that starts with '_', so
// these cannot be taken for one.
const (
	tagsDir    = "_tags"
	contentDir = "_content"
)

func repoDir(repo oci.Repository) string { return path.Join(reposDir, repo.Host, repo.Path) }

func tagName(repo oci.Repository, tag string) string {
	var room nameRoom
	return string(appendTagName(room[:0], repo, tag))
}

func markerName(repo oci.Repository, d oci.Digest) string {
	var room nameRoom
	return string(appendMarkerName(room[:0], repo, d))
}

// A nameRoom holds the longest name of a record: a repository of 255
// characters, a tag of 128 or a sha512 digest, and what stands between.
type nameRoom [512]byte

func appendTagName(b []byte, repo oci.Repository, tag string) []byte {
	return append(append(appendRepoDir(b, repo), tagsDir+"/"...), tag...)
}

func appendMarkerName(b []byte, repo oci.Repository, d oci.Digest) []byte {
	b = append(append(appendRepoDir(b, repo), contentDir+"/"...), d.Algorithm()...)
	b = append(append(b, '/'), d.Hex()[:2]...)
	return append(append(b, '/'), d.Hex()...)
}

func appendRepoDir(b []byte, repo oci.Repository) []byte {
	b = append(append(b, reposDir+"/"...), repo.Host...)
	return append(append(append(b, '/'), repo.Path...), '/')
}

// Tag returns a tag's record. A missing, damaged or foreign one is ErrNotHeld.
func (d *Disk) Tag(repo oci.Repository, tag string) (Tag, error) {
	var room nameRoom
	known := appendTagName(room[:0], repo, tag)
	if rec, ok := find(d.tags, known); ok {
		return rec, nil
	}
	name := string(known)
	b, err := d.readFile(name, maxRecord)
	if err != nil {
		return Tag{}, d.unread(name, err)
	}
	rec, err := parseTag(b)
	if err != nil || rec.Repository != repo.String() || rec.Tag != tag {
		return Tag{}, fmt.Errorf("record of %s:%s is unusable: %w", repo, tag, ErrNotHeld)
	}
	d.tags.put(name, rec)
	return rec, nil
}

func parseTag(b []byte) (Tag, error) {
	var rec Tag
	if err := json.Unmarshal(b, &rec); err != nil {
		return Tag{}, err
	}
	if rec.Digest.IsZero() || rec.Size < -1 {
		return Tag{}, errors.New("no digest, or a size below -1")
	}
	if f := rec.Former; f != nil && (f.Digest.IsZero() || f.Size < -1) {
		rec.Former = nil
	}
	return rec, nil
}

// PutTag writes a tag's record. It is synced, also where only its date changed:
// an older date would cost no more than a check, but a file system that does not
// flush what replaces another file (XFS) would leave an empty one.
func (d *Disk) PutTag(repo oci.Repository, tag string, rec Tag) error {
	rec.Repository, rec.Tag = repo.String(), tag
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	name := tagName(repo, tag)
	if err := d.writeFile(name, b, written{mode: 0o644, sync: true}); err != nil {
		d.tags.forget(name)
		return fmt.Errorf("record %s:%s: %w", repo, tag, err)
	}
	d.tags.put(name, rec)
	return nil
}

// Tags lists the tags of repo that are held, sorted.
func (d *Disk) Tags(repo oci.Repository) ([]string, error) {
	entries, err := fs.ReadDir(d.root.FS(), path.Join(repoDir(repo), tagsDir))
	if err != nil {
		if isGone(err) {
			return nil, nil
		}
		return nil, err
	}
	var tags []string
	for _, e := range entries {
		if oci.ValidTag(e.Name()) && e.Type().IsRegular() {
			tags = append(tags, e.Name())
		}
	}
	return tags, nil
}

// Marker tells whether content is known to belong to repo; ErrNotHeld if not.
func (d *Disk) Marker(repo oci.Repository, dg oci.Digest) (Marker, error) {
	var room nameRoom
	known := appendMarkerName(room[:0], repo, dg)
	if m, ok := find(d.markers, known); ok {
		return m, nil
	}
	name := string(known)
	b, err := d.readFile(name, maxRecord)
	if err != nil {
		return Marker{}, d.unread(name, err)
	}
	m, err := parseMarker(b)
	if err != nil {
		return Marker{}, fmt.Errorf("marker of %s in %s is unusable: %w", dg, repo, ErrNotHeld)
	}
	d.markers.put(name, m)
	return m, nil
}

func parseMarker(b []byte) (Marker, error) {
	var m Marker
	if err := json.Unmarshal(b, &m); err != nil {
		return Marker{}, err
	}
	if m.State != Named && m.State != Proven || m.Size < -1 {
		return Marker{}, errors.New("no known state, or a size below -1")
	}
	return m, nil
}

// Mark records that content belongs to repo. A proven marker is never replaced
// by a named one.
func (d *Disk) Mark(repo oci.Repository, dg oci.Digest, m Marker) error {
	old, err := d.Marker(repo, dg)
	if err == nil && (old == m || old.State == Proven && m.State == Named) {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	name := markerName(repo, dg)
	if err := d.writeFile(name, b, record); err != nil {
		d.forgetMarker(name)
		return fmt.Errorf("mark %s in %s: %w", dg, repo, err)
	}
	d.markers.put(name, m)
	d.recall.changes.Add(1)
	return nil
}

// Repositories lists, in ASCII order, up to n repositories in path form that
// come after last. A negative n means all.
func (d *Disk) Repositories(last string, n int) (names []string, more bool, err error) {
	err = fs.WalkDir(d.root.FS(), reposDir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			if isGone(err) { // removed while we walk
				return nil
			}
			return err
		}
		if !e.IsDir() {
			return nil
		}
		switch path.Base(name) {
		case tagsDir, contentDir:
			repo := strings.TrimPrefix(path.Dir(name), reposDir+"/")
			if _, err := oci.ParseRepository(repo); err == nil && repo > last {
				names = append(names, repo)
			}
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("list repositories: %w", err)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if n >= 0 && len(names) > n {
		return names[:n], true, nil
	}
	return names, false, nil
}
