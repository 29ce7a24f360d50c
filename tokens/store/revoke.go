package store

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
)

// atOnce is how many tokens one statement names.
const atOnce = 2000

// tree selects, as the table tree, the tokens that a condition selects and all
// that descend from them. Union, not union all: a tree may be named by more
// than one of its tokens.
func tree(condition string) string {
	return `with recursive tree (id) as (select id from tokens where ` + condition + `
		union select tokens.id from tokens join tree on tokens.parent = tree.id) `
}

// RevokeTokens implements [tokens.TokenStore].
func (s *Store) RevokeTokens(ctx context.Context, org string, ids []string, by string, at time.Time, d tokens.Decision) ([]string, error) {
	var revoked []string
	err := s.ordered(ctx, d, func(tx *sqldb.Tx) error {
		revoked = nil
		if err := checkAll(ctx, tx, org, ids); err != nil {
			return err
		}
		for some := range slices.Chunk(ids, atOnce) {
			args := arguments{org}
			condition := `org = $1 and id in ` + args.list(some)
			more, err := revoke(ctx, tx, condition, args, by, at)
			if err != nil {
				return err
			}
			revoked = append(revoked, more...)
		}
		return publish(ctx, tx, revoked)
	})
	if err != nil {
		return nil, err
	}
	return revoked, nil
}

// revoke revokes the tokens that a condition selects and their descendants. It
// returns those that were not before.
func revoke(ctx context.Context, tx *sqldb.Tx, condition string, args arguments, by string, at time.Time) ([]string, error) {
	query := tree(condition) + `update tokens set revoked = ` + args.add(at.UnixMilli()) + `, revoked_by = ` + args.add(by) + `
		where revoked is null and id in (select id from tree) returning id`
	return sqldb.Collect(tx.Query(ctx, query, args...), scanID)
}

// publish puts revoked tokens where other daemons look. Only one transaction
// at a time has its turn, so a higher revision is never there before a lower one.
func publish(ctx context.Context, tx *sqldb.Tx, revoked []string) error {
	if len(revoked) == 0 {
		return nil
	}
	var revision int64
	if err := tx.QueryRow(ctx, `update token_state set revision = revision + 1 returning revision`).Scan(&revision); err != nil {
		return err
	}
	for some := range slices.Chunk(revoked, atOnce) {
		var args arguments
		at := args.add(revision)
		_, err := tx.Exec(ctx, `insert into revocations (revision, token) select cast(`+at+` as bigint), id from tokens where id in `+args.list(some), args...)
		if err != nil {
			return err
		}
	}
	return nil
}

// checkAll reports the first of ids that is not a token of the org.
func checkAll(ctx context.Context, tx *sqldb.Tx, org string, ids []string) error {
	for some := range slices.Chunk(ids, atOnce) {
		args := arguments{org}
		rows := tx.Query(ctx, `select id from tokens where org = $1 and id in `+args.list(some), args...)
		there := make(map[string]bool, len(some))
		for row, err := range rows {
			if err != nil {
				return err
			}
			id, err := scanID(row)
			if err != nil {
				return err
			}
			there[id] = true
		}
		for _, id := range some {
			if !there[id] {
				return notFound("token", id)
			}
		}
	}
	return nil
}

// DeleteTokens implements [tokens.TokenStore].
func (s *Store) DeleteTokens(ctx context.Context, org string, ids []string, at time.Time, d tokens.Decision) error {
	return s.ordered(ctx, d, func(tx *sqldb.Tx) error {
		if err := checkAll(ctx, tx, org, ids); err != nil {
			return err
		}
		for some := range slices.Chunk(ids, atOnce) {
			if err := checkDead(ctx, tx, org, some, at); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(ids, atOnce) {
			args := arguments{org}
			if _, err := tx.Exec(ctx, tree(`org = $1 and id in `+args.list(some))+`delete from tokens where id in (select id from tree)`, args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkDead reports a token, of ids or descending from them, that is still good.
func checkDead(ctx context.Context, tx *sqldb.Tx, org string, ids []string, at time.Time) error {
	args := arguments{org}
	query := tree(`org = $1 and id in `+args.list(ids)) + `select id from tokens where id in (select id from tree)
		and revoked is null and (expires is null or expires > ` + args.add(at.UnixMilli()) + `) order by id`
	good, err := sqldb.Collect(tx.Query(ctx, query, args...), scanID)
	if err != nil || len(good) == 0 {
		return err
	}
	for _, id := range good {
		if slices.Contains(ids, id) {
			return fmt.Errorf("token %q: %w", clip(id), tokens.ErrInUse)
		}
	}
	return fmt.Errorf("token %q, which descends from one of them: %w", clip(good[0]), tokens.ErrInUse)
}

// RevokedAfter implements [tokens.TokenStore]. A cursor is the number of the
// last revocation that its reader knows.
func (s *Store) RevokedAfter(ctx context.Context, cursor string) ([]string, string, error) {
	if cursor == "" {
		var revision int64
		err := s.db.QueryRow(ctx, `select revision from token_state`).Scan(&revision)
		return nil, strconv.FormatInt(revision, 10), err
	}
	revision, err := strconv.ParseInt(cursor, 10, 64)
	if err != nil {
		return nil, cursor, fmt.Errorf("%w: %q is no cursor", tokens.ErrInvalid, clip(cursor))
	}
	rows := s.db.Query(ctx, `select token, revision from revocations where revision > $1 order by revision, token`, revision)
	ids, err := sqldb.Collect(rows, func(r sqldb.Row) (id string, err error) {
		return id, r.Scan(&id, &revision)
	})
	if err != nil {
		return nil, cursor, err
	}
	return ids, strconv.FormatInt(revision, 10), nil
}

func scanID(r sqldb.Row) (id string, err error) { return id, r.Scan(&id) }

// RemoveUser implements [tokens.PrincipalStore].
func (s *Store) RemoveUser(ctx context.Context, org, name, by string, at time.Time, d tokens.Decision) ([]string, error) {
	var revoked []string
	err := s.ordered(ctx, d, func(tx *sqldb.Tx) error {
		revoked = nil
		n, err := tx.Exec(ctx, `update users set removed = $1 where org = $2 and name = $3 and removed is null`, at.UnixMilli(), org, name)
		if err == nil && n == 0 {
			err = notFound("user", name)
		}
		if err != nil {
			return err
		}
		if revoked, err = revoke(ctx, tx, `org = $1 and username = $2`, arguments{org, name}, by, at); err != nil {
			return err
		}
		return publish(ctx, tx, revoked)
	})
	if err != nil {
		return nil, err
	}
	return revoked, nil
}
