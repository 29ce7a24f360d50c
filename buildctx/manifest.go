package buildctx

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"sort"

	"github.com/opencontainers/go-digest"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Type says what an entry is. Its values are those of the protocol.
type Type uint8

const (
	TypeFile      = Type(slipwayv1.EntryType_ENTRY_TYPE_FILE)
	TypeDirectory = Type(slipwayv1.EntryType_ENTRY_TYPE_DIRECTORY)
	TypeSymlink   = Type(slipwayv1.EntryType_ENTRY_TYPE_SYMLINK)
	// TypeHardlink is a further name of a file that comes earlier.
	TypeHardlink = Type(slipwayv1.EntryType_ENTRY_TYPE_HARDLINK)
	TypeFIFO     = Type(slipwayv1.EntryType_ENTRY_TYPE_FIFO)
)

// Entry is one path of a build context.
type Entry struct {
	// Path is relative, slash-separated and clean. Its bytes are those of the
	// file system and need not be UTF-8.
	Path string
	// Link is a symbolic link's text, or the path of a hard link's file.
	Link string
	// Xattrs holds the extended attributes that belong into an image.
	Xattrs map[string][]byte
	// Size is the length of a file's content, and 0 for all else.
	Size int64
	// ModTime is in nanoseconds since 1970. It goes into layers and decides
	// nothing.
	ModTime int64
	// Mode holds permission, setuid, setgid and sticky bits (octal 7777).
	Mode uint32
	Type Type
	// Digest is the SHA-256 of a file's content, and zero for all else.
	Digest [sha256.Size]byte
}

// Content returns the digest of a file's content in its usual notation.
func (e *Entry) Content() digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(e.Digest[:]))
}

// Manifest lists a build context. It has no entry for the root itself.
type Manifest struct {
	// Entries come in walk order: a directory before what is in it, names of
	// one directory by their bytes. No path comes twice.
	Entries []Entry
}

// Files counts the regular files, hard links not included.
func (m *Manifest) Files() int {
	n := 0
	for i := range m.Entries {
		if m.Entries[i].Type == TypeFile {
			n++
		}
	}
	return n
}

// Bytes sums the contents of the regular files, each hard link once.
func (m *Manifest) Bytes() int64 {
	var n int64
	for i := range m.Entries {
		n += m.Entries[i].Size
	}
	return n
}

// Find returns the index of the entry with the given path.
func (m *Manifest) Find(path string) (int, bool) {
	return findEntry(m.Entries, path)
}

func findEntry(entries []Entry, path string) (int, bool) {
	return sort.Find(len(entries), func(i int) int { return compareWalk(path, entries[i].Path) })
}

// Below returns the range [from, to) of the entries below the directory at
// path, itself not included. The empty path is the root.
func (m *Manifest) Below(path string) (from, to int) {
	if path == "" {
		return 0, len(m.Entries)
	}
	from, found := m.Find(path)
	if found {
		from++
	}
	rest := m.Entries[from:]
	return from, from + sort.Search(len(rest), func(i int) bool { return !isBelow(rest[i].Path, path) })
}

// isBelow reports whether path lies inside of dir.
func isBelow(path, dir string) bool {
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Digest identifies the context: everything in the manifest but modification
// times.
func (m *Manifest) Digest() digest.Digest {
	h := sha256.New()
	buf := []byte("context/v1")
	for i := range m.Entries {
		buf = m.Entries[i].appendIdentity(buf)
		if len(buf) >= 32<<10 {
			h.Write(buf)
			buf = buf[:0]
		}
	}
	h.Write(buf)
	return digest.NewDigest(digest.SHA256, h)
}

// appendIdentity writes what makes an entry what it is. Lengths come first,
// so that no two entries read alike.
func (e *Entry) appendIdentity(b []byte) []byte {
	b = append(b, byte(e.Type))
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.Size))
	b = append(b, e.Digest[:]...)
	b = appendSized(b, e.Path)
	b = appendSized(b, e.Link)
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		b = appendSized(b, name)
		b = appendSized(b, e.Xattrs[name])
	}
	return b
}

func appendSized[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// compareWalk orders paths as a walk meets them: by bytes, where the
// separator comes before every other byte.
func compareWalk[A, B string | []byte](a A, b B) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		switch {
		case x == y:
			continue
		case x == '/':
			return -1
		case y == '/':
			return 1
		case x < y:
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}
