// Package records keeps the records of builds in SQL: who asked for what, how
// far it is, how it ended; what was released to which environment, and what was
// pulled from there. The text of all statements suits SQLite and PostgreSQL
// alike. Read [Store] first.
package records

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Decisions that callers take.
var (
	ErrNotFound = errors.New("no such build")
	ErrExists   = errors.New("a build with this idempotency key exists")
)

// Statuses of a build.
const (
	Queued    = "queued"
	Running   = "running"
	Succeeded = "succeeded"
	Failed    = "failed"
	Cancelled = "cancelled"
)

// A Build is one build's record. Times are zero until they happen.
type Build struct {
	ID             string
	Org            string
	App            string
	Status         string
	Pipeline       string
	CreatedBy      string // name of the token
	IdempotencyKey string // empty if it has none
	Plan           bool   // it only says what a build would do, and is not listed
	Created        time.Time
	Started        time.Time
	Ended          time.Time
	Digest         string
	Tag            string
	Result         []byte // as the server encoded it
}

// Done reports whether the build has ended.
func (b *Build) Done() bool {
	return b.Status == Succeeded || b.Status == Failed || b.Status == Cancelled
}

// A Store keeps records. It is safe for concurrent use.
type Store struct{ db *sql.DB }

//go:embed migrations/*.sql
var migrations embed.FS

// Open opens the SQLite database in a file, making or migrating it. What a
// call acknowledged survives a loss of power. Nobody but the file's owner may
// read it.
func Open(ctx context.Context, file string) (*Store, error) {
	if err := protect(file); err != nil {
		return nil, fmt.Errorf("database %s: %w", file, err)
	}
	// Escaped, for the name of a directory may hold a question mark.
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	// One writer at a time is all that SQLite has; more only wait.
	db.SetMaxOpenConns(4)
	if err := migrate(ctx, db); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", file, err), db.Close())
	}
	return &Store{db}, nil
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

func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the store.
func (s *Store) Close() error { return s.db.Close() }

// Create adds a queued build. If its idempotency key is taken in its app, it
// returns the build that has it, and [ErrExists].
func (s *Store) Create(ctx context.Context, b Build) (*Build, error) {
	key := sql.NullString{String: b.IdempotencyKey, Valid: b.IdempotencyKey != ""}
	res, err := s.db.ExecContext(ctx, `insert into builds (id, org, app, status, pipeline, created_by, created, idempotency_key, plan)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (org, app, idempotency_key) do nothing`,
		b.ID, b.Org, b.App, Queued, b.Pipeline, b.CreatedBy, b.Created.UnixMilli(), key, number(b.Plan))
	if err != nil {
		return nil, fmt.Errorf("record build %s: %w", b.ID, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 1 {
		return &b, err
	}
	row := s.db.QueryRowContext(ctx, selectBuild+` where org = $1 and app = $2 and idempotency_key = $3`, b.Org, b.App, b.IdempotencyKey)
	old, err := scan(row)
	if err != nil {
		return nil, err
	}
	return old, ErrExists
}

// Start marks a queued build as running.
func (s *Store) Start(ctx context.Context, id string, at time.Time) error {
	_, err := s.db.ExecContext(ctx, `update builds set status = $1, started = $2 where id = $3 and status = $4`, Running, at.UnixMilli(), id, Queued)
	return err
}

// End records how a build ended. Only the first end counts.
func (s *Store) End(ctx context.Context, b Build) error {
	_, err := s.db.ExecContext(ctx, endBuild, endArgs(&b)...)
	if err != nil {
		return fmt.Errorf("record end of build %s: %w", b.ID, err)
	}
	return nil
}

const endBuild = `update builds set status = $1, ended = $2, digest = $3, tag = $4, result = $5
	where id = $6 and status in ($7, $8)`

func endArgs(b *Build) []any {
	return []any{b.Status, b.Ended.UnixMilli(), b.Digest, b.Tag, b.Result, b.ID, Queued, Running}
}

// Free lets go of a build's idempotency key, so that the next build with it
// is another one.
func (s *Store) Free(ctx context.Context, id string) error {
	_, err := s.db.ExecContext(ctx, `update builds set idempotency_key = null where id = $1`, id)
	if err != nil {
		return fmt.Errorf("free key of build %s: %w", id, err)
	}
	return nil
}

// Get returns a build of an org, or [ErrNotFound].
func (s *Store) Get(ctx context.Context, org, id string) (*Build, error) {
	return scan(s.db.QueryRowContext(ctx, selectBuild+` where org = $1 and id = $2`, org, id))
}

// A Query selects builds, newest first.
type Query struct {
	Org    string
	App    string // empty means all
	Status string // empty means any
	Before string // only ids below this one; empty means all
	Limit  int
}

// List returns the builds that q selects, plans not among them.
func (s *Store) List(ctx context.Context, q Query) ([]*Build, error) {
	return s.query(ctx, ` where org = $1 and ($2 = '' or app = $2) and ($3 = '' or id < $3) and ($4 = '' or status = $4) and plan = 0
		order by id desc limit $5`, q.Org, q.App, q.Before, q.Status, q.Limit)
}

// Unfinished returns the builds of all orgs that have not ended.
func (s *Store) Unfinished(ctx context.Context) ([]*Build, error) {
	return s.query(ctx, ` where status in ($1, $2) order by id`, Queued, Running)
}

// TagOf returns the tag of the app's last successful build with a digest, "" if
// there is none.
func (s *Store) TagOf(ctx context.Context, org, app, digest string) (string, error) {
	var tag string
	err := s.db.QueryRowContext(ctx, `select tag from builds where org = $1 and app = $2 and digest = $3 and status = $4 order by id desc limit 1`,
		org, app, digest, Succeeded).Scan(&tag)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return tag, err
}

const selectBuild = `select id, org, app, status, pipeline, created_by, created, started, ended, digest, tag, result, coalesce(idempotency_key, ''), plan from builds`

func (s *Store) query(ctx context.Context, where string, args ...any) ([]*Build, error) {
	rows, err := s.db.QueryContext(ctx, selectBuild+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []*Build
	for rows.Next() {
		b, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, rows.Err()
}

func scan(row interface{ Scan(...any) error }) (*Build, error) {
	var b Build
	var created, started, ended, plan int64
	err := row.Scan(&b.ID, &b.Org, &b.App, &b.Status, &b.Pipeline, &b.CreatedBy, &created, &started, &ended, &b.Digest, &b.Tag, &b.Result, &b.IdempotencyKey, &plan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNotFound
	}
	b.Created, b.Started, b.Ended, b.Plan = at(created), at(started), at(ended), plan != 0
	return &b, err
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
