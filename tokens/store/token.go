package store

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/tokens"
)

// CreateToken implements [tokens.TokenStore].
func (s *Store) CreateToken(ctx context.Context, t tokens.Token, hash tokens.Digest, d tokens.Decision) error {
	command, err := encodeCommand(t.Command)
	if err != nil {
		return err
	}
	if err := checkKeys(t.ID, t.Org, t.User); err != nil {
		return err
	}
	return s.ordered(ctx, d, func(tx *sqldb.Tx) error {
		if err := mayCreate(ctx, tx, &t); err != nil {
			return err
		}
		parent := sql.NullString{String: t.Parent, Valid: t.Parent != ""}
		n, err := tx.Exec(ctx, `insert into tokens (id, hash, org, type, name, app, env, permission, command, session, parent,
			username, created_by, created, expires, revoked, revoked_by, last_used, last_addr)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) on conflict do nothing`,
			t.ID, hex.EncodeToString(hash[:]), t.Org, t.Type, t.Name, t.App, t.Env, t.Permission, command, flag(t.Session), parent,
			t.User, t.CreatedBy, t.Created.UnixMilli(), millis(t.Expires), millis(t.Revoked), t.RevokedBy, millis(t.LastUsed), t.LastAddr)
		if err == nil && n == 0 {
			return exists("token", t.ID)
		}
		return err
	})
}

// mayCreate looks for what a token cannot live without.
func mayCreate(ctx context.Context, tx *sqldb.Tx, t *tokens.Token) error {
	var n int
	if t.Parent != "" {
		row := tx.QueryRow(ctx, `select 1 from tokens where org = $1 and id = $2 and revoked is null and (expires is null or expires > $3)`,
			t.Org, t.Parent, t.Created.UnixMilli())
		if err := row.Scan(&n); err != nil {
			return found(err, "parent token", t.Parent)
		}
	}
	err := tx.QueryRow(ctx, `select 1 from users where org = $1 and name = $2 and removed is not null`, t.Org, t.User).Scan(&n)
	if err == nil {
		return notFound("user", t.User)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// TokenByHash implements [tokens.TokenStore].
func (s *Store) TokenByHash(ctx context.Context, hash tokens.Digest) (tokens.Token, string, error) {
	var t tokens.Token
	var role, stored string
	row := s.db.QueryRow(ctx, `select `+tokenColumns+`, t.hash, coalesce(u.role, $1) from tokens t
		left join users u on u.org = t.org and u.name = t.username and u.removed is null where t.hash = $2`,
		tokens.RoleDeveloper, hex.EncodeToString(hash[:]))
	if err := scanToken(row, &t, &stored, &role); err != nil {
		return tokens.Token{}, "", found(err, "token", "")
	}
	// Which entries an index compares a hash with takes time that tells of
	// them; whether it is this one is decided in constant time.
	if subtle.ConstantTimeCompare([]byte(stored), []byte(hex.EncodeToString(hash[:]))) != 1 {
		return tokens.Token{}, "", notFound("token", "")
	}
	return t, role, nil
}

// TokenByID implements [tokens.TokenStore].
func (s *Store) TokenByID(ctx context.Context, id string) (t tokens.Token, role string, err error) {
	row := s.db.QueryRow(ctx, `select `+tokenColumns+`, coalesce(u.role, $1) from tokens t
		left join users u on u.org = t.org and u.name = t.username and u.removed is null where t.id = $2`, tokens.RoleDeveloper, id)
	err = scanToken(row, &t, &role)
	return t, role, found(err, "token", id)
}

// Token implements [tokens.TokenStore].
func (s *Store) Token(ctx context.Context, org, id string) (t tokens.Token, err error) {
	err = scanToken(s.db.QueryRow(ctx, `select `+tokenColumns+` from tokens t where org = $1 and id = $2`, org, id), &t)
	return t, found(err, "token", id)
}

// defaultLimit is how many tokens a query without a limit returns at most.
const defaultLimit = 1000

// Tokens implements [tokens.TokenStore].
func (s *Store) Tokens(ctx context.Context, q tokens.TokenQuery) ([]tokens.Token, error) {
	var args arguments
	where := `org = ` + args.add(q.Org)
	for _, f := range []struct{ column, value string }{
		{"app = ", q.App}, {"env = ", q.Env}, {"type = ", q.Type}, {"username = ", q.User}, {"parent = ", q.Parent}, {"id < ", q.Before},
	} {
		if f.value != "" {
			where += ` and ` + f.column + args.add(f.value)
		}
	}
	if !q.Sessions {
		where += ` and session = 0`
	}
	limit := q.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	rows := s.db.Query(ctx, `select `+tokenColumns+` from tokens t where `+where+` order by id desc limit `+args.add(limit), args...)
	all, err := sqldb.Collect(rows, func(r sqldb.Row) (t tokens.Token, err error) {
		return t, scanToken(r, &t)
	})
	return all, explained(err)
}

// touchAtOnce is how many uses one statement writes.
const touchAtOnce = 500

// TouchTokens implements [tokens.TokenStore].
func (s *Store) TouchTokens(ctx context.Context, uses []tokens.Use) error {
	last := map[string]tokens.Use{} // a statement must not have a token twice
	for _, u := range uses {
		if old, ok := last[u.ID]; !ok || old.At.Before(u.At) {
			last[u.ID] = u
		}
	}
	if len(last) == 0 {
		return nil
	}
	return explained(s.db.Update(ctx, func(tx *sqldb.Tx) error {
		// In turn: whoever ends the same tokens locks them in another order.
		if err := turn(ctx, tx); err != nil {
			return err
		}
		for some := range slices.Chunk(slices.Sorted(maps.Keys(last)), touchAtOnce) {
			var args arguments
			var rows []string
			for _, id := range some {
				u := last[id]
				rows = append(rows, fmt.Sprintf("(%s, cast(%s as bigint), %s)", args.add(clean(id)), args.add(u.At.UnixMilli()), args.add(clean(u.Addr))))
			}
			_, err := tx.Exec(ctx, `with uses (id, at, addr) as (values `+strings.Join(rows, ", ")+`)
				update tokens set last_used = uses.at, last_addr = uses.addr from uses
				where tokens.id = uses.id and (tokens.last_used is null or tokens.last_used < uses.at)`, args...)
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

const tokenColumns = `t.id, t.org, t.type, t.name, t.app, t.env, t.permission, t.command, t.session, coalesce(t.parent, ''),
	t.username, t.created_by, t.created, t.expires, t.revoked, t.revoked_by, t.last_used, t.last_addr`

// scanToken reads tokenColumns, and then more.
func scanToken(row sqldb.Row, t *tokens.Token, more ...any) error {
	var command string
	var session int
	err := row.Scan(append([]any{&t.ID, &t.Org, &t.Type, &t.Name, &t.App, &t.Env, &t.Permission, &command, &session, &t.Parent,
		&t.User, &t.CreatedBy, when{&t.Created}, when{&t.Expires}, when{&t.Revoked}, &t.RevokedBy, when{&t.LastUsed}, &t.LastAddr}, more...)...)
	if err != nil {
		return err
	}
	t.Session = session != 0
	if command == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(command), &t.Command); err != nil {
		return fmt.Errorf("command of token %s: %w", t.ID, err)
	}
	return nil
}

// encodeCommand returns the text that is kept for an argv.
func encodeCommand(argv []string) (string, error) {
	if len(argv) == 0 {
		return "", nil
	}
	if err := checkText(argv...); err != nil {
		return "", err
	}
	text, err := json.Marshal(argv)
	return string(text), err
}
