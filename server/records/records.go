// Package records keeps the records of builds in SQL: who asked for what, how
// far it is, how it ended; what was released to which environment, and what was
// pulled from there. Its database is of either kind that sqldb opens. Read
// [Store] first.
package records

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
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
type Store struct {
	db    *sqldb.DB
	close func() error
}

//go:embed migrations/*.sql
var migrations embed.FS

// New returns the store in a database, whose tables it makes or migrates. The
// caller closes the database, after the last use of the store.
func New(ctx context.Context, db *sqldb.DB) (*Store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	// The name of the table is of a time when nobody else used the database.
	if err := db.Migrate(ctx, files, "goose_db_version"); err != nil {
		return nil, err
	}
	return &Store{db, func() error { return nil }}, nil
}

// Open is New in a database of the store's own, which Close closes.
func Open(ctx context.Context, url string) (*Store, error) {
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	s, err := New(ctx, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.close = db.Close
	return s, nil
}

// Close ends the use of the store.
func (s *Store) Close() error { return s.close() }

// Create adds a queued build. If its idempotency key is taken in its app, it
// returns the build that has it, and [ErrExists].
func (s *Store) Create(ctx context.Context, b Build) (*Build, error) {
	key := sql.NullString{String: b.IdempotencyKey, Valid: b.IdempotencyKey != ""}
	n, err := s.db.Exec(ctx, `insert into builds (id, org, app, status, pipeline, created_by, created, idempotency_key, plan)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (org, app, idempotency_key) do nothing`,
		b.ID, b.Org, b.App, Queued, b.Pipeline, b.CreatedBy, b.Created.UnixMilli(), key, number(b.Plan))
	if err != nil {
		return nil, fmt.Errorf("record build %s: %w", b.ID, err)
	}
	if n == 1 {
		return &b, nil
	}
	row := s.db.QueryRow(ctx, selectBuild+` where org = $1 and app = $2 and idempotency_key = $3`, b.Org, b.App, b.IdempotencyKey)
	old, err := scan(row)
	if err != nil {
		return nil, err
	}
	return old, ErrExists
}

// Start marks a queued build as running.
func (s *Store) Start(ctx context.Context, id string, at time.Time) error {
	_, err := s.db.Exec(ctx, `update builds set status = $1, started = $2 where id = $3 and status = $4`, Running, at.UnixMilli(), id, Queued)
	return err
}

// End records how a build ended. Only the first end counts.
func (s *Store) End(ctx context.Context, b Build) error {
	_, err := s.db.Exec(ctx, endBuild, endArgs(&b)...)
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
	_, err := s.db.Exec(ctx, `update builds set idempotency_key = null where id = $1`, id)
	if err != nil {
		return fmt.Errorf("free key of build %s: %w", id, err)
	}
	return nil
}

// Get returns a build of an org, or [ErrNotFound].
func (s *Store) Get(ctx context.Context, org, id string) (*Build, error) {
	return scan(s.db.QueryRow(ctx, selectBuild+` where org = $1 and id = $2`, org, id))
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
	err := s.db.QueryRow(ctx, `select tag from builds where org = $1 and app = $2 and digest = $3 and status = $4 order by id desc limit 1`,
		org, app, digest, Succeeded).Scan(&tag)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return tag, err
}

const selectBuild = `select id, org, app, status, pipeline, created_by, created, started, ended, digest, tag, result, coalesce(idempotency_key, ''), plan from builds`

func (s *Store) query(ctx context.Context, where string, args ...any) ([]*Build, error) {
	return sqldb.Collect(s.db.Query(ctx, selectBuild+where, args...), scan)
}

func scan(row sqldb.Row) (*Build, error) {
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
