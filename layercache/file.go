package layercache

import (
	"container/list"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A sharedFile is an open file with several users. The last one closes it.
type sharedFile struct {
	f *os.File

	mu   sync.Mutex
	refs int
}

func newSharedFile(f *os.File) *sharedFile { return &sharedFile{f: f, refs: 1} }

// acquire reports whether the file is open, and if so keeps it open until
// release.
func (s *sharedFile) acquire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs == 0 {
		return false
	}
	s.refs++
	return true
}

func (s *sharedFile) release() {
	s.mu.Lock()
	s.refs--
	last := s.refs == 0
	s.mu.Unlock()
	if last {
		s.f.Close() // nothing to flush: written files were synced before
	}
}

// handles keeps packs open that are read from, at most max of them besides
// those in use.
type handles struct {
	mu     sync.Mutex
	max    int
	recent *list.List // of *handle, last used first
	byID   map[recordID]*list.Element
}

type handle struct {
	id   recordID
	blob digest.Digest
	size int64
	*sharedFile
}

func (h *handles) init(limit int) {
	h.max, h.recent, h.byID = limit, list.New(), make(map[recordID]*list.Element)
}

// get returns the open file of a pack, nil if it is not open. The caller
// releases it.
func (h *handles) get(id recordID) *handle {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[id]
	if e == nil {
		return nil
	}
	h.recent.MoveToFront(e)
	hd := e.Value.(*handle)
	hd.acquire()
	return hd
}

// open opens a pack, which must have the given size, and remembers it. The
// caller releases it.
func (h *handles) open(id recordID, blob digest.Digest, path string, size int64) (*handle, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, &damage{blob: blob, record: &id, what: "its file is gone"}
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil {
		f.Close()
		return nil, err
	} else if st.Size() != size {
		f.Close()
		return nil, &damage{blob: blob, record: &id, what: fmt.Sprintf("its file has %d bytes instead of %d", st.Size(), size)}
	}
	hd := &handle{id: id, blob: blob, size: size, sharedFile: newSharedFile(f)}
	hd.acquire()
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.byID[id]; e != nil {
		h.remove(e)
	}
	h.byID[id] = h.recent.PushFront(hd)
	for h.recent.Len() > h.max {
		h.remove(h.recent.Back())
	}
	return hd, nil
}

// remove takes a pack out; it is closed when its last reader is done.
func (h *handles) remove(e *list.Element) {
	hd := h.recent.Remove(e).(*handle)
	delete(h.byID, hd.id)
	hd.release()
}

// forget takes the packs out that are in a blob, so that no idle file keeps
// the space of a removed one.
func (h *handles) forget(blob digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.recent.Front(); e != nil; {
		next := e.Next()
		if e.Value.(*handle).blob == blob {
			h.remove(e)
		}
		e = next
	}
}

func (h *handles) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.recent.Len() > 0 {
		h.remove(h.recent.Front())
	}
}

// forgetPack is forget for one pack, whose record is gone.
func (h *handles) forgetPack(id recordID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.byID[id]; e != nil {
		h.remove(e)
	}
}
