package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What a database can be at fault with. An [Error] wraps one of them.
var (
	ErrBusy        = errors.New("is in use by others")
	ErrFull        = errors.New("has no room left")
	ErrCorrupt     = errors.New("is damaged")
	ErrReadOnly    = errors.New("cannot be written")
	ErrUnreachable = errors.New("cannot be reached")
)

// ErrInvalidText means that a text holds a NUL byte or is not UTF-8. It is a
// mistake of who gave the text, not of the database.
var ErrInvalidText = errors.New("text with a NUL byte, or that is not UTF-8")

// An Error says which database is at fault, with what, and what helps. What
// was acknowledged before is there when the fault is gone.
type Error struct {
	Database string // without its password
	Kind     error  // ErrBusy, …
	Hint     string
	cause    error
}

// Error is for who runs the daemon.
func (e *Error) Error() string {
	cause := strings.Join(strings.Fields(e.cause.Error()), " ")
	return fmt.Sprintf("database %s %v: %s (%s)", e.Database, e.Kind, e.Hint, cause)
}

func (e *Error) Unwrap() []error { return []error{e.Kind, e.cause} }

// An explainer makes an [Error] of what a driver returned, or adds the name.
type explainer func(name string, err error) error

// explained explains what a driver returned. What callers decide by stays as
// it is, and what a call's own end brought about is that end.
func (d *DB) explained(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, sql.ErrNoRows):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("database %s: %w", d.name, context.Cause(ctx))
	}
	return d.explain(d.name, err)
}

func explainSQLite(file string, err error) error {
	fault := func(kind error, hint string) error { return &Error{file, kind, hint, err} }
	var code int
	if e := (*sqlite.Error)(nil); errors.As(err, &e) {
		code = e.Code()
	}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fault(ErrReadOnly, "let the daemon's user write the file and its directory")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault(ErrFull, "free some space on the disk that holds it")
	case errors.As(err, new(*fs.PathError)):
		return fault(ErrUnreachable, "look at the disk that holds it, and whether its directory is there")
	}
	switch code & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL:
		return fault(ErrBusy, fmt.Sprintf("another process has held its lock for more than %v; find it with fuser, and end it", busyTimeout))
	case sqlite3.SQLITE_FULL:
		return fault(ErrFull, "free some space on the disk that holds it")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damaged(file, err.Error())
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH:
		return fault(ErrReadOnly, "let the daemon's user write the file and its directory")
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
		if diskFull(file) { // its other files fail so
			return fault(ErrFull, "free some space on the disk that holds it")
		}
		return fault(ErrUnreachable, "look at the disk that holds it, and whether its directory is there")
	}
	return fmt.Errorf("database %s: %w", file, err)
}

func damaged(file, found string) error {
	return &Error{file, ErrCorrupt, "stop the daemon, move the file and its -wal and -shm away, and put a backup in its place", errors.New(found)}
}

func diskFull(file string) bool {
	var s unix.Statfs_t
	return unix.Statfs(filepath.Dir(file), &s) == nil && s.Bavail == 0
}

// states says what the error codes of PostgreSQL mean to us; the first that a
// code begins with counts.
var states = []struct {
	code string
	kind error
	hint string
}{
	{"53100", ErrFull, "free some space on the disk of its server"},
	{"53300", ErrBusy, "its server has no connection left; raise max_connections there"},
	{"53", ErrBusy, "its server is short of something; see its log"},
	{"55P03", ErrBusy, "another session has held a lock for too long; find it in pg_stat_activity"},
	{"25P03", ErrBusy, "this transaction paused for too long; try again"},
	{"57014", ErrBusy, "the statement took too long; look for statement_timeout, and for what holds locks in pg_stat_activity"},
	{"40", ErrBusy, "others changed the same; try again"},
	{"08", ErrUnreachable, "see whether its server runs"},
	{"57P", ErrUnreachable, "its server starts or stops; try again"},
	{"28", ErrUnreachable, "its server refuses the user; correct user and password in the URL, or its pg_hba.conf"},
	{"3D000", ErrUnreachable, "its server has no database of that name; make it with createdb"},
	{"25006", ErrReadOnly, "it is a standby or set to read-only; name the primary server in the URL"},
	{"42501", ErrReadOnly, "its user lacks a right; let the user own the database: alter database NAME owner to USER"},
	{"58030", ErrUnreachable, "its server cannot use its disk; see its log"},
	{"XX001", ErrCorrupt, "restore a backup"},
	{"XX002", ErrCorrupt, "run reindex, or restore a backup"},
}

func explainPostgres(name string, err error) error {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		for _, s := range states {
			if strings.HasPrefix(e.Code, s.code) {
				return &Error{name, s.kind, s.hint, err}
			}
		}
	} else if isLost(err) {
		return &Error{name, ErrUnreachable, "see whether its server runs, and whether host and port in the URL are right", err}
	}
	return fmt.Errorf("database %s: %w", name, err)
}

// isLost reports whether there is no connection, or no longer.
func isLost(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, pgconn.ErrConnClosed)
}

// isConflict reports whether a transaction was ended for others, and may
// succeed if it is tried again.
func isConflict(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01")
}
