package buildctx

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A HashCache remembers the digests of a directory's files between scans. A
// digest holds as long as the file's size, modification time, change time and
// inode do. Files changed within two seconds before the scan are not
// remembered, since a further change might not show in their times.
//
// The cache is a file of its own for each directory, replaced as a whole when
// a scan found something new. A missing, foreign or damaged file is an empty
// cache. Scans may share it at the same time; the last one wins. A nil
// *HashCache remembers nothing.
type HashCache struct {
	File string
	Now  func() time.Time // nil means time.Now
}

// UserHashCache returns the cache for the directory dir among the user's
// caches.
func UserHashCache(dir string) (*HashCache, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("hash cache: %w", err)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("hash cache: %w", err)
	}
	sum := sha256.Sum256([]byte(abs))
	return &HashCache{File: filepath.Join(base, "slipway", "hashes", hex.EncodeToString(sum[:16]))}, nil
}

func (c *HashCache) now() time.Time {
	if c == nil || c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// The file: magic, number of records, records in walk order, SHA-256 of all
// that. A record shares the start of its path with the record before it.
const hashMagic = "slipway hashes 1\n"

// load opens the cache for reading along with a walk.
func (c *HashCache) load() *hashCursor {
	if c == nil {
		return &hashCursor{}
	}
	data, err := os.ReadFile(c.File)
	if err != nil || len(data) < len(hashMagic)+sha256.Size {
		return &hashCursor{}
	}
	body, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if string(body[:len(hashMagic)]) != hashMagic || sha256.Sum256(body) != [sha256.Size]byte(sum) {
		return &hashCursor{}
	}
	r := &hashCursor{rest: body[len(hashMagic):]}
	r.records = int(r.uvarint())
	r.next()
	return r
}

// A hashCursor goes through a cache's records in walk order, beside a walk
// that looks paths up in the same order.
type hashCursor struct {
	rest    []byte
	path    []byte // of the current record; empty at the end
	stamp   stamp
	digest  [sha256.Size]byte
	records int // in all
	used    int // that held
}

// lookup returns the digest of a file that has not changed since it was
// recorded.
func (r *hashCursor) lookup(path string, s stamp) (digest [sha256.Size]byte, known bool) {
	for len(r.path) > 0 {
		order := compareWalk(r.path, path)
		if order > 0 {
			break
		}
		if order < 0 {
			r.next()
			continue
		}
		if s.known && s.sameState(r.stamp) && s.inode == r.stamp.inode {
			r.used++
			return r.digest, true
		}
		break
	}
	return digest, false
}

// next goes to the next record. What does not parse is the end.
func (r *hashCursor) next() {
	shared, added := r.uvarint(), r.uvarint()
	if added == 0 || shared > uint64(len(r.path)) || added > uint64(len(r.rest)) {
		r.path, r.rest = nil, nil
		return
	}
	r.path = append(r.path[:shared], r.rest[:added]...)
	r.rest = r.rest[added:]
	r.stamp = stamp{
		size:  int64(r.uvarint()),
		mtime: int64(r.uvarint()),
		ctime: int64(r.uvarint()),
		inode: r.uvarint(),
	}
	if len(r.rest) < sha256.Size {
		r.path, r.rest = nil, nil
		return
	}
	r.digest = [sha256.Size]byte(r.rest)
	r.rest = r.rest[sha256.Size:]
}

func (r *hashCursor) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.rest = nil
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// save replaces the cache by the digests of a scan that began at start.
func (c *HashCache) save(entries []Entry, stamps []stamp, start time.Time) error {
	if c == nil {
		return nil
	}
	return replaceFile(c.File, appendHashes(entries, stamps, start))
}

func appendHashes(entries []Entry, stamps []stamp, start time.Time) []byte {
	var (
		records uint64
		body    []byte
		last    string
	)
	for i := range entries {
		e, s := &entries[i], stamps[i]
		if e.Type != TypeFile || !s.settled(start) {
			continue
		}
		shared := sharedPrefix(last, e.Path)
		body = binary.AppendUvarint(body, uint64(shared))
		body = appendSized(body, e.Path[shared:])
		for _, v := range []uint64{uint64(s.size), uint64(s.mtime), uint64(s.ctime), s.inode} {
			body = binary.AppendUvarint(body, v)
		}
		body = append(body, e.Digest[:]...)
		last = e.Path
		records++
	}
	data := binary.AppendUvarint([]byte(hashMagic), records)
	data = append(data, body...)
	sum := sha256.Sum256(data)
	return append(data, sum[:]...)
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// replaceFile writes a file as a whole or not at all.
func replaceFile(file string, data []byte) error {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".hashes-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
