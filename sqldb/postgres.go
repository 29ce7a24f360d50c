package sqldb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// What one daemon takes of a server, which by default has 100 connections.
const (
	maxConns     = 16
	maxIdleConns = 8
	maxIdleTime  = 5 * time.Minute
	maxLifetime  = time.Hour // a server may have got another address meanwhile
)

// connectTimeout is how long a connection may take if its URL does not say.
const connectTimeout = 10 * time.Second

// session is what each connection asks of its server: not to wait for the locks
// of others for ever; not to keep those of a daemon that died within a
// transaction; and to have written what it acknowledges.
const session = `select set_config('lock_timeout', '5s', false),
	set_config('idle_in_transaction_session_timeout', '30s', false),
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end, false)`

func openPostgres(ctx context.Context, text string) (*DB, error) {
	config, err := pgx.ParseConfig(text)
	if err != nil || isTorn(text) {
		return nil, badURL(text, err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	pool := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, session)
		return err
	}))
	pool.SetMaxOpenConns(maxConns)
	pool.SetMaxIdleConns(maxIdleConns)
	pool.SetConnMaxIdleTime(maxIdleTime)
	pool.SetConnMaxLifetime(maxLifetime)
	db := newDB(postgresName(config), PostgreSQL, pool, pool, explainPostgres)
	if err := db.checkEncoding(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// checkEncoding refuses databases that cannot keep every text.
func (d *DB) checkEncoding(ctx context.Context) error {
	var encoding string
	if err := d.QueryRow(ctx, `select current_setting('server_encoding')`).Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		return fmt.Errorf("database %s has the encoding %s; make one with: createdb --encoding=UTF8 --template=template0 NAME", d, encoding)
	}
	return nil
}

func postgresName(c *pgx.ConnConfig) string {
	if strings.HasPrefix(c.Host, "/") {
		return fmt.Sprintf("%s on %s", c.Database, c.Host)
	}
	return fmt.Sprintf("%s on %s", c.Database, net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))))
}

// isTorn reports whether a URL's password has a mark in it that ends the host's
// part, so that the rest would count as the database or as an option.
func isTorn(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.User != nil {
		return err != nil
	}
	for option := range u.Query() {
		if strings.Contains(option, "@") {
			return true
		}
	}
	return strings.Contains(u.Path+u.Fragment, "@")
}

// badURL says what is wrong with a URL, in words that have no part of its
// password.
func badURL(text string, err error) error {
	const form = "write it like postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, with %%XX for what is not a letter or digit in the password"
	u, parseErr := url.Parse(text)
	var parse *pgconn.ParseConfigError
	if parseErr != nil || !errors.As(err, &parse) || parse.Unwrap() == nil {
		return fmt.Errorf("database: this is no URL of PostgreSQL; " + form)
	}
	reason := parse.Unwrap().Error()
	password, _ := u.User.Password()
	for _, secret := range []string{password, u.Query().Get("password"), u.Query().Get("sslpassword")} {
		if secret != "" {
			reason = strings.ReplaceAll(reason, secret, "xxxxx")
		}
	}
	return fmt.Errorf("database: this is no URL of PostgreSQL: %s; "+form, reason)
}
