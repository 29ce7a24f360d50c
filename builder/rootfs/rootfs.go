// Package rootfs turns the upper directory of an overlay mount into a layer
// and back.
//
// What a step changed is exactly what its upper directory holds, so
// [WriteUpper] makes a layer without a look at the directories below, and
// [Gauge] and [Credit] watch a step that still writes. [Apply] unpacks a layer
// into an upper directory. Deletions are device files and attributes on one
// side and names that begin with ".wh." on the other; see whiteout.go.
//
// Neither side trusts what it finds: directories are walked by descriptors that
// follow no links, and what a layer names stays in its upper directory.
package rootfs

import "errors"

var (
	// ErrUpper says that an upper directory has something that a layer cannot
	// express: an overlay feature that must be off, or a path that is too long.
	ErrUpper = errors.New("overlay upper directory cannot become a layer")

	// ErrLayer says that a layer has an entry that cannot be unpacked.
	ErrLayer = errors.New("layer cannot be unpacked")
)
