package sandbox

import (
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A stack is a list of overlay lower directories, topmost first.
type stack []string

// lookup finds what the merged tree has at name, a clean relative path. It
// returns the path of the entry in the layer that decides, and false if the
// tree has none. Symbolic links are not followed.
func (s stack) lookup(name string) (string, unix.Stat_t, bool) {
	for _, dir := range s.dirs(path.Dir(name)) {
		p := filepath.Join(dir, path.Base(name))
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			continue
		}
		return p, st, !isWhiteout(&st)
	}
	return "", unix.Stat_t{}, false
}

// dirs returns the directories that overlayfs merges at name.
func (s stack) dirs(name string) stack {
	if name == "." {
		return s
	}
	var merged stack
	for _, dir := range s.dirs(path.Dir(name)) {
		p := filepath.Join(dir, path.Base(name))
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		merged = append(merged, p)
		if isOpaque(p) {
			break
		}
	}
	return merged
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isOpaque(dir string) bool {
	for _, attr := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		var value [1]byte
		if n, err := unix.Lgetxattr(dir, attr, value[:]); err == nil && n == 1 && value[0] == 'y' {
			return true
		}
	}
	return false
}
