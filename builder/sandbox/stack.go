package sandbox

import (
	"os"
	"path/filepath"
)

// A stack is a list of overlay lower directories, topmost first.
type stack []string

// dir returns the directory at name, one element, that gives the merged tree's
// its attributes. There is none if the tree has something else at name or
// nothing; symbolic links are not followed.
func (s stack) dir(name string) (string, bool) {
	for _, layer := range s {
		p := filepath.Join(layer, name)
		if info, err := os.Lstat(p); err == nil {
			// Anything else, a whiteout too, hides the layers below.
			return p, info.IsDir()
		}
	}
	return "", false
}
