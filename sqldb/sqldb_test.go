package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
)

var cluster sqldbtest.Cluster

func TestMain(m *testing.M) {
	if os.Getenv(writerEnv) != "" {
		writeUntilKilled()
	}
	os.Exit(cluster.Main(m))
}

func open(t testing.TB, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func exec(t testing.TB, db *sqldb.DB, query string, args ...any) int64 {
	t.Helper()
	n, err := db.Exec(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func number(t testing.TB, db *sqldb.DB, query string, args ...any) (n int64) {
	t.Helper()
	if err := db.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestStatements(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, `create table words (id bigint primary key, word text)`)
		for i, w := range []string{"one", "", "three", `'; drop table words; --`} {
			if n := exec(t, db, `insert into words values ($1, $2)`, i, sql.NullString{String: w, Valid: w != ""}); n != 1 {
				t.Errorf("inserted %d rows", n)
			}
		}
		words, err := sqldb.Collect(db.Query(t.Context(), `select coalesce(word, 'null') from words where id in `+sqldb.In(1, 3)+` order by id`, 0, 1, 3), func(r sqldb.Row) (w string, err error) {
			return w, r.Scan(&w)
		})
		if got := fmt.Sprintf("%q", words); err != nil || got != `["one" "null" "'; drop table words; --"]` {
			t.Errorf("words %s, %v", got, err)
		}
		var w string
		if err := db.QueryRow(t.Context(), `select word from words where id = $1`, 9).Scan(&w); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("no row: %v", err)
		}
		if err := db.QueryRow(t.Context(), `select word from words where id = 1`).Scan(&w); err == nil {
			t.Error("null was read as text")
		}
		if n := exec(t, db, `insert into words values (1, 'again') on conflict do nothing`); n != 0 {
			t.Errorf("a taken ID: %d rows inserted", n)
		}
		for _, err := range db.Query(t.Context(), `select nonsense`) {
			if err == nil || !strings.Contains(err.Error(), db.String()) {
				t.Errorf("a wrong statement: %v; want the database's name", err)
			}
		}
		if _, err := sqldb.Collect(db.Query(t.Context(), `select word from words`), func(r sqldb.Row) (n int, err error) { return n, r.Scan(&n) }); err == nil {
			t.Error("words are no numbers")
		}
	})
}

// A loop that ends early gives its connection back.
func TestQueryEndedEarly(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, `create table n (n bigint)`)
		exec(t, db, `insert into n values (1), (2), (3)`)
		for range 50 {
			for _, err := range db.Query(t.Context(), `select n from n`) {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
		}
	})
}

func TestInvalidText(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, `create table words (word text)`)
		for _, arg := range []any{"a\x00b", "\xff", sql.NullString{String: "\x00", Valid: true}} {
			if _, err := db.Exec(t.Context(), `insert into words values ($1)`, arg); !errors.Is(err, sqldb.ErrInvalidText) {
				t.Errorf("insert %q: %v", arg, err)
			}
			var n int
			if err := db.QueryRow(t.Context(), `select count(*) from words where word = $1`, arg).Scan(&n); !errors.Is(err, sqldb.ErrInvalidText) {
				t.Errorf("select %q: %v", arg, err)
			}
			for _, err := range db.Query(t.Context(), `select word from words where word = $1`, arg) {
				if !errors.Is(err, sqldb.ErrInvalidText) {
					t.Errorf("select %q: %v", arg, err)
				}
			}
		}
		if n := number(t, db, `select count(*) from words`); n != 0 {
			t.Errorf("%d words", n)
		}
	})
}

func TestUpdate(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db, boom := open(t, url), errors.New("boom")
		exec(t, db, `create table n (n bigint)`)
		insert := func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into n values (1)`)
			return err
		}
		if err := db.Update(t.Context(), func(tx *sqldb.Tx) error { return errors.Join(insert(tx), boom) }); !errors.Is(err, boom) {
			t.Errorf("Update: %v", err)
		}
		func() {
			defer func() { recover() }()
			db.Update(t.Context(), func(tx *sqldb.Tx) error { insert(tx); panic(boom) })
		}()
		ctx, cancel := context.WithCancel(t.Context())
		if err := db.Update(ctx, func(tx *sqldb.Tx) error { cancel(); return insert(tx) }); !errors.Is(err, context.Canceled) {
			t.Errorf("Update with an ended context: %v", err)
		}
		if n := number(t, db, `select count(*) from n`); n != 0 {
			t.Errorf("%d rows of transactions that failed", n)
		}
		if err := db.Update(t.Context(), insert); err != nil {
			t.Error(err)
		}
		if n := number(t, db, `select count(*) from n`); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
}

// What a transaction changes first, no other changes before it has ended.
func TestConcurrentUpdates(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		dbs := []*sqldb.DB{open(t, url), open(t, url)}
		exec(t, dbs[0], `create table n (n bigint)`)
		exec(t, dbs[0], `insert into n values (0)`)
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				err := dbs[i%2].Update(t.Context(), func(tx *sqldb.Tx) error {
					if _, err := tx.Exec(t.Context(), `update n set n = n`); err != nil {
						return err
					}
					var n int
					if err := tx.QueryRow(t.Context(), `select n from n`).Scan(&n); err != nil {
						return err
					}
					_, err := tx.Exec(t.Context(), `update n set n = $1`, n+1)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := number(t, dbs[1], `select n from n`); n != 50 {
			t.Errorf("counted %d of 50", n)
		}
	})
}

// With SQLite a transaction may also read first: what it read stays true.
func TestUpdateReadsFirst(t *testing.T) {
	file := sqldbtest.File(t)
	db, other := open(t, file), open(t, file)
	exec(t, db, `create table n (n bigint)`)
	exec(t, db, `insert into n values (0)`)
	count := func(db *sqldb.DB, between func()) error {
		return db.Update(t.Context(), func(tx *sqldb.Tx) error {
			var n int
			if err := tx.QueryRow(t.Context(), `select n from n`).Scan(&n); err != nil {
				return err
			}
			between()
			_, err := tx.Exec(t.Context(), `update n set n = $1`, n+1)
			return err
		})
	}
	done := make(chan error, 1)
	err := count(db, func() {
		go func() { done <- count(other, func() {}) }()
		select {
		case err := <-done:
			t.Errorf("another one did not wait: %v", err)
			done <- err
		case <-time.After(50 * time.Millisecond):
		}
	})
	if err := errors.Join(err, <-done); err != nil {
		t.Error(err)
	}
	if n := number(t, db, `select n from n`); n != 2 {
		t.Errorf("counted %d, want 2", n)
	}
}

// What SQLite acknowledges is on the disk, and refers to what is there.
func TestPragmas(t *testing.T) {
	db := open(t, sqldbtest.File(t))
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1"} {
		err := db.Update(t.Context(), func(tx *sqldb.Tx) error {
			var got string
			err := tx.QueryRow(t.Context(), `pragma `+pragma).Scan(&got)
			if got != want {
				t.Errorf("%s is %s, want %s", pragma, got, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// Two transactions that wait for each other: PostgreSQL ends one, which is
// tried again.
func TestDeadlock(t *testing.T) {
	db := open(t, cluster.Database(t))
	exec(t, db, `create table n (id bigint, n bigint)`)
	exec(t, db, `insert into n values (0, 0), (1, 0)`)
	tries := make(chan int, 9)
	var both, wg sync.WaitGroup
	both.Add(2)
	for i := range 2 {
		wg.Go(func() {
			first := true
			err := db.Update(t.Context(), func(tx *sqldb.Tx) error {
				tries <- i
				if _, err := tx.Exec(t.Context(), `update n set n = n + 1 where id = $1`, i); err != nil {
					return err
				}
				if first {
					first = false
					both.Done()
					both.Wait()
				}
				_, err := tx.Exec(t.Context(), `update n set n = n + 1 where id = $1`, 1-i)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(tries) < 3 {
		t.Errorf("%d tries; did they not meet?", len(tries))
	}
	if n := number(t, db, `select sum(n) from n`); n != 4 {
		t.Errorf("sum %d, want 4", n)
	}
}

// A reader does not wait for a writer.
func TestReadWhileWriting(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, `create table n (n bigint)`)
		err := db.Update(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), `insert into n values (1)`)
			if n := number(t, db, `select count(*) from n`); n != 0 {
				t.Errorf("%d rows seen before they were committed", n)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// With SQLite a query that changes something would wait for all writers, and
// for ever within a transaction.
func TestQueryMayNotWrite(t *testing.T) {
	db := open(t, sqldbtest.File(t))
	exec(t, db, `create table n (n bigint)`)
	var n int
	if err := db.QueryRow(t.Context(), `insert into n values (1) returning n`).Scan(&n); !errors.Is(err, sqldb.ErrReadOnly) {
		t.Errorf("insert by a query: %v", err)
	}
}

func TestOpen(t *testing.T) {
	file := sqldbtest.File(t)
	for _, url := range []string{file, "sqlite:" + file, "sqlite://" + file} {
		db := open(t, url)
		if db.String() != file || db.Dialect() != sqldb.SQLite {
			t.Errorf("%s: %s in %s", url, db, db.Dialect())
		}
	}
	for _, url := range []string{"", "sqlite:", "mysql://root@localhost/x", "POSTGRES://x", "file:///x"} {
		if db, err := sqldb.Open(t.Context(), url); err == nil {
			t.Errorf("%q: opened %s", url, db)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cluster.Each(t, func(t *testing.T, url string) {
		if _, err := sqldb.Open(ctx, url); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

// Who may not read what is kept may not read the files that hold it either,
// also where an earlier version made them.
func TestFilesAreProtected(t *testing.T) {
	for _, made := range []os.FileMode{0, 0o644} {
		file := filepath.Join(t.TempDir(), "records.db")
		if made != 0 {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.WriteFile(file+suffix, nil, made); err != nil {
					t.Fatal(err)
				}
			}
		}
		db := open(t, file)
		exec(t, db, `create table n (n bigint)`)
		for _, suffix := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(file + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("made with mode %v: %s has %v", made, filepath.Base(file+suffix), info.Mode())
			}
		}
	}
}

// A call that ends does not wait for its statement.
func TestContext(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		forever := `with recursive n (n) as (select 1 union all select n + 1 from n) select count(*) from n`
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		var n int
		if err := db.QueryRow(ctx, forever).Scan(&n); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a long query: %v", err)
		}
		if _, err := db.Exec(ctx, `create table n (n bigint)`); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the end: %v", err)
		}
		exec(t, db, `create table n (n bigint)`)
	})
}

func TestSession(t *testing.T) {
	url := cluster.Database(t)
	for _, tc := range []struct{ option, setting, want string }{
		{"", "lock_timeout", "5s"},
		{"", "idle_in_transaction_session_timeout", "30s"},
		{"&synchronous_commit=off", "synchronous_commit", "on"},
		{"&synchronous_commit=local", "synchronous_commit", "local"},
	} {
		db := open(t, url+tc.option)
		var got string
		if err := db.QueryRow(t.Context(), `select current_setting($1)`, tc.setting).Scan(&got); err != nil || got != tc.want {
			t.Errorf("%s%s is %q, %v; want %q", tc.setting, tc.option, got, err, tc.want)
		}
	}
}
