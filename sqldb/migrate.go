package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

// Migrate brings the tables of one user of the database up to date by the SQL
// files in the root of files, which goose reads: 0001_name.sql for both
// dialects, 0002_name.sqlite.sql or 0002_name.postgres.sql for one. table keeps
// which of them were applied: a name of its own for each user of a database.
// Several daemons may migrate one database at once.
func (d *DB) Migrate(ctx context.Context, files fs.FS, table string) error {
	p, err := d.provider(files, table)
	if err != nil {
		return fmt.Errorf("migrations of %s: %w", table, err)
	}
	// With SQLite another process may apply a migration between our look at the
	// table and our own attempt, which then fails: once for each, and for the
	// table itself. PostgreSQL has a lock around it all.
	for tries := len(p.ListSources()) + 1; ; tries-- {
		_, err := p.Up(ctx)
		if err == nil {
			return nil
		}
		if tries == 0 || d.dialect != SQLite || ctx.Err() != nil {
			return d.explained(ctx, fmt.Errorf("migrate by %s: %w", table, err))
		}
	}
}

func (d *DB) provider(files fs.FS, table string) (*goose.Provider, error) {
	other, dialect := PostgreSQL, goose.DialectSQLite3
	options := []goose.ProviderOption{goose.WithTableName(table)}
	if d.dialect == PostgreSQL {
		other, dialect = SQLite, goose.DialectPostgres
		options = append(options, goose.WithSessionLocker(advisoryLock{}))
	}
	names, err := fs.Glob(files, "*."+string(other)+".sql")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(dialect, d.write, files, append(options, goose.WithExcludeNames(names), goose.WithDisableGlobalRegistry(true))...)
}

// migrationLock is the number of the lock that is held while a database is
// migrated: "slipway", so that it is nobody else's.
const migrationLock = 0x736c6970776179

// advisoryLock waits for its turn, however long the migrations of others take.
type advisoryLock struct{}

func (advisoryLock) SessionLock(ctx context.Context, c *sql.Conn) error {
	if _, err := c.ExecContext(ctx, `set lock_timeout = 0`); err != nil {
		return err
	}
	_, err := c.ExecContext(ctx, `select pg_advisory_lock($1)`, int64(migrationLock))
	return err
}

func (advisoryLock) SessionUnlock(ctx context.Context, c *sql.Conn) error {
	if _, err := c.ExecContext(ctx, `select pg_advisory_unlock($1)`, int64(migrationLock)); err != nil {
		return err
	}
	_, err := c.ExecContext(ctx, `set lock_timeout = '5s'`)
	return err
}
