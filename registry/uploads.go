package registry

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	uploadAge   = 24 * time.Hour // an upload that rested this long is abandoned
	purgePeriod = 6 * time.Hour
)

// purgeUploads removes abandoned uploads, now and every few hours, until ctx
// ends.
func (r *Registry) purgeUploads(ctx context.Context) {
	tick := time.NewTicker(purgePeriod)
	defer tick.Stop()
	for {
		if err := r.purge(ctx, time.Now().Add(-uploadAge)); err != nil && ctx.Err() == nil {
			r.log.Warn("registry: removing abandoned uploads", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// purge removes the uploads that nobody has touched since before.
func (r *Registry) purge(ctx context.Context, before time.Time) error {
	return filepath.WalkDir(r.layout.repositories(), func(path string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case filepath.Base(filepath.Dir(path)) == "_uploads":
			return r.purgeUpload(path, before)
		case strings.HasPrefix(e.Name(), "_") && e.Name() != "_uploads":
			return fs.SkipDir
		}
		return nil
	})
}

func (r *Registry) purgeUpload(dir string, before time.Time) error {
	used, err := lastUsed(dir)
	if err != nil || used.After(before) {
		return fs.SkipDir // finished meanwhile, or in use
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	r.log.Info("registry: removed an abandoned upload", "last_used", used)
	return fs.SkipDir
}

// lastUsed returns when something in an upload's directory last changed.
func lastUsed(dir string) (time.Time, error) {
	var last time.Time
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err == nil && fi.ModTime().After(last) {
			last = fi.ModTime()
		}
		return err
	})
	return last, err
}
