package limits

import (
	"archive/tar"
	"strings"
)

// The model of ext4 with its defaults: 4 KiB blocks, 256-byte inodes, extents,
// hashed directories and metadata checksums. Where ext4's layout depends on
// chance, the model takes the larger size.
const (
	blockSize = 4096

	// maxFile is the largest file of ext4; a header that claims more is
	// charged as that.
	maxFile = 1 << 44

	// An inode holds four extents. A larger file needs a block for each 340
	// further ones, and a disk in use gives extents well below the maximum of
	// 128 MiB.
	inodeExtents   = 4
	typicalExtent  = 16 << 20
	extentsInBlock = 340

	// inlineLink is the longest link target that fits into an inode.
	inlineLink = 59

	// inlineXattrs is what an inode has for attributes, in their disk format.
	inlineXattrs = 88

	// flatDir is what names may take in a directory of one block, which also
	// has ".", ".." and a checksum.
	flatDir = blockSize - 24 - 12

	// Beyond one block, names are hashed to leaves. A leaf that is full is
	// split into halves, so leaves are half full at worst. When there are
	// many, they differ: on average a full leaf's names take 1.45 leaves, and
	// not more than 1.7 and a few. Nodes point to leaves.
	leafNames    = blockSize - 12
	leavesInNode = 508
)

// fileBytes returns what a regular file of the given size takes.
func fileBytes(size int64) int64 {
	size = min(size, maxFile)
	n := (size + blockSize - 1) &^ (blockSize - 1)
	if extents := (size + typicalExtent - 1) / typicalExtent; extents > inodeExtents {
		n += (extents + extentsInBlock - 1) / extentsInBlock * blockSize
	}
	return n
}

// linkBytes returns what a symbolic link with a target of n bytes takes.
func linkBytes(n int) int64 {
	if n <= inlineLink {
		return 0
	}
	return blockSize
}

// nameBytes returns what a name of n bytes takes in its directory.
func nameBytes(n int) int64 { return int64(8+n+3) &^ 3 }

// dirBlocks returns how many blocks a directory has for names of n bytes in
// all.
func dirBlocks(n int64) int64 {
	if n <= flatDir {
		return 1
	}
	leaves := min(2*n/leafNames+1, n*17/10/leafNames+4)
	blocks := 1 + leaves
	if leaves > leavesInNode {
		blocks += (leaves + leavesInNode/2 - 1) / (leavesInNode / 2) // nodes split into halves, too
	}
	return blocks
}

// xattrBlock reports whether the extended attributes of h need a block beside
// the inode. Attributes of the trusted class are never unpacked.
func xattrBlock(h *tar.Header) bool {
	var n int
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || strings.HasPrefix(name, "trusted.") {
			continue
		}
		_, suffix, _ := strings.Cut(name, ".") // the class is a number on disk
		n += 16 + (len(suffix)+3)&^3 + (len(v)+3)&^3
	}
	return n > inlineXattrs
}
