package rootfs

import "golang.org/x/sys/unix"

const blockSize = 4096

// size returns what an inode takes. A large file has index blocks, too.
func size(st *unix.Stat_t) int64 {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n := blocks(st.Size)
		if extents := (st.Size + 16<<20 - 1) / (16 << 20); extents > 4 {
			n += (extents + 339) / 340 * blockSize
		}
		return n
	case unix.S_IFDIR:
		return max(blocks(st.Size), blockSize)
	case unix.S_IFLNK:
		if st.Size > 59 {
			return blockSize
		}
	}
	return 0
}

func blocks(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }
