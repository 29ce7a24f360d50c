// Package limits keeps the size of an image's root file system while its
// layers stream by, and stops a stream at the entry that crosses the limit.
//
// What counts is the unpacked tree as a machine will hold it on ext4 with
// 4 KiB blocks: files rounded up to blocks, a block and more for each
// directory, hard links once, holes as data, and nothing for what a whiteout
// or an overwrite took away. A [Ledger] learns all of that from tar headers.
// What a layer did to the tree fits into a compact [Delta], so that a layer
// that comes from a cache is charged without its bytes.
//
// Read [Ledger] first, then [Layer].
package limits

import "errors"

// DefaultMax is the limit where none is given: 8 GB.
const DefaultMax = 8_000_000_000

// MaxPaths is how many paths a ledger follows, and how many entries a layer
// may have. It bounds memory, not the image: at a block a file it is five
// times [DefaultMax].
const MaxPaths = 10_000_000

var (
	// ErrTooLarge says that the root file system passed the limit.
	ErrTooLarge = errors.New("root file system too large")

	// ErrTooManyPaths says that a layer has more entries or names than a
	// ledger holds.
	ErrTooManyPaths = errors.New("too many paths in the root file system")

	// ErrEntry says that a layer has an entry that cannot be unpacked: a name
	// that no file system takes, or a file where a directory is needed.
	ErrEntry = errors.New("invalid layer entry")

	// ErrDelta says that a [Delta] is corrupt or of an unknown version.
	ErrDelta = errors.New("invalid layer delta")

	// ErrClosed says that a layer is used after its end.
	ErrClosed = errors.New("layer is closed")
)

// A Source is the Dockerfile line that a layer comes from.
type Source struct {
	Line int    // 1 is the first; 0 is the base image
	Text string // the instruction as users know it
}
