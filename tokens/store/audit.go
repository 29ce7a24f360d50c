package store

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
)

// recordAtOnce is how many decisions one statement writes.
const recordAtOnce = 200

// Record implements [tokens.AuditStore].
func (s *Store) Record(ctx context.Context, ds []tokens.Decision) error {
	return explained(s.db.Update(ctx, func(tx *sqldb.Tx) error { return record(ctx, tx, ds) }))
}

func record(ctx context.Context, q querier, ds []tokens.Decision) error {
	for some := range slices.Chunk(ds, recordAtOnce) {
		var args arguments
		var rows []string
		for _, d := range some {
			if d.ID == "" {
				return fmt.Errorf("%w: a decision without an ID (%s %s)", tokens.ErrInvalid, d.Action, clip(d.Resource))
			}
			from := len(args) + 1
			args = append(args, clean(d.ID), d.Time.UnixMilli(), clean(d.Org), clean(d.Token), clean(d.Actor), clean(d.Action), clean(d.Resource),
				clean(d.Addr), flag(d.Allowed), clean(d.Reason), d.Count)
			rows = append(rows, sqldb.In(from, len(args)+1-from))
		}
		_, err := q.Exec(ctx, `insert into decisions (id, time, org, token, actor, action, resource, addr, allowed, reason, count)
			values `+strings.Join(rows, ", ")+` on conflict do nothing`, args...)
		if err != nil {
			return err
		}
	}
	return nil
}

// clean replaces what no database keeps: what somebody tried is recorded,
// whatever bytes were in it.
func clean(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}

// pageSize is how many entries are read at once. No connection is held while
// they are yielded: who exports the log may be slow.
const pageSize = 500

// Decisions implements [tokens.AuditStore].
func (s *Store) Decisions(ctx context.Context, q tokens.AuditQuery) iter.Seq2[tokens.Decision, error] {
	return func(yield func(tokens.Decision, error) bool) {
		var last *tokens.Decision
		for {
			page, err := s.page(ctx, q, last)
			if err != nil {
				yield(tokens.Decision{}, explained(err))
				return
			}
			for _, d := range page {
				if !yield(d, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
			last = &page[len(page)-1]
		}
	}
}

// page returns the entries that q selects and that come after the last one.
func (s *Store) page(ctx context.Context, q tokens.AuditQuery, last *tokens.Decision) ([]tokens.Decision, error) {
	var args arguments
	where := []string{`org = ` + args.add(q.Org)}
	if q.Unknown {
		where[0] = `(` + where[0] + ` or org = '')`
	}
	if last != nil {
		where = append(where, `(time, id) > (`+args.add(last.Time.UnixMilli())+`, `+args.add(last.ID)+`)`)
	}
	if !q.Since.IsZero() {
		where = append(where, `time >= `+args.add(q.Since.UnixMilli()))
	}
	if !q.Until.IsZero() {
		where = append(where, `time < `+args.add(q.Until.UnixMilli()))
	}
	if q.Token != "" {
		where = append(where, `token = `+args.add(q.Token))
	}
	if q.Denied {
		where = append(where, `allowed = 0`)
	}
	rows := s.db.Query(ctx, `select id, time, org, token, actor, action, resource, addr, allowed, reason, count from decisions
		where `+strings.Join(where, ` and `)+` order by time, id limit `+args.add(pageSize), args...)
	return sqldb.Collect(rows, func(r sqldb.Row) (d tokens.Decision, err error) {
		var allowed int
		err = r.Scan(&d.ID, when{&d.Time}, &d.Org, &d.Token, &d.Actor, &d.Action, &d.Resource, &d.Addr, &allowed, &d.Reason, &d.Count)
		d.Allowed = allowed != 0
		return d, err
	})
}
