package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
)

// A Pull says that a token of an environment asked for an image, once or
// several times within moments.
type Pull struct {
	ID        string // ULID
	Org       string
	Env       string
	App       string
	Digest    string
	Tag       string // that was asked for; empty for a digest
	TokenID   string
	TokenName string
	Address   string // of the last request
	UserAgent string // of the last request
	First     time.Time
	Last      time.Time
	Count     int64 // requests
}

// SavePulls adds pulls, all or none. One whose ID is there replaces what was
// known of when, how often and from where.
func (s *Store) SavePulls(ctx context.Context, pulls []Pull) error {
	err := s.db.Update(ctx, func(tx *sqldb.Tx) error {
		for i := range pulls {
			p := &pulls[i]
			_, err := tx.Exec(ctx, `insert into pulls (id, org, env, app, digest, tag, token_id, token_name, address, user_agent, first_seen, last_seen, requests)
				values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
				on conflict (id) do update set address = excluded.address, user_agent = excluded.user_agent, last_seen = excluded.last_seen, requests = excluded.requests`,
				p.ID, p.Org, p.Env, p.App, p.Digest, p.Tag, p.TokenID, p.TokenName, p.Address, p.UserAgent, p.First.UnixMilli(), p.Last.UnixMilli(), p.Count)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record %d pulls: %w", len(pulls), err)
	}
	return nil
}

const pullColumns = `id, org, env, app, digest, tag, token_id, token_name, address, user_agent, first_seen, last_seen, requests`

const selectPull = `select ` + pullColumns + ` from pulls`

func scanPull(row sqldb.Row) (p Pull, err error) {
	var first, last int64
	err = row.Scan(&p.ID, &p.Org, &p.Env, &p.App, &p.Digest, &p.Tag, &p.TokenID, &p.TokenName, &p.Address, &p.UserAgent, &first, &last, &p.Count)
	p.First, p.Last = at(first), at(last)
	return p, err
}

// A PullQuery selects pulls from an environment, by when they were last seen,
// newest first.
type PullQuery struct {
	Org    string
	Env    string
	App    string    // empty means all
	Before time.Time // only those last seen before; zero means all
	Since  time.Time // only those last seen then or later; zero means all
	Limit  int
}

// Pulls returns the pulls that q selects.
func (s *Store) Pulls(ctx context.Context, q PullQuery) ([]Pull, error) {
	return sqldb.Collect(s.db.Query(ctx, selectPull+` where org = $1 and env = $2 and ($3 = '' or app = $3) and (cast($4 as bigint) = 0 or last_seen < $4) and last_seen >= $5
		order by last_seen desc, id desc limit $6`, q.Org, q.Env, q.App, milli(q.Before), milli(q.Since), q.Limit), scanPull)
}

// LastPulls returns the last pull of each app from an environment, or of one
// app, by app.
func (s *Store) LastPulls(ctx context.Context, org, env, app string) ([]Pull, error) {
	return sqldb.Collect(s.db.Query(ctx, lastPulls, org, env, app), scanPull)
}

// lastPulls leaps in the index from app to app, and in each to its last pull:
// pulls are many, apps are few.
const lastPulls = `with recursive apps(app) as (
		select coalesce(nullif($3, ''), (select min(app) from pulls where org = $1 and env = $2))
		union all
		select (select min(p.app) from pulls p where p.org = $1 and p.env = $2 and p.app > apps.app) from apps where $3 = '' and apps.app is not null)
	select ` + pullColumns + ` from pulls where id in (
		select (select p.id from pulls p where p.org = $1 and p.env = $2 and p.app = apps.app order by p.last_seen desc, p.id desc limit 1) from apps)
	order by app`

// PulledSince returns since when an environment has pulled no other image of
// an app than this one; zero if it never pulled it.
func (s *Store) PulledSince(ctx context.Context, org, env, app, digest string) (time.Time, error) {
	var first int64
	err := s.db.QueryRow(ctx, `select coalesce(min(first_seen), 0) from pulls where org = $1 and env = $2 and app = $3 and digest = $4 and last_seen >= (
		select coalesce(max(last_seen), 0) from pulls where org = $1 and env = $2 and app = $3 and digest <> $4)`, org, env, app, digest).Scan(&first)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	return at(first), err
}
