// Package store keeps tokens, and what they are about, in SQL: it is a
// [tokens.Store] over a database of either kind that sqldb opens. Read
// [tokens.Store] first, then token_state in the migrations.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
)

// A Store implements [tokens.Store]. The error of each method wraps
// [tokens.ErrInvalid] for a text that no database could keep: with a NUL byte,
// not in UTF-8, or a name or ID of more than maxKey bytes. Decisions are kept
// with such bytes replaced, for nothing that somebody tried may go unrecorded.
type Store struct{ db *sqldb.DB }

var _ tokens.Store = (*Store)(nil)

//go:embed migrations/*.sql
var migrations embed.FS

// New returns the store in a database, whose tables it makes or migrates. The
// caller closes the database, after the last use of the store.
func New(ctx context.Context, db *sqldb.DB) (*Store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx, files, "tokens_version"); err != nil {
		return nil, err
	}
	return &Store{db}, nil
}

// querier is a database or a transaction.
type querier interface {
	Exec(ctx context.Context, query string, args ...any) (int64, error)
	Query(ctx context.Context, query string, args ...any) iter.Seq2[sqldb.Row, error]
	QueryRow(ctx context.Context, query string, args ...any) sqldb.Row
}

var _, _ querier = (*sqldb.DB)(nil), (*sqldb.Tx)(nil)

// change runs f in a transaction with d, which is recorded if f succeeds.
func (s *Store) change(ctx context.Context, d tokens.Decision, f func(tx *sqldb.Tx) error) error {
	return explained(s.db.Update(ctx, func(tx *sqldb.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		return record(ctx, tx, []tokens.Decision{d})
	}))
}

// ordered is a change that takes its turn with all others that make or end
// tokens: what f reads, no other changes before f is done.
func (s *Store) ordered(ctx context.Context, d tokens.Decision, f func(tx *sqldb.Tx) error) error {
	return s.change(ctx, d, func(tx *sqldb.Tx) error {
		if err := turn(ctx, tx); err != nil {
			return err
		}
		return f(tx)
	})
}

// turn waits until no other transaction makes or ends tokens.
func turn(ctx context.Context, tx *sqldb.Tx) error {
	_, err := tx.Exec(ctx, `update token_state set revision = revision`)
	return err
}

// found names what was looked for if it was not there.
func found(err error, what, name string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return notFound(what, name)
	}
	return explained(err)
}

func notFound(what, name string) error {
	return fmt.Errorf("%s %q: %w", what, clip(name), tokens.ErrNotFound)
}

func exists(what, name string) error {
	return fmt.Errorf("%s %q: %w", what, clip(name), tokens.ErrExists)
}

// explained blames who asked for a text that cannot be.
func explained(err error) error {
	if errors.Is(err, sqldb.ErrInvalidText) {
		return fmt.Errorf("%w: %w", tokens.ErrInvalid, err)
	}
	return err
}

// maxKey bounds what an index has an entry of: PostgreSQL takes no more than
// 2.7 kB in one.
const maxKey = 512

// checkKeys refuses names and IDs that are too long for an index.
func checkKeys(keys ...string) error {
	for _, k := range keys {
		if len(k) > maxKey {
			return fmt.Errorf("%w: %q has %d bytes, and a name may have %d", tokens.ErrInvalid, clip(k), len(k), maxKey)
		}
	}
	return nil
}

// checkText refuses what JSON would change.
func checkText(texts ...string) error {
	for _, s := range texts {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			return fmt.Errorf("%w: %q is not UTF-8 without NUL", tokens.ErrInvalid, clip(s))
		}
	}
	return nil
}

// clip shortens a name for an error.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// when is a time in a column: Unix milliseconds, null for the zero time.
type when struct{ *time.Time }

// Scan implements [sql.Scanner].
func (w when) Scan(v any) error {
	var ms sql.NullInt64
	if err := ms.Scan(v); err != nil {
		return err
	}
	if *w.Time = (time.Time{}); ms.Valid {
		*w.Time = time.UnixMilli(ms.Int64).UTC()
	}
	return nil
}

// millis is a time as an argument.
func millis(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMilli(), Valid: !t.IsZero()}
}

// flag is a truth as an argument, and in a column.
func flag(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// arguments are those of one statement.
type arguments []any

// add returns the placeholder of one more.
func (a *arguments) add(v any) string {
	*a = append(*a, v)
	return "$" + strconv.Itoa(len(*a))
}

// list adds an argument for each text, and returns the list of them.
func (a *arguments) list(texts []string) string {
	from := len(*a) + 1
	for _, s := range texts {
		*a = append(*a, s)
	}
	return sqldb.In(from, len(texts))
}
