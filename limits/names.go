package limits

// names holds many short strings with four bytes of overhead each, and never
// frees one. The zero value is ready to use.
type names struct{ pages [][]byte }

// A nameRef finds a string in names; its length is kept by whoever has the ref.
type nameRef uint32

const (
	namePage = 1 << 16
	maxPages = 1 << 14 // 1 GiB
)

// add stores s, which is shorter than a page. It fails when names is full.
func (n *names) add(s string) (nameRef, error) {
	last := len(n.pages) - 1
	if last < 0 || len(n.pages[last])+len(s) > namePage {
		if len(n.pages) == maxPages {
			return 0, ErrTooManyPaths
		}
		n.pages = append(n.pages, make([]byte, 0, namePage))
		last++
	}
	p := n.pages[last]
	n.pages[last] = append(p, s...)
	return nameRef(last*namePage + len(p)), nil
}

// at returns the string at ref. The caller must not keep or change it.
func (n *names) at(ref nameRef, length int) []byte {
	p := n.pages[ref/namePage]
	off := int(ref % namePage)
	return p[off : off+length : off+length]
}
