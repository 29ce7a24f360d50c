package layercache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	bolt "go.etcd.io/bbolt"
	errbolt "go.etcd.io/bbolt/errors"
)

// snapshotterName is the overlayfs snapshotter's name in the metadata database.
const snapshotterName = "overlayfs"

// Options tunes a [Store]. Only Root must be set.
type Options struct {
	Root     string         // directory of the store; made if it is missing
	MaxBytes int64          // ceiling of the cache; 0 means 50 GB, less than 0 none
	MinFree  int64          // what stays free on the disk; 0 means 5 % but at most 5 GB, less than 0 nothing
	Log      *slog.Logger   // gets a record for each eviction and repair; nil means none
	OnEvict  func(Eviction) // called after each eviction, one at a time; it must not ask for usage; nil means none

	// OpenLodgers opens the lodgers of an org, "" means all, that have records
	// on the disk and are not open; see [Cache.Lodge]. It must not wait for
	// anybody who waits for the store. Nil means that there are none.
	OpenLodgers func(ctx context.Context, org string) error
}

// A Store is the cache of all orgs on one disk. Its methods, and those of all
// that comes from it, may be called concurrently unless they say otherwise.
type Store struct {
	opts Options
	log  *slog.Logger

	meta    *metadata.DB
	content content.Store
	snaps   snapshots.Snapshotter
	leases  leases.Manager
	overlay snapshots.Snapshotter // beneath snaps, without namespaces
	write   batcher

	// sweep keeps garbage collection away between the moment something is
	// found or put on the disk and the moment it is held or registered.
	sweep sync.RWMutex

	holds   holds
	held    heldLeases
	touched touches
	handles handles
	buffers buffers
	used    gauge
	mounts  mountUses
	lodgers lodgers
	spares  spares

	behind     background   // finds out sizes of cache mounts
	relieving  background   // evicts for relieveSoon
	relief     atomic.Int64 // calls of relieveSoon that were not heeded yet
	generation string

	reserved atomic.Int64 // bytes that builds under way are about to write
	linking  sync.Mutex   // while a content's file gets its second name
	evicting sync.Mutex   // one eviction at a time; lodgers are called meanwhile
	telling  sync.Mutex   // around OnEvict

	closing sync.Once
	closed  error
}

// Open opens the store in opts.Root. The caller makes sure that no other
// process has it open.
//
// A process that was killed loses nothing that was acknowledged to it. When
// the machine went down without a [Store.Close], snapshots and cache mounts
// are dropped, for their files may never have reached the disk; blobs and
// records stay. [Store.Generation] tells.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s := &Store{opts: opts, log: opts.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.makeDirs(); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if err := s.clearSpool(); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	crashed, err := s.crashed()
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	err = s.open(ctx, crashed)
	if corrupt(err) {
		s.log.Warn("cache database does not read back, starting empty", "root", opts.Root, "err", err)
		if err = s.wipe(); err == nil {
			err = s.open(ctx, false)
		}
	}
	if err == nil {
		err = s.putMountsAside()
	}
	if err == nil {
		err = s.begin()
	}
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	s.holds.live = make(map[*Lease]struct{})
	s.handles.init(64)
	s.mounts.init()
	return s, nil
}

func (s *Store) makeDirs() error {
	for _, dir := range []string{s.path("spool"), s.path(mountsDir), s.blobs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// open joins the parts of containerd. On an error nothing stays open.
func (s *Store) open(ctx context.Context, dropSnapshots bool) (err error) {
	db, err := bolt.Open(s.path("meta.db"), 0o600, &bolt.Options{
		Timeout:         time.Second, // another process has it
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: 1 << 28, // address space only; growing it would wait for every reader
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			db.Close()
		}
	}()
	if dropSnapshots {
		if err := s.dropSnapshots(db); err != nil {
			return err
		}
	}
	if err := s.openOverlay(ctx); err != nil {
		return err
	}
	blobs, err := local.NewStore(s.path("content"))
	if err != nil {
		s.overlay.Close()
		return err
	}
	// The bare interface hides the snapshotter's Cleanup, which removes
	// directories: Collect calls it after it has let go of its locks.
	bare := struct{ snapshots.Snapshotter }{s.overlay}
	s.meta = metadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{snapshotterName: bare})
	if err := s.meta.Init(ctx); err != nil {
		s.overlay.Close()
		return err
	}
	s.content = s.meta.ContentStore()
	s.snaps = s.meta.Snapshotter(snapshotterName)
	s.leases = metadata.NewLeaseManager(s.meta)
	s.write.update = s.update
	if err := s.readGeneration(); err != nil {
		s.overlay.Close()
		return err
	}
	return nil
}

// openOverlay opens the snapshotter. Its own small database is not synced: it
// survives the end of the process, and after the end of the machine the
// snapshots are dropped anyway.
func (s *Store) openOverlay(ctx context.Context) (err error) {
	root := s.path("snapshots")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	ms, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"), func(o *bolt.Options) error {
		o.NoSync, o.NoGrowSync = true, true
		o.Timeout = time.Second
		return nil
	})
	if err != nil {
		return err
	}
	s.overlay, err = overlay.NewSnapshotter(root, overlay.WithMetaStore(ms), overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return err
	}
	if err := s.putStraysAside(ctx, ms); err != nil {
		s.overlay.Close()
		return err
	}
	return nil
}

// putStraysAside takes away the snapshot directories that the database does
// not know. The process may have been killed after it had made a directory and
// before that was recorded: the next snapshot gets the same number.
func (s *Store) putStraysAside(ctx context.Context, ms *storage.MetaStore) error {
	var known map[string]string
	// The first transaction opens the file, and so tells whether it reads.
	err := ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		known, err = storage.IDMap(ctx)
		return ignoreNone(err)
	})
	if err != nil {
		return err
	}
	return s.setStraysAside(filepath.Join("snapshots", "snapshots"), func(name string) bool {
		_, ok := known[name]
		return ok
	})
}

// corrupt reports whether err says that a database file is damaged.
func corrupt(err error) bool {
	for _, e := range []error{errbolt.ErrInvalid, errbolt.ErrChecksum, errbolt.ErrVersionMismatch} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// update runs one transaction of its own; for changes that must not run twice.
func (s *Store) update(apply func(*bolt.Tx) error) error {
	return s.meta.Update(func(tx *bolt.Tx) error {
		if err := apply(tx); err != nil {
			return err
		}
		return s.touched.flushIfDue(tx)
	})
}

// Close writes back what is pending and closes the store. Blobs and snapshots
// that are still being written fail.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.behind.settle()
		s.relieving.settle()
		s.sweep.Lock()
		defer s.sweep.Unlock()
		s.handles.closeAll()
		err := s.meta.Update(s.touched.flush)
		err = errors.Join(err, s.overlay.Close(), s.meta.Close())
		if err == nil {
			err = s.end()
		}
		if err != nil {
			s.closed = fmt.Errorf("close cache: %w", err)
		}
	})
	return s.closed
}

// Org returns the cache of one org.
func (s *Store) Org(org string) *Cache { return &Cache{s: s, org: org, ns: namespace(org)} }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.opts.Root}, elem...)...)
}

func (s *Store) blobs() string { return s.path("content", "blobs", "sha256") }

// within returns ctx such that containerd's stores take part in tx.
func (c *Cache) within(ctx context.Context, tx *bolt.Tx) context.Context {
	return boltutil.WithTransaction(c.context(ctx), tx)
}

// A gauge is the size of the cache on the disk, as far as it is known.
type gauge struct {
	bytes    atomic.Int64
	measured atomic.Bool
	futile   atomic.Int64 // unix nanoseconds; before that, another try to evict is pointless
}
