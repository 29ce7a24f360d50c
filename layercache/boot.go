package layercache

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// bootID is a file that changes each time the machine starts.
const bootID = "/proc/sys/kernel/random/boot_id"

// crashed reports whether the machine went down while the store was open.
func (s *Store) crashed() (bool, error) {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return false, err
	}
	last, err := os.ReadFile(s.path("open"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && !bytes.Equal(last, boot), err
}

// begin says that the store is open since this start of the machine, and makes
// that durable before anything else is written.
func (s *Store) begin() error {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	if last, err := os.ReadFile(s.path("open")); err == nil && bytes.Equal(last, boot) {
		return nil
	}
	f, err := os.OpenFile(s.path("open"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(boot)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return syncDir(s.opts.Root)
}

// end makes all files durable, then says that the store was closed.
func (s *Store) end() error {
	d, err := os.Open(s.opts.Root)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return err
	}
	return os.Remove(s.path("open"))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// clearSpool removes what unfinished writers left, and directories that an
// earlier start put aside.
func (s *Store) clearSpool() error {
	old, err := os.ReadDir(s.path("spool"))
	if err != nil {
		return err
	}
	for _, e := range old {
		if e.IsDir() {
			continue // snapshots put aside: Collect has the time for them
		}
		if err := os.Remove(s.path("spool", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// dropSnapshots forgets all snapshots and cache mounts. Their directories are
// put aside.
func (s *Store) dropSnapshots(db *bolt.DB) error {
	s.log.Warn("the machine went down while the cache was open, dropping its snapshots and cache mounts", "root", s.opts.Root)
	for _, name := range []string{"snapshots", mountsDir} {
		if err := s.setAside(name); err != nil {
			return err
		}
	}
	if err := s.makeDirs(); err != nil {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error {
		if err := endGeneration(tx); err != nil {
			return err
		}
		names, err := orgs(tx)
		if err != nil {
			return err
		}
		for _, org := range names {
			if err := forgetSnapshots(tx, org); err != nil {
				return err
			}
		}
		// A namespace may have snapshots of lodgers alone.
		for _, ns := range namespacesIn(tx) {
			if err := forgetNamespace(tx, ns); err != nil {
				return err
			}
		}
		return nil
	})
}

// forgetSnapshots removes what Slipway's records know of an org's snapshots and
// cache mounts.
func forgetSnapshots(tx *bolt.Tx, org string) error {
	own := tx.Bucket(slipwayBucket).Bucket(orgsBucket).Bucket([]byte(org))
	for _, name := range [][]byte{snapshotsBucket, mountsBucket, lodgedBucket} {
		if own.Bucket(name) == nil {
			continue
		}
		if err := own.DeleteBucket(name); err != nil {
			return err
		}
	}
	return nil
}

// forgetNamespace removes a namespace's snapshots from containerd's schema v1,
// and the leases of lodgers, whose records are void without them.
func forgetNamespace(tx *bolt.Tx, ns string) error {
	if err := dropForeignLeases(tx, ns); err != nil {
		return err
	}
	b := tx.Bucket([]byte("v1")).Bucket([]byte(ns))
	if b.Bucket([]byte("snapshots")) == nil {
		return nil
	}
	return b.DeleteBucket([]byte("snapshots"))
}

// wipe puts everything aside: what a database that does not read back
// described cannot be found again.
func (s *Store) wipe() error {
	for _, name := range []string{"meta.db", "snapshots", "content", mountsDir} {
		if err := s.setAside(name); err != nil {
			return err
		}
	}
	return s.makeDirs()
}

// asidePrefix begins the names of what was put aside.
const asidePrefix = "aside-"

func (s *Store) setAside(name string) error {
	dir, err := os.MkdirTemp(s.path("spool"), asidePrefix)
	if err != nil {
		return err
	}
	err = os.Rename(s.path(name), filepath.Join(dir, filepath.Base(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// setStraysAside takes away what a directory of the root has besides what is
// known.
func (s *Store) setStraysAside(dir string, known func(name string) bool) error {
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if known(e.Name()) {
			continue
		}
		if err := s.setAside(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
