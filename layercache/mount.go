package layercache

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A Mount is a directory that an app's steps keep things in from one build to
// the next: no part of an image, and of no key. It belongs to who has it until
// Release, and is not evicted before.
type Mount struct {
	s        *Store
	use      *mountUse
	released sync.Once
}

// MountOptions says which directory [Cache.Mount] is to return.
type MountOptions struct {
	App string
	ID  string

	// Origin stands for what a new directory begins with. One that began
	// otherwise is another directory.
	Origin string

	Sharing Sharing

	// Fill makes the first content of a new directory, which is its owner's
	// alone and has the mode 0755. Nil leaves it empty.
	Fill func(ctx context.Context, dir string) error

	// Waiting is called once before the first wait for one that is Locked. It
	// may be nil.
	Waiting func()
}

// Sharing says what becomes of who asks for a [Mount] that is taken.
type Sharing int

const (
	Shared  Sharing = iota // it gets the same, if that was taken as Shared too
	Private                // it gets another one
	Locked                 // it waits
)

// mountRecord is what is stored of a mount. The directory's name is in the key.
type mountRecord struct {
	ID      string    `json:"id"`
	App     string    `json:"app,omitempty"`
	Created time.Time `json:"created"`
	Bytes   int64     `json:"bytes"`
}

// mountsDir is where the directories are.
const mountsDir = "mounts"

// mountPrefix begins the keys of all directories that the options allow. A key
// goes on with the directory's name and, for people, the id.
func (o *MountOptions) mountPrefix() string {
	h := sha256.New()
	for _, s := range []string{o.App, o.ID, o.Origin} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]) + "/"
}

// mountID returns the id of a new directory.
func (c *Cache) mountID(o *MountOptions) recordID {
	return recordID{c.org, mountKind, o.mountPrefix() + rand.Text() + "/" + o.ID[:min(len(o.ID), 200)]}
}

// mountParts splits the key of a mount into the directory's name and the id.
func mountParts(key string) (dir, id string) {
	_, rest, _ := strings.Cut(key, "/")
	dir, id, _ = strings.Cut(rest, "/")
	return dir, id
}

func (s *Store) mountPath(id recordID) string {
	dir, _ := mountParts(id.key)
	return s.path(mountsDir, dir)
}

func (c *Cache) mountResource(key string) resource { return resource{c.ns, mountsKind, key} }

// A mountUse is a directory that somebody has.
type mountUse struct {
	id     recordID
	shared bool
	users  int
	made   chan struct{} // closed when the directory is there, or could not be made
	failed bool
}

// mountUses are the directories that are taken.
type mountUses struct {
	mu    sync.Mutex
	taken map[recordID]*mountUse
	freed chan struct{} // closed at the next release
}

func (u *mountUses) init() {
	u.taken, u.freed = make(map[recordID]*mountUse), make(chan struct{})
}

// nextRelease returns a channel that is closed when something is given back.
func (u *mountUses) nextRelease() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.freed
}

// leave takes one user off.
func (u *mountUses) leave(use *mountUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if use.users--; use.users > 0 {
		return
	}
	delete(u.taken, use.id)
	close(u.freed)
	u.freed = make(chan struct{})
}

// hold adds what is taken to held.
func (u *mountUses) hold(s *Store, held map[resource]bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range u.taken {
		held[s.Org(id.org).mountResource(id.key)] = true
	}
}

// errMountTaken says that a directory must be waited for.
var errMountTaken = errors.New("taken")

// Mount returns a directory of the app. One that is Locked is waited for until
// ctx is done. A directory that is new is recorded when it is filled: what a
// process leaves that is killed before is removed by the next [Open].
func (c *Cache) Mount(ctx context.Context, o MountOptions) (*Mount, error) {
	waited := false
	for {
		freed := c.s.mounts.nextRelease()
		m, err := c.mount(ctx, &o)
		if err == nil {
			return m, nil
		}
		if !errors.Is(err, errMountTaken) {
			return nil, fmt.Errorf("cache mount %s: %w", o.ID, err)
		}
		if !waited && o.Waiting != nil {
			o.Waiting()
		}
		waited = true
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *Cache) mount(ctx context.Context, o *MountOptions) (*Mount, error) {
	use, mine, broken, err := c.takeMount(ctx, o)
	for _, dmg := range broken {
		if err := ignoreNotFound(c.s.repair(ctx, c, dmg)); err != nil {
			c.s.log.Warn("cannot drop a lost cache mount", "err", err)
		}
	}
	if err != nil {
		return nil, err
	}
	if mine {
		err = c.makeMount(ctx, o, use)
		use.failed = err != nil
		close(use.made)
	} else {
		select {
		case <-use.made:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err == nil && use.failed {
		err = errMountTaken // by who could not make it: try again
	}
	if err != nil {
		c.s.mounts.leave(use)
		return nil, err
	}
	c.s.touched.add(use.id)
	return &Mount{s: c.s, use: use}, nil
}

// takeMount picks a directory: one that is shared, else the free one that was
// used last, else a new one, which is the caller's to make.
func (c *Cache) takeMount(ctx context.Context, o *MountOptions) (use *mountUse, mine bool, broken []*damage, err error) {
	c.s.sweep.RLock()
	defer c.s.sweep.RUnlock()
	u := &c.s.mounts
	u.mu.Lock()
	defer u.mu.Unlock()
	found, broken, err := c.findMounts(ctx, o.mountPrefix())
	if err != nil {
		return nil, false, broken, err
	}
	taken := false
	for id, use := range u.taken {
		if id.org != c.org || !strings.HasPrefix(id.key, o.mountPrefix()) {
			continue
		}
		if taken = true; use.shared && o.Sharing == Shared {
			use.users++
			return use, false, broken, nil
		}
	}
	use = &mountUse{shared: o.Sharing == Shared, users: 1, made: make(chan struct{})}
	at := slices.IndexFunc(found, func(id recordID) bool { return u.taken[id] == nil })
	switch {
	case at >= 0:
		use.id = found[at]
		close(use.made)
	case taken && o.Sharing == Locked:
		return nil, false, broken, errMountTaken
	default:
		use.id, mine = c.mountID(o), true
	}
	u.taken[use.id] = use
	return use, mine, broken, nil
}

// findMounts lists the directories whose keys begin with prefix, last used
// first, and what is broken of them.
func (c *Cache) findMounts(ctx context.Context, prefix string) (ids []recordID, broken []*damage, err error) {
	used := make(map[recordID]time.Time)
	err = c.view(func(tx *bolt.Tx) error {
		b := c.bucket(tx, mountsBucket)
		if b == nil {
			return nil
		}
		cur := b.Cursor()
		for k, _ := cur.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)); k, _ = cur.Next() {
			rec, err := c.mountRecord(ctx, tx, string(k))
			if dmg, ok := errors.AsType[*damage](err); ok {
				broken = append(broken, dmg)
				continue
			}
			if err != nil {
				return err
			}
			id := recordID{c.org, mountKind, string(k)}
			ids = append(ids, id)
			used[id] = rec.Created
			if b := c.bucket(tx, usedBucket); b != nil {
				if at := decodeTime(b.Get(id.usedKey())); !at.IsZero() {
					used[id] = at
				}
			}
		}
		return nil
	})
	c.s.touched.overlay(used)
	slices.SortFunc(ids, func(a, b recordID) int { return cmp.Or(used[b].Compare(used[a]), cmp.Compare(a.key, b.key)) })
	return ids, broken, err
}

// mountRecord reads the record of a directory, which must be there. The error is
// ErrNotFound or *damage.
func (c *Cache) mountRecord(_ context.Context, tx *bolt.Tx, key string) (mountRecord, error) {
	id := recordID{c.org, mountKind, key}
	rec, err := getRecord[mountRecord](c.bucket(tx, mountsBucket), []byte(key))
	if errors.Is(err, errGarbage) {
		return rec, &damage{record: &id, what: err.Error()}
	}
	if err != nil {
		return rec, err
	}
	if st, err := os.Lstat(c.s.mountPath(id)); err != nil || !st.IsDir() {
		return rec, &damage{record: &id, what: "its directory is gone"}
	}
	return rec, nil
}

// Dir returns the directory.
func (m *Mount) Dir() string { return m.s.mountPath(m.use.id) }

// Release gives the directory back. What it holds is counted afterwards, in
// the background; [Store.Close], [Store.Usage] and [Store.Prune] wait for that.
// Nothing may be mounted on the directory any more.
func (m *Mount) Release() {
	m.released.Do(func() {
		s, id := m.s, m.use.id
		s.touched.add(id)
		s.behind.run(func() {
			if err := s.weighMount(context.Background(), id); err != nil {
				s.log.Warn("cannot count a cache mount", "what", id.String(), "err", err)
			}
		})
		s.mounts.leave(m.use)
		s.used.futile.Store(0)
	})
}
