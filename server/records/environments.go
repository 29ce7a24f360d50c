package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
)

// Decisions about environments that callers take.
var (
	ErrNoEnvironment     = errors.New("no such environment")
	ErrEnvironmentExists = errors.New("the environment exists")
)

// An Environment is where images run.
type Environment struct {
	Org       string
	Name      string
	CreatedBy string // name of the token
	Created   time.Time
	Deleted   time.Time // zero means not
}

// CreateEnvironment adds an environment. One that was deleted begins again,
// with what had been recorded of it. [ErrEnvironmentExists] if it is there.
func (s *Store) CreateEnvironment(ctx context.Context, e Environment) error {
	n, err := s.db.Exec(ctx, `insert into environments (org, name, created_by, created) values ($1, $2, $3, $4)
		on conflict (org, name) do update set created_by = excluded.created_by, created = excluded.created, deleted = 0
		where environments.deleted <> 0`, e.Org, e.Name, e.CreatedBy, e.Created.UnixMilli())
	return one(n, err, ErrEnvironmentExists, "record environment "+e.Name)
}

// DeleteEnvironment marks an environment as deleted; what was recorded of it
// stays. [ErrNoEnvironment] if there is none, or no more.
func (s *Store) DeleteEnvironment(ctx context.Context, org, name string, at time.Time) error {
	n, err := s.db.Exec(ctx, `update environments set deleted = $1 where org = $2 and name = $3 and deleted = 0`, at.UnixMilli(), org, name)
	return one(n, err, ErrNoEnvironment, "delete environment "+name)
}

// one returns none if a statement changed no row.
func one(n int64, err, none error, what string) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n == 0 {
		return none
	}
	return nil
}

const selectEnvironment = `select org, name, created_by, created, deleted from environments`

// Environment returns an environment, also one that was deleted, or
// [ErrNoEnvironment].
func (s *Store) Environment(ctx context.Context, org, name string) (Environment, error) {
	e, err := scanEnvironment(s.db.QueryRow(ctx, selectEnvironment+` where org = $1 and name = $2`, org, name))
	if errors.Is(err, sql.ErrNoRows) {
		return e, ErrNoEnvironment
	}
	return e, err
}

// Environments returns those of an org that were not deleted, by name.
func (s *Store) Environments(ctx context.Context, org string) ([]Environment, error) {
	return sqldb.Collect(s.db.Query(ctx, selectEnvironment+` where org = $1 and deleted = 0 order by name`, org), scanEnvironment)
}

func scanEnvironment(row sqldb.Row) (e Environment, err error) {
	var created, deleted int64
	err = row.Scan(&e.Org, &e.Name, &e.CreatedBy, &created, &deleted)
	e.Created, e.Deleted = at(created), at(deleted)
	return e, err
}
