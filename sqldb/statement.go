package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"
)

// A Row is what can be read of a row. Scan takes what [sql.Row.Scan] takes.
type Row interface{ Scan(dest ...any) error }

// runner is a pool or a transaction.
type runner interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// statements runs statements and explains how they fail. A text that one of the
// databases would not keep as it is fails with [ErrInvalidText] in both.
type statements struct {
	read, write runner
	explain     func(context.Context, error) error
}

// Exec runs a statement that changes something and returns how many rows it
// changed.
func (s statements) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	if err := check(args); err != nil {
		return 0, err
	}
	res, err := s.write.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, s.explain(ctx, err)
	}
	n, err := res.RowsAffected()
	return n, s.explain(ctx, err)
}

// QueryRow returns the first row that a query finds; its Scan returns
// [sql.ErrNoRows] if there is none. Outside of a [Tx] it may not change anything.
func (s statements) QueryRow(ctx context.Context, query string, args ...any) Row {
	if err := check(args); err != nil {
		return failed{err}
	}
	return row{s.read.QueryRowContext(ctx, query, args...), func(err error) error { return s.explain(ctx, err) }}
}

// Query yields the rows that a query finds, each good until the next. It stops
// at the first error. Until the loop ends it holds a connection: a loop must not
// wait for others. Outside of a [Tx] it may not change anything.
func (s statements) Query(ctx context.Context, query string, args ...any) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		if err := check(args); err != nil {
			yield(nil, err)
			return
		}
		rows, err := s.read.QueryContext(ctx, query, args...)
		if err != nil {
			yield(nil, s.explain(ctx, err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			if !yield(row{rows, func(err error) error { return s.explain(ctx, err) }}, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, s.explain(ctx, err))
		}
	}
}

// Collect returns what scan makes of each row.
func Collect[T any](rows iter.Seq2[Row, error], scan func(Row) (T, error)) ([]T, error) {
	var all []T
	for row, err := range rows {
		if err != nil {
			return nil, err
		}
		v, err := scan(row)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// In returns placeholders for n arguments of which the first has number from:
// ($2, $3).
func In(from, n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(", $")
		fmt.Fprint(&b, from+i)
	}
	return "(" + strings.TrimPrefix(b.String(), ", ") + ")"
}

type row struct {
	Row
	explain func(error) error
}

func (r row) Scan(dest ...any) error { return r.explain(r.Row.Scan(dest...)) }

// failed is the row of a query that was not asked.
type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }

// check refuses texts that PostgreSQL refuses. SQLite would keep them.
func check(args []any) error {
	for i, a := range args {
		s, ok := a.(string)
		if n, null := a.(sql.NullString); null {
			s, ok = n.String, n.Valid
		}
		if ok && (!utf8.ValidString(s) || strings.ContainsRune(s, 0)) {
			return fmt.Errorf("%w: argument %d, %.50q", ErrInvalidText, i+1, s)
		}
	}
	return nil
}

// A Tx is a transaction. It is not safe for concurrent use.
type Tx struct{ statements }

// attempts is how often a transaction is tried that PostgreSQL ended because
// others were in its way.
const attempts = 5

// Update runs f in a transaction, and commits if f returns nil. What f read is
// as current as what it locks: SQLite has one writer at a time; PostgreSQL lets
// a statement see what was committed when it began, and f may run again if it
// came into the way of others, so it must set, not add to, what it returns by.
// f uses tx alone: with SQLite, a statement of the database would wait for f.
func (d *DB) Update(ctx context.Context, f func(tx *Tx) error) error {
	for n := 1; ; n++ {
		err := d.update(ctx, f)
		if n == attempts || !isConflict(err) {
			return err
		}
	}
}

func (d *DB) update(ctx context.Context, f func(*Tx) error) error {
	tx, err := d.write.BeginTx(ctx, nil)
	if err != nil {
		return d.explained(ctx, err)
	}
	defer tx.Rollback() // once it is committed, nothing
	if err := f(&Tx{statements{read: tx, write: tx, explain: d.explained}}); err != nil {
		if errors.Is(err, sql.ErrTxDone) { // because ctx ended
			return d.explained(ctx, err)
		}
		return err
	}
	return d.explained(ctx, tx.Commit())
}
