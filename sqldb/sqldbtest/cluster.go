// Package sqldbtest gives tests empty databases of each kind that sqldb opens.
// A test binary has one [Cluster], which its TestMain runs.
package sqldbtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// errNotInstalled means that this machine has no PostgreSQL.
var errNotInstalled = errors.New("PostgreSQL is not installed (Debian's package postgresql)")

// A Cluster is a private server of PostgreSQL that starts when the first test
// asks for it and listens on a socket in its own directory only. The zero value
// is ready. It is safe for concurrent use.
type Cluster struct {
	start   sync.Once
	err     error
	dir     string
	keeper  *exec.Cmd
	leash   io.Closer
	counter atomic.Int64
}

// Main runs the tests of a binary and stops the server. TestMain exits with
// what it returns.
func (c *Cluster) Main(m *testing.M) int {
	code := m.Run()
	if err := c.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop PostgreSQL:", err)
		return max(code, 1)
	}
	return code
}

// Each runs a test with the URL of an empty database of each kind.
func (c *Cluster) Each(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("SQLite", func(t *testing.T) { test(t, File(t)) })
	t.Run("PostgreSQL", func(t *testing.T) { test(t, c.Database(t)) })
}

// File returns the name of a database of SQLite that is not there yet, in a
// directory whose name is as odd as directories' names can be.
func File(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "what? 100%#1 &x=y")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "test.db")
}

// Database returns the URL of an empty database of PostgreSQL, which is gone
// when the test binary ends. If this machine has none, the test is skipped, and
// fails where CI=true.
func (c *Cluster) Database(t testing.TB) string {
	t.Helper()
	c.start.Do(func() { c.err = c.run() })
	if errors.Is(c.err, errNotInstalled) && os.Getenv("CI") != "true" {
		t.Skip(c.err)
	}
	if c.err != nil {
		t.Fatal(c.err)
	}
	name := fmt.Sprintf("test%d", c.counter.Add(1))
	if err := c.exec(t.Context(), "create database "+name); err != nil {
		t.Fatal(err)
	}
	return c.url(name)
}

// Give makes a directory that of the server, which may be another user.
func (c *Cluster) Give(t testing.TB, dir string) {
	t.Helper()
	if _, err := owner(dir); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) url(database string) string {
	u := url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: url.Values{"host": {c.dir}, "user": {"postgres"}}.Encode()}
	return u.String()
}

func (c *Cluster) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, c.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

// keep runs a server until its own input ends, also because the tests crashed,
// and then takes everything away.
const keep = `"$1/postgres" -D "$0/data" -k "$0" -c listen_addresses= -c fsync=off -c full_page_writes=off >"$0/log" 2>&1 &
read -r _
kill -INT $!
wait
rm -rf "$0" 2>/dev/null || true`

func (c *Cluster) run() (err error) {
	bin, err := programs()
	if err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp("", "slipway-postgres-"); err != nil {
		return err
	}
	as, err := owner(c.dir)
	if err != nil {
		return err
	}
	// Words are ordered as English orders them: what needs the order of bytes
	// has to say so.
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(c.dir, "data"), "--username=postgres", "--auth=trust",
		"--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = c.dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	c.keeper = exec.Command("sh", "-c", keep, c.dir, bin)
	c.keeper.Dir, c.keeper.SysProcAttr = "/", as
	if c.leash, err = c.keeper.StdinPipe(); err != nil {
		return err
	}
	if err := c.keeper.Start(); err != nil {
		return err
	}
	return c.wait()
}

// owner says as whom the server runs in dir, which it is given: not as root,
// which PostgreSQL refuses. An interrupt from the terminal is for the tests.
func owner(dir string) (*syscall.SysProcAttr, error) {
	as := &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() != 0 {
		return as, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return as, errors.Join(uidErr, gidErr, os.Chown(dir, uid, gid))
}

// wait returns when the server answers.
func (c *Cluster) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := c.exec(ctx, "select 1")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			return fmt.Errorf("start PostgreSQL: %w: %s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Cluster) stop() error {
	if c.keeper == nil || c.keeper.Process == nil {
		if c.dir == "" {
			return nil
		}
		return os.RemoveAll(c.dir)
	}
	return errors.Join(c.leash.Close(), c.keeper.Wait(), os.RemoveAll(c.dir))
}

// programs returns the directory of the newest server that is installed.
func programs() (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		path, err = filepath.EvalSymlinks(path)
		return filepath.Dir(path), err
	}
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(all) == 0 {
		return "", errors.Join(errNotInstalled, err)
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(all, func(a, b string) int { return version(a) - version(b) })), nil
}
