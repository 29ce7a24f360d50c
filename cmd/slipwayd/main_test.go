// The tests in this package start slipwayd as people do, drive it with the
// slipway command and look at what reaches the registry.
//
// daemon_test.go starts and stops daemons, client_test.go runs the client,
// runs_test.go keeps the files of runs apart, bases_test.go makes base images, image_test.go pulls and runs what was
// built. The other files are the tests, named for what they are about.
//
// They need root, runc, a static busybox and, for some, debootstrap and the
// network. What is missing skips a test, and fails it where CI=true. The
// Debian base is kept between runs, in $SLIPWAY_TEST_CACHE or the user's cache
// directory.
package main_test

import (
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/logs"
	"github.com/sirupsen/logrus"
)

// bin has the programs under test, and the roots of daemons.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	logrus.SetOutput(io.Discard) // registries in this process log every 404
	logs.Warn = log.New(io.Discard, "", 0)
	if err := sweepRuns(os.TempDir()); err != nil {
		fmt.Fprintln(os.Stderr, err) // what is left now is left for the next run
	}
	dir, done, err := newRun(os.TempDir())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer done()
	bin = dir
	build := exec.Command("go", "build", "-o", bin+"/", "../slipwayd", "../slipway")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return postgres.Main(m)
}

// need skips a test that cannot run here, and fails it in CI, where all must
// run.
func need(t testing.TB, what string, ok bool) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") == "true":
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

func needCommand(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	need(t, name, err == nil)
	return path
}

// cacheDir is where costly parts are kept between runs.
func cacheDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("SLIPWAY_TEST_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(user, "slipway-test")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
