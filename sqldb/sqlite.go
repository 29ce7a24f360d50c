package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// busyTimeout is how long a statement waits for a lock of another process.
const busyTimeout = 5 * time.Second

// readers is how many connections read a file of SQLite at a time.
const readers = 4

func openSQLite(ctx context.Context, file string) (*DB, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	clean := endedCleanly(file)
	if err := protect(file); err != nil {
		return nil, explainSQLite(file, err)
	}
	write, err := sqlitePool(file, "_txlock=immediate", 1)
	if err != nil {
		return nil, err
	}
	// Only a mistake would write here, and wait for writers to do so.
	read, err := sqlitePool(file, "_pragma=query_only(1)", readers)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	db := newDB(file, SQLite, read, write, explainSQLite)
	if err := db.prepare(ctx, clean); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func sqlitePool(file, option string, conns int) (*sql.DB, error) {
	// Escaped, for the name of a directory may hold a question mark.
	db, err := sql.Open("sqlite", fmt.Sprintf("file:%s?_pragma=busy_timeout(%d)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)&_dqs=0&%s",
		(&url.URL{Path: file}).EscapedPath(), busyTimeout.Milliseconds(), option))
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", file, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// prepare turns on the write-ahead log before anybody reads, and looks for
// damage where the last daemon was killed or the machine lost power: to look at
// each start would cost it 0.2 s for 100,000 rows of a kilobyte.
func (d *DB) prepare(ctx context.Context, clean bool) error {
	if err := d.write.PingContext(ctx); err != nil {
		return d.explained(ctx, err)
	}
	if clean {
		return nil
	}
	var found string
	if err := d.QueryRow(ctx, `pragma quick_check(1)`).Scan(&found); err != nil {
		return err
	}
	if found != "ok" {
		return damaged(d.name, found)
	}
	return nil
}

// endedCleanly reports whether who last had the file open closed it: SQLite
// then takes its log away.
func endedCleanly(file string) bool {
	info, err := os.Stat(file + "-wal")
	return err != nil || info.Size() == 0
}

// protect makes the database file before SQLite does, with a mode of its own,
// and mends that of one that is there. SQLite gives its other files the mode of
// the first. An existing file is not opened: closing it would take away the
// locks that this process may have on it.
func protect(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Chmod(file+suffix, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
