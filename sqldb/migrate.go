package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
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
	unlock, err := d.lockFile(ctx)
	if err != nil {
		return d.explained(ctx, fmt.Errorf("wait to migrate by %s: %w", table, err))
	}
	defer unlock()
	if _, err := p.Up(ctx); err != nil {
		return d.explained(ctx, fmt.Errorf("migrate by %s: %w", table, err))
	}
	return nil
}

// lockFile waits until nobody else migrates a file of SQLite, by a lock on its
// directory: opening and closing the file itself would take away the locks that
// SQLite has on it. PostgreSQL has an [advisoryLock].
func (d *DB) lockFile(ctx context.Context) (unlock func(), err error) {
	if d.dialect != SQLite {
		return func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(d.name))
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			dir.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			dir.Close()
			return nil, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
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
