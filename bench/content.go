package main

import (
	"encoding/binary"
	"io"
	"math/rand/v2"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// block is what patterns repeat, twice so that no copy has to wrap.
const block = 1 << 20

var noise = newNoise() //nolint:gochecknoglobals // a table, made by a loop

func newNoise() []byte {
	random := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 2*block)
	for i := 0; i < block; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
	copy(b[block:], b[:block])
	return b
}

// pattern is content that costs no more than a copy: ocitest's generator would
// take the processors from those who are measured. Every page of 4 KiB begins
// with a word of its own, so that no two are alike.
type pattern struct {
	seed uint64
	size int64
}

const page = 4 << 10

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.size-off))
	for done := 0; done < n; {
		at := off + int64(done)
		from := at % block
		done += copy(b[done:n], noise[from:min(from+int64(n-done), 2*block)])
	}
	var word [8]byte
	for at := off &^ (page - 1); at < off+int64(n); at += page {
		binary.LittleEndian.PutUint64(word[:], (p.seed+1)*0x9e3779b97f4a7c15^uint64(at)*0xd1342543de82ef95)
		if at >= off {
			copy(b[at-off:n], word[:])
		} else if end := at + int64(len(word)); end > off {
			copy(b[:n], word[off-at:])
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// blob is a pattern with its descriptor, as the hub tells of it.
type blob struct {
	Seed   uint64
	Digest oci.Digest
	Size   int64
}

func (b blob) content() pattern { return pattern{b.Seed, b.Size} }

// image is what can be pulled by a name: a manifest, its config, its layers.
type image struct {
	Repo, Tag string
	Digest    oci.Digest // of the manifest
	MediaType string
	Manifest  []byte
	Config    []byte
	ConfigID  oci.Digest
	Layers    []blob
}

// size is how many bytes a pull delivers.
func (i image) size() int64 {
	n := int64(len(i.Manifest) + len(i.Config))
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// imageSpec asks the hub for an image.
type imageSpec struct {
	Repo, Tag string
	Layers    []layerSpec
}

// layerSpec is a layer; the same one in two images is shared by them.
type layerSpec struct {
	Seed uint64
	Size int64
}

// seeds are layers of these sizes, seeded from first on.
func seeds(first uint64, sizes ...int64) []layerSpec {
	var layers []layerSpec
	for i, size := range sizes {
		layers = append(layers, layerSpec{first + uint64(i), size})
	}
	return layers
}

// buildImage makes the content. Hashing it takes about half a second per GiB.
func buildImage(spec imageSpec) (ocitest.Image, image, error) {
	described := image{Repo: spec.Repo, Tag: spec.Tag}
	var layers []ocitest.Content
	for _, l := range spec.Layers {
		p := pattern{l.Seed, l.Size}
		c, err := digested(p)
		if err != nil {
			return ocitest.Image{}, image{}, err
		}
		layers = append(layers, c)
		described.Layers = append(described.Layers, blob{l.Seed, c.Digest, l.Size})
	}
	built := ocitest.ImageSpec{Layers: layers}.Build()
	described.Digest, described.MediaType, described.Manifest = built.Digest, built.MediaType, built.Bytes()
	described.Config, described.ConfigID = built.Blobs[0].Bytes(), built.Blobs[0].Digest
	return built, described, nil
}
