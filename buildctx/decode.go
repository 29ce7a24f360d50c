package buildctx

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// What one entry may hold. Linux has no longer paths, names or attributes.
const (
	maxPath    = 4096
	maxName    = 255
	maxXattrs  = 64
	maxXattr   = 64 << 10
	maxEntry   = 256 << 10
	maxPart    = 2 << 20 // after decompression
	maxContent = 1 << 50
)

// DecodeOptions bounds a manifest. A nil *DecodeOptions means the defaults.
type DecodeOptions struct {
	MaxEntries int   // 0 means 1 000 000
	MaxNames   int64 // bytes of all paths, links and attributes; 0 means 128 MiB
}

func (o *DecodeOptions) maxEntries() int {
	if o == nil || o.MaxEntries <= 0 {
		return 1_000_000
	}
	return o.MaxEntries
}

func (o *DecodeOptions) maxNames() int64 {
	if o == nil || o.MaxNames <= 0 {
		return 128 << 20
	}
	return o.MaxNames
}

// FromProto reads a manifest's parts from next until the last one. Faults of
// the manifest wrap [ErrManifest]; errors of next are returned as they are.
func FromProto(next func() (*slipwayv1.ManifestPart, error), o *DecodeOptions) (*Manifest, error) {
	d := NewManifestDecoder(o)
	for {
		part, err := next()
		if err != nil {
			return nil, err
		}
		if m, err := d.Add(part); m != nil || err != nil {
			return m, err
		}
	}
}

// A ManifestDecoder puts a manifest together from parts that a stranger
// sends. It holds every entry to the rules of [Manifest] and its memory to
// [DecodeOptions]. It is for one goroutine.
type ManifestDecoder struct {
	maxEntries int
	namesLeft  int64
	entries    []Entry
	parents    []string // directories that the next entry may lie in, root first
	total      int64    // bytes of all contents
	zstd       *zstd.Decoder
	buf        []byte
	msg        slipwayv1.ManifestEntry
	err        error
}

// NewManifestDecoder returns a decoder for one manifest.
func NewManifestDecoder(o *DecodeOptions) *ManifestDecoder {
	return &ManifestDecoder{maxEntries: o.maxEntries(), namesLeft: o.maxNames()}
}

// Add takes the next part. It returns the manifest with the last one, and nil
// before. An error wraps [ErrManifest] and sticks.
func (d *ManifestDecoder) Add(part *slipwayv1.ManifestPart) (*Manifest, error) {
	if d.err == nil {
		d.err = d.add(part)
	}
	if d.err != nil {
		return nil, d.err
	}
	if !part.GetLast() {
		return nil, nil
	}
	d.zstd.Close()
	d.err = &ManifestError{Reason: "more after the last part"}
	return &Manifest{Entries: d.entries}, nil
}

func (d *ManifestDecoder) add(part *slipwayv1.ManifestPart) error {
	raw, err := d.decompress(part.GetEntries())
	if err != nil {
		return &ManifestError{Reason: err.Error()}
	}
	if len(raw) == 0 && !part.GetLast() {
		return &ManifestError{Reason: "empty part"}
	}
	// One entry at a time: two bytes of input would otherwise cost a message
	// of more than a hundred before anything is checked.
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return &ManifestError{Reason: "malformed part"}
		}
		raw = raw[n:]
		if num != entriesField || typ != protowire.BytesType {
			return &ManifestError{Reason: fmt.Sprintf("unknown field %d", num)}
		}
		body, n := protowire.ConsumeBytes(raw)
		if n < 0 {
			return &ManifestError{Reason: "malformed part"}
		}
		raw = raw[n:]
		if err := d.addEntry(body); err != nil {
			return err
		}
	}
	return nil
}

func (d *ManifestDecoder) decompress(data []byte) ([]byte, error) {
	if d.zstd == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxPart), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, err
		}
		d.zstd, d.buf = dec, make([]byte, 0, maxPart)
	}
	return d.zstd.DecodeAll(data, d.buf)
}

func (d *ManifestDecoder) addEntry(body []byte) error {
	if len(d.entries) >= d.maxEntries {
		return &ManifestError{Reason: fmt.Sprintf("more than %d entries", d.maxEntries)}
	}
	if len(body) > maxEntry {
		return &ManifestError{Reason: "an entry is too long"}
	}
	if err := proto.Unmarshal(body, &d.msg); err != nil {
		return &ManifestError{Reason: "malformed entry"}
	}
	e, names, err := fromProto(&d.msg)
	if err == nil {
		err = d.check(&e)
	}
	if err != nil {
		return &ManifestError{Path: e.Path, Reason: err.Error()}
	}
	if d.namesLeft -= names; d.namesLeft < 0 {
		return &ManifestError{Reason: "paths, links and attributes are too long in all"}
	}
	d.entries = append(d.entries, e)
	return nil
}

// fromProto returns the entry that msg describes and the length of what it
// names, having checked all that can be told without its neighbours.
func fromProto(msg *slipwayv1.ManifestEntry) (Entry, int64, error) {
	if err := checkPath(msg.GetPath()); err != nil {
		return Entry{}, 0, err
	}
	e := Entry{
		Path:    string(msg.GetPath()),
		Link:    string(msg.GetLink()),
		Type:    Type(msg.GetType()),
		Mode:    msg.GetMode(),
		ModTime: msg.GetMtime(),
	}
	names := int64(len(e.Path) + len(e.Link))
	switch {
	case msg.GetType() < slipwayv1.EntryType_ENTRY_TYPE_FILE || msg.GetType() > slipwayv1.EntryType_ENTRY_TYPE_FIFO:
		return e, 0, fmt.Errorf("unknown type %d", msg.GetType())
	case e.Mode&^0o7777 != 0:
		return e, 0, fmt.Errorf("mode %o has other bits than 7777", e.Mode)
	case len(msg.GetXattrs()) > maxXattrs:
		return e, 0, errors.New("too many extended attributes")
	}
	if err := e.setContent(msg); err != nil {
		return e, 0, err
	}
	if err := e.checkLink(); err != nil {
		return e, 0, err
	}
	if len(msg.GetXattrs()) > 0 {
		e.Xattrs = msg.GetXattrs()
	}
	for name, value := range e.Xattrs {
		names += int64(len(name) + len(value))
		if name == "" || len(name) > maxName || strings.ContainsRune(name, 0) || len(value) > maxXattr {
			return e, 0, errors.New("invalid extended attribute")
		}
	}
	return e, names, nil
}

func (e *Entry) setContent(msg *slipwayv1.ManifestEntry) error {
	sum := msg.GetSha256()
	if e.Type != TypeFile {
		if msg.GetSize() != 0 || len(sum) != 0 {
			return errors.New("only files have contents")
		}
		return nil
	}
	if msg.GetSize() > maxContent {
		return fmt.Errorf("impossible size %d", msg.GetSize())
	}
	if len(sum) != sha256.Size {
		return fmt.Errorf("digest of %d bytes", len(sum))
	}
	e.Size = int64(msg.GetSize())
	e.Digest = [sha256.Size]byte(sum)
	if (e.Size == 0) != (e.Digest == sha256.Sum256(nil)) {
		return errors.New("size and digest disagree")
	}
	return nil
}

func (e *Entry) checkLink() error {
	switch {
	case e.Type != TypeSymlink && e.Type != TypeHardlink:
		if e.Link != "" {
			return errors.New("only links have targets")
		}
	case e.Link == "":
		return errors.New("link without a target")
	case len(e.Link) > maxPath:
		return errors.New("link target too long")
	case strings.IndexByte(e.Link, 0) >= 0:
		return errors.New("link target contains NUL")
	}
	return nil
}

// checkPath accepts clean relative paths that Linux can hold.
func checkPath(path []byte) error {
	switch {
	case len(path) == 0:
		return errors.New("an entry has no path")
	case len(path) > maxPath:
		return errors.New("a path is too long")
	}
	name := 0
	for i, c := range path {
		switch c {
		case 0:
			return errors.New("a path contains NUL")
		case '/':
			if err := checkName(path[name:i]); err != nil {
				return err
			}
			name = i + 1
		}
	}
	return checkName(path[name:])
}

func checkName(name []byte) error {
	switch {
	case len(name) > maxName:
		return errors.New("a file name is too long")
	case len(name) == 0, string(name) == ".", string(name) == "..":
		return errors.New("a path is not relative and clean")
	}
	return nil
}

// check holds e to what came before it.
func (d *ManifestDecoder) check(e *Entry) error {
	if n := len(d.entries); n > 0 {
		switch order := compareWalk(d.entries[n-1].Path, e.Path); {
		case order == 0:
			return errors.New("path comes twice")
		case order > 0:
			return errors.New("path is not in walk order")
		}
	}
	if err := d.checkParent(e); err != nil {
		return err
	}
	if e.Type == TypeHardlink {
		if i, found := findEntry(d.entries, e.Link); !found || d.entries[i].Type != TypeFile {
			return errors.New("hard link to what is no earlier file")
		}
	}
	if e.Size > math.MaxInt64-d.total {
		return errors.New("contents are too large in all")
	}
	d.total += e.Size
	return nil
}

// checkParent keeps the stack of open directories: walk order means that the
// parent of an entry is the previous entry or one of its parents.
func (d *ManifestDecoder) checkParent(e *Entry) error {
	for len(d.parents) > 0 && !isBelow(e.Path, d.parents[len(d.parents)-1]) {
		d.parents = d.parents[:len(d.parents)-1]
	}
	parent := ""
	if len(d.parents) > 0 {
		parent = d.parents[len(d.parents)-1] + "/"
	}
	if strings.Contains(e.Path[len(parent):], "/") {
		return errors.New("parent is not a directory of the manifest")
	}
	if e.Type == TypeDirectory {
		d.parents = append(d.parents, e.Path)
	}
	return nil
}
