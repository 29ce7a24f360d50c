// Package sqldb opens the database in which a daemon keeps what must survive
// it: a file of SQLite, or PostgreSQL where several daemons share one. What
// stands on it writes each statement once, in the SQL that both read: $1 for
// arguments, returning, on conflict; text for IDs, hashes and JSON, bigint for
// times in Unix milliseconds. Read [Open] first, then [DB.Update].
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// A Dialect is which SQL a database speaks where the two differ.
type Dialect string

// The dialects. Their values are what names of migrations have in them.
const (
	SQLite     Dialect = "sqlite"
	PostgreSQL Dialect = "postgres"
)

// A DB is an open database. It is safe for concurrent use. Its statements, and
// those of a [Tx], fail with an [Error] where the database itself is at fault.
type DB struct {
	statements

	name    string // for errors: without a password
	dialect Dialect
	explain explainer

	// The same pool for PostgreSQL. Writers of SQLite wait for each other in a
	// pool of their own, so that readers never wait for them.
	read, write *sql.DB
}

var scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

// Open opens the database that url names: the path of a file, also as
// sqlite:PATH, which is made if it is missing and which nobody but its owner
// may read; or postgres://USER:PASSWORD@HOST:PORT/DATABASE. What a statement
// acknowledged survives a loss of power. Errors never show a password. Who
// opens a database closes it.
func Open(ctx context.Context, url string) (*DB, error) {
	switch found := scheme.FindString(url); {
	case found == "postgres://" || found == "postgresql://":
		return openPostgres(ctx, url)
	case found != "" && found != "sqlite://":
		return nil, fmt.Errorf("database: no such kind %s; give the path of a file or a URL that begins with postgres://", found)
	}
	file := strings.TrimPrefix(url, "sqlite:")
	if file == "" {
		return nil, errors.New("database: no name; give the path of a file or a URL that begins with postgres://")
	}
	return openSQLite(ctx, file)
}

func newDB(name string, dialect Dialect, read, write *sql.DB, explain explainer) *DB {
	d := &DB{name: name, dialect: dialect, explain: explain, read: read, write: write}
	d.statements = statements{read: read, write: write, explain: d.explained}
	return d
}

// Dialect says which SQL the database speaks.
func (d *DB) Dialect() Dialect { return d.dialect }

// String names the database: its file, or its host and name, never a password.
func (d *DB) String() string { return d.name }

// Ping reports whether the database answers.
func (d *DB) Ping(ctx context.Context) error { return d.explained(ctx, d.read.PingContext(ctx)) }

// Close closes the database. Statements fail from then on.
func (d *DB) Close() error {
	err := d.read.Close()
	if d.write != d.read {
		err = errors.Join(err, d.write.Close())
	}
	return d.explained(context.Background(), err)
}
