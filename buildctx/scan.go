package buildctx

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// ScanOptions tunes [Scan]. A nil *ScanOptions means the defaults.
type ScanOptions struct {
	// Dockerfile is the path of the build's recipe, in the context or not.
	// The ignore file beside it, named like it with ".dockerignore" added,
	// goes before the context's own. Empty means that there is none, as when
	// the recipe comes from standard input.
	Dockerfile string
	// IgnoreFile is the ignore file to use instead of any other. It must
	// exist. Empty means to look for one.
	IgnoreFile string
	// HashCache remembers digests from scan to scan; nil means that every
	// file is read.
	HashCache *HashCache
	// Warn gets what went wrong without making the scan fail; nil means
	// that nobody wants to know.
	Warn func(error)
	// Progress hears about ten times a second how far the scan is, when the
	// walk has ended and when all is done. Calls come one at a time.
	Progress func(ScanProgress)
	// Parallel is how many files are read at a time; 0 means one a core.
	Parallel int
}

// ScanProgress says how far a scan is.
type ScanProgress struct {
	Entries int   // found so far
	Files   int   // regular files among them
	Bytes   int64 // of these files
	// Stale and StaleBytes are the files whose content must be read, known
	// when the walk has ended; Hashed and HashedBytes are those read.
	Stale, Hashed           int
	StaleBytes, HashedBytes int64
}

// A Dir is a directory to send. It is kept open so that contents can be read
// until Close.
type Dir struct {
	// Manifest is nil until the directory is scanned.
	*Manifest
	// IgnoreFile is the ignore file that applies, relative to the directory
	// if it lies in there. Empty means none.
	IgnoreFile     string
	IgnorePatterns int
	// Stats is the last progress report.
	Stats ScanProgress

	path   string
	ignore *ignore
	files  *opener
}

// Open opens the directory at dir, following dir itself if it is a link, and
// finds the ignore file. Errors wrap [ErrIgnore] for the latter. The caller
// closes the Dir.
func Open(dir string, o *ScanOptions) (*Dir, error) {
	if o == nil {
		o = &ScanOptions{}
	}
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("read context: %w", err)
	}
	ig, err := findIgnore(abs, o)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("read context: %w", err)
	}
	return &Dir{IgnoreFile: ig.file, IgnorePatterns: ig.patterns, path: abs, ignore: ig, files: newOpener(root)}, nil
}

// Scan opens the directory at dir and scans it.
func Scan(ctx context.Context, dir string, o *ScanOptions) (*Dir, error) {
	d, err := Open(dir, o)
	if err != nil {
		return nil, err
	}
	if err := d.Scan(ctx, o); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Scan lists the directory, leaving out what the ignore file says, and
// digests every file. Symbolic links are not followed. It is called once.
//
// Errors wrap [ErrUnsupported] for sockets and devices, and [ErrChanged] for a
// file that is written to meanwhile.
func (d *Dir) Scan(ctx context.Context, o *ScanOptions) error {
	if o == nil {
		o = &ScanOptions{}
	}
	start := o.HashCache.now()
	known := o.HashCache.load()
	w := &walker{ctx: ctx, dir: d.path, ignore: d.ignore, known: known, tick: newTicker(o.Progress)}
	if err := w.walk(d.files.root); err != nil {
		return err
	}
	h := &hasher{files: d.files, entries: w.entries, stamps: w.stamps, stale: w.stale, parallel: o.Parallel, tick: w.tick}
	if h.parallel <= 0 {
		h.parallel = runtime.GOMAXPROCS(0)
	}
	if err := h.run(ctx); err != nil {
		return err
	}
	d.Manifest = &Manifest{Entries: w.entries}
	d.Stats = w.tick.done()
	if len(w.stale) == 0 && known.used == known.records {
		return nil
	}
	if err := o.HashCache.save(w.entries, w.stamps, start); err != nil && o.Warn != nil {
		o.Warn(fmt.Errorf("hash cache: %w", err))
	}
	return nil
}

// Close lets go of the directory. No content can be opened afterwards.
func (d *Dir) Close() error { return d.files.close() }

// A ticker passes progress on, but not too often.
type ticker struct {
	now    ScanProgress
	report func(ScanProgress)
	next   time.Time
}

const tickEvery = 100 * time.Millisecond

func newTicker(report func(ScanProgress)) *ticker {
	return &ticker{report: report, next: time.Now().Add(tickEvery)}
}

// maybe reports if it is time to.
func (t *ticker) maybe() {
	if t.report == nil {
		return
	}
	if now := time.Now(); now.After(t.next) {
		t.next = now.Add(tickEvery)
		t.report(t.now)
	}
}

// done reports in any case.
func (t *ticker) done() ScanProgress {
	if t.report != nil {
		t.report(t.now)
	}
	return t.now
}
