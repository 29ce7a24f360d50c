package sqldb_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
)

// wantFault checks that an error says which database has what fault and what
// helps.
func wantFault(t *testing.T, err, kind error, name string) {
	t.Helper()
	var e *sqldb.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) || e.Hint == "" || e.Database != name {
		t.Errorf("error %v, want that %s %v, and a hint", err, name, kind)
	} else if !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), e.Hint) {
		t.Errorf("%v does not tell all", err)
	} else {
		t.Log(err)
	}
}

func TestBusy(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		t.Parallel() // it takes as long as a lock is waited for
		db, other := open(t, url), open(t, url)
		exec(t, db, `create table n (n bigint)`)
		exec(t, db, `insert into n values (1)`)
		err := other.Update(t.Context(), func(tx *sqldb.Tx) error {
			if _, err := tx.Exec(t.Context(), `update n set n = 2`); err != nil {
				return err
			}
			_, err := db.Exec(t.Context(), `update n set n = 3`)
			wantFault(t, err, sqldb.ErrBusy, db.String())
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if n := number(t, db, `select n from n`); n != 2 {
			t.Errorf("n is %d", n)
		}
	})
}

// small mounts a small disk that the database's server may write.
func small(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir, err := os.MkdirTemp("", "slipway-small-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=9m,mode=0777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill inserts rows until the disk is full, and returns how many of them were
// acknowledged.
func fill(t *testing.T, db *sqldb.DB) (rows int64) {
	t.Helper()
	for range 100_000 {
		_, err := db.Exec(t.Context(), `insert into big values ($1)`, strings.Repeat(strconv.FormatInt(rows, 10)+" ", 10_000))
		if err != nil {
			wantFault(t, err, sqldb.ErrFull, db.String())
			return rows
		}
		rows++
	}
	t.Fatal("the disk does not fill")
	return 0
}

func TestFull(t *testing.T) {
	dir := small(t)
	file := filepath.Join(dir, "test.db")
	db := open(t, file)
	exec(t, db, `create table big (text text)`)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	rows := fill(t, db)
	if n := number(t, db, `select count(*) from big`); n != rows || n == 0 {
		t.Errorf("%d rows, %d were acknowledged", n, rows)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	exec(t, db, `insert into big values ('there is room again')`)
	if n := number(t, open(t, file), `select count(*) from big`); n != rows+1 {
		t.Errorf("%d rows, %d were acknowledged", n, rows+1)
	}
}

// A disk may be full before anything was made.
func TestOpenOnFullDisk(t *testing.T) {
	dir := small(t)
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "test.db")
	_, err = sqldb.Open(t.Context(), file)
	wantFault(t, err, sqldb.ErrFull, file)
}

// The files that SQLite has beside the database need room as well.
func TestOpenAgainOnFullDisk(t *testing.T) {
	dir := small(t)
	file := filepath.Join(dir, "test.db")
	db, err := sqldb.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, db, `create table n (n bigint)`)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	_, err = sqldb.Open(t.Context(), file)
	wantFault(t, err, sqldb.ErrFull, file)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestFullServer(t *testing.T) {
	url, dir := cluster.Database(t), small(t)
	for at := dir; at != "/"; at = filepath.Dir(at) { // the server is another user
		if info, err := os.Stat(at); err != nil || info.Mode()&1 == 0 {
			t.Skipf("the server cannot enter %s: %v", at, err)
		}
	}
	place := filepath.Join(dir, "space")
	if err := os.Mkdir(place, 0o700); err != nil {
		t.Fatal(err)
	}
	cluster.Give(t, place)
	db := open(t, url)
	exec(t, db, fmt.Sprintf(`create tablespace small location '%s'`, place))
	exec(t, db, `create table big (text text) tablespace small`)
	exec(t, db, `alter table big alter text set storage external`) // not compressed
	rows := fill(t, db)
	if n := number(t, db, `select count(*) from big`); n != rows || n == 0 {
		t.Errorf("%d rows, %d were acknowledged", n, rows)
	}
	exec(t, db, `drop table big`)
	exec(t, db, `drop tablespace small`)
}

func TestReadOnly(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		dir := small(t)
		file := filepath.Join(dir, "test.db")
		db, err := sqldb.Open(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, db, `create table n (n bigint)`)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		_, err = sqldb.Open(t.Context(), file)
		wantFault(t, err, sqldb.ErrReadOnly, file)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		db := open(t, cluster.Database(t)+"&default_transaction_read_only=on")
		_, err := db.Exec(t.Context(), `create table n (n bigint)`)
		wantFault(t, err, sqldb.ErrReadOnly, db.String())
	})
}

func TestMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "missing", "test.db")
	_, err := sqldb.Open(t.Context(), file)
	wantFault(t, err, sqldb.ErrUnreachable, file)

	dir := t.TempDir()
	_, err = sqldb.Open(t.Context(), dir)
	wantFault(t, err, sqldb.ErrUnreachable, dir)
}

// killed returns a copy of a database as it is on the disk after its daemon was
// killed, with rows of a kilobyte each.
func killed(t *testing.T, rows int) string {
	t.Helper()
	file := sqldbtest.File(t)
	db := open(t, file)
	exec(t, db, `create table big (id bigint primary key, text text)`)
	exec(t, db, `with recursive n (n) as (select 1 union all select n + 1 from n where n < $1)
		insert into big select n, replace(hex(zeroblob(512)), '0', char(97 + n % 26)) from n`, rows)
	exec(t, db, `pragma wal_checkpoint(truncate)`)
	exec(t, db, `insert into big values (0, 'in the log')`)
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(file + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

// damage overwrites a part in the middle of a file.
func damage(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("damage! ", 4096)), info.Size()/2); err != nil {
		t.Fatal(err)
	}
}

func TestCorrupt(t *testing.T) {
	t.Run("after it was killed", func(t *testing.T) {
		file := killed(t, 1000)
		if n := number(t, open(t, file), `select count(*) from big`); n != 1001 {
			t.Errorf("undamaged: %d rows", n)
		}
		file = killed(t, 1000)
		damage(t, file)
		_, err := sqldb.Open(t.Context(), file)
		wantFault(t, err, sqldb.ErrCorrupt, file)
	})
	t.Run("when it is read", func(t *testing.T) {
		file := killed(t, 1000)
		if err := os.Remove(file + "-wal"); err != nil { // as if it were closed
			t.Fatal(err)
		}
		damage(t, file)
		db := open(t, file)
		var n int
		err := db.QueryRow(t.Context(), `select sum(length(text)) from big`).Scan(&n)
		wantFault(t, err, sqldb.ErrCorrupt, file)
	})
	t.Run("not a database", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "test.db")
		if err := os.WriteFile(file, []byte(strings.Repeat("dear diary ", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := sqldb.Open(t.Context(), file)
		wantFault(t, err, sqldb.ErrCorrupt, file)
	})
}

// What a server says in a code becomes a fault of its database.
func TestStates(t *testing.T) {
	db := open(t, cluster.Database(t))
	for code, kind := range map[string]error{
		"53100": sqldb.ErrFull, "53300": sqldb.ErrBusy, "53200": sqldb.ErrBusy, "55P03": sqldb.ErrBusy, "57014": sqldb.ErrBusy, "40001": sqldb.ErrBusy,
		"57P03": sqldb.ErrUnreachable, "08006": sqldb.ErrUnreachable, "58030": sqldb.ErrUnreachable,
		"25006": sqldb.ErrReadOnly, "42501": sqldb.ErrReadOnly, "XX001": sqldb.ErrCorrupt, "XX002": sqldb.ErrCorrupt,
	} {
		_, err := db.Exec(t.Context(), fmt.Sprintf(`do $$ begin raise exception using errcode = '%s'; end $$`, code))
		t.Run(code, func(t *testing.T) { wantFault(t, err, kind, db.String()) })
	}
}

func TestUnreachable(t *testing.T) {
	url := cluster.Database(t)
	t.Run("no server", func(t *testing.T) {
		_, err := sqldb.Open(t.Context(), "postgres://ann:s3cret@127.0.0.1:1/slipway?sslpassword=s3cret")
		wantFault(t, err, sqldb.ErrUnreachable, "slipway on 127.0.0.1:1")
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v shows the password", err)
		}
	})
	t.Run("no database", func(t *testing.T) {
		_, err := sqldb.Open(t.Context(), strings.Replace(url, "/test", "/none", 1))
		if !errors.Is(err, sqldb.ErrUnreachable) || !strings.Contains(err.Error(), "createdb") {
			t.Errorf("Open: %v", err)
		}
	})
	t.Run("the server ends a connection", func(t *testing.T) {
		db := open(t, url)
		exec(t, db, `create table n (n bigint)`)
		err := db.Update(t.Context(), func(tx *sqldb.Tx) error {
			if _, err := tx.Exec(t.Context(), `insert into n values (1)`); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `select pg_terminate_backend(pg_backend_pid())`)
			return err
		})
		wantFault(t, err, sqldb.ErrUnreachable, db.String())
		exec(t, db, `insert into n values (2)`)
		if n := number(t, db, `select sum(n) from n`); n != 2 {
			t.Errorf("sum %d", n)
		}
	})
}

func TestPasswords(t *testing.T) {
	for _, url := range []string{
		"postgres://ann:s3cret@localhost:port/x",
		"postgres://ann:s3cret%ss@localhost/x",
		"postgres://ann:s3cret@[::1/x",
		"postgres://ann:/s3cret@localhost/x",
		"postgres://ann:?s3cret@localhost/x",
		"postgres://ann:#s3cret@localhost/x",
		"postgres://ann:s3cret@localhost/x?sslmode=s3cret",
		"postgres://ann@localhost/x?password=s3cret&sslmode=nonsense",
		"postgres://ann:s3cret@localhost/x?connect_timeout=s3cret",
		"postgres://ann:s3cret@localhost/x?sslrootcert=/missing&sslmode=verify-full",
	} {
		_, err := sqldb.Open(t.Context(), url)
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "postgres://USER:PASSWORD@HOST") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// writerEnv makes the test binary write to the database that it names.
const writerEnv = "SLIPWAY_TEST_WRITER"

// writeUntilKilled inserts numbers, and says each when it is acknowledged.
func writeUntilKilled() {
	ctx := context.Background()
	db, err := sqldb.Open(ctx, os.Getenv(writerEnv))
	for n := 0; err == nil; n++ {
		if _, err = db.Exec(ctx, `insert into n values ($1)`, n); err == nil {
			fmt.Println(n)
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// What was acknowledged is there after the daemon was killed.
func TestKilled(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		exec(t, open(t, url), `create table n (n bigint)`)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := osexec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), writerEnv+"="+url)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := int64(0)
		for lines := bufio.NewScanner(out); lines.Scan(); acknowledged++ {
			if lines.Text() != strconv.FormatInt(acknowledged, 10) {
				t.Fatal(lines.Text())
			}
			if acknowledged == 100 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait() // it was killed
		if n := number(t, open(t, url), `select count(*) from n`); n < acknowledged || acknowledged < 100 {
			t.Errorf("%d rows, %d were acknowledged", n, acknowledged)
		}
	})
}
