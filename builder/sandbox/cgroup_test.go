package sandbox_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

const containedRoot = "SLIPWAY_TEST_CONTAINED"

// contained is a daemon in a container. It says what doctor would say of
// cgroups, and runs a process with limits.
func contained(root string) {
	ctx := context.Background()
	r, err := sandbox.New(ctx, sandbox.Options{Root: filepath.Join(root, "state"), Network: sandbox.None})
	if err != nil {
		panic(err)
	}
	for _, c := range r.Check(ctx) {
		if c.Name == "cgroups" {
			fmt.Println("cgroups", c.OK)
		}
	}
	code, err := r.Run(ctx, sandbox.Process{
		Lowers: []string{filepath.Join(root, "lower")},
		Upper:  filepath.Join(root, "upper"),
		Work:   filepath.Join(root, "work"),
		Args: []string{"/bin/busybox", "sh", "-c", `cd /sys/fs/cgroup
			cat memory.max pids.max cpu.max 2>/dev/null && { cat memory.swap.max 2>/dev/null || echo 0; } ||
			cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us`},
		Limits: sandbox.Limits{Memory: 32 << 20, CPUs: 0.5, Pids: 6},
		Stdout: os.Stdout,
	})
	fmt.Println("code", code, err, r.Close(ctx))
}

// A container has a cgroup namespace, and its processes are in the root of it.
func TestInContainer(t *testing.T) {
	if out, code := run(t, sharedRunner(t), step(t, "true")); code != 0 { // controllers are passed on from now on
		t.Fatal(out, code)
	}
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare:", err)
	}
	root := t.TempDir()
	for _, dir := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(tree(t), filepath.Join(root, "lower")); err != nil {
		t.Fatal(err)
	}
	begin := "exec \"$@\""
	limits := "33554432\n6\n50000\n"
	if unified(t) {
		group, err := os.MkdirTemp("/sys/fs/cgroup", "slipway-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = os.Remove(filepath.Join(group, "slipway-init"))
			if err := os.Remove(group); err != nil {
				t.Error(err)
			}
		})
		begin = "echo 0 >" + group + `/cgroup.procs && exec unshare --cgroup --mount sh -c '
			umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' sh "$@"`
		limits = "33554432\n6\n50000 100000\n0\n"
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", begin, "sh", os.Args[0])
	cmd.Env = append(os.Environ(), containedRoot+"="+root)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if want := "cgroups true\n" + limits + "code 0 <nil> <nil>\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q\n%s", err, out, want, &errs)
	}
}
