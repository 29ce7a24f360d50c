package buildctx

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// A Store keeps contents by digest.
type Store interface {
	// Missing returns the indices of the contents that the store lacks, in
	// ascending order.
	Missing(ctx context.Context, contents []digest.Digest) ([]int, error)

	// Add reads a content of the given size to its end and keeps it. It
	// verifies the digest: the error for another content wraps [ErrDigest]
	// or says so in the store's own way. It does not keep r. Adding what is
	// there already does nothing and need not read r. Add is safe for
	// concurrent use.
	Add(ctx context.Context, content digest.Digest, size int64, r io.Reader) error
}

// missingBatch is how many contents one call of Missing asks about.
const missingBatch = 16 << 10

// Needs returns the entries of a want for the contents that the store lacks,
// each content once, in walk order. indices names the entries whose contents
// are needed, of any type; nil means all. A hard link needs its file.
//
// Entries that claim one digest for contents of different sizes are a fault
// of the manifest.
func Needs(ctx context.Context, m *Manifest, indices []int, s Store) ([]uint32, error) {
	unique, err := uniqueContents(m, indices)
	if err != nil {
		return nil, err
	}
	var want []uint32
	for len(unique) > 0 {
		batch := unique[:min(len(unique), missingBatch)]
		unique = unique[len(batch):]
		contents := make([]digest.Digest, len(batch))
		for i, entry := range batch {
			contents[i] = m.Entries[entry].Content()
		}
		missing, err := s.Missing(ctx, contents)
		if err != nil {
			return nil, fmt.Errorf("look contents up: %w", err)
		}
		for _, i := range missing {
			want = append(want, batch[i])
		}
	}
	return want, nil
}

// uniqueContents returns one file entry for each content, in walk order as
// far as indices are.
func uniqueContents(m *Manifest, indices []int) ([]uint32, error) {
	n := len(indices)
	if indices == nil {
		n = len(m.Entries)
	}
	first := make(map[[sha256.Size]byte]uint32, n)
	var unique []uint32
	for i := range n {
		if indices != nil {
			i = indices[i]
		}
		e := &m.Entries[i]
		if e.Type == TypeHardlink {
			file, found := m.Find(e.Link)
			if !found {
				return nil, &ManifestError{Path: e.Path, Reason: "hard link to nothing"}
			}
			i, e = file, &m.Entries[file]
		}
		if e.Type != TypeFile {
			continue
		}
		same, seen := first[e.Digest]
		switch {
		case !seen:
			first[e.Digest] = uint32(i)
			unique = append(unique, uint32(i))
		case m.Entries[same].Size != e.Size:
			return nil, &ManifestError{Path: e.Path, Reason: fmt.Sprintf("same digest as %s, but not its size", Quote(m.Entries[same].Path))}
		}
	}
	return unique, nil
}
