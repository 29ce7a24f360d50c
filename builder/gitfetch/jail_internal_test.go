package gitfetch

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
)

// inJail gives a test a jail whose proxy leads nowhere.
func inJail(t *testing.T, src Source, do func(*jail)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: git runs in namespaces")
	}
	f, err := New(Options{Root: filepath.Join(t.TempDir(), "git"), Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, net.ErrClosed
	}})
	if err != nil {
		t.Fatal(err)
	}
	room, err := f.newRoom()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(room)
	if err := f.jailed(t.Context(), src, room, func(j *jail) error { do(j); return nil }); err != nil {
		t.Error(err)
	}
}

// What git runs has no rights, no settings and no network but the proxy.
func TestJail(t *testing.T) {
	var reached atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer server.Close()
	t.Setenv("SLIPWAY_CANARY", "x")
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "alias.leak")
	t.Setenv("GIT_CONFIG_VALUE_0", "!true")
	inJail(t, Source{Remote: server.URL, Authorization: "Basic x\n[core]\n\teditor = y"}, func(j *jail) {
		sh := func(script string) string {
			out, err := j.git("-c", "alias.x=!"+script, "x")
			if err != nil {
				return "failed: " + err.Error()
			}
			return strings.TrimSpace(string(out))
		}
		for script, want := range map[string]string{
			"id -u; id -g; id -G": "65534\n65534\n65534", "umask; :": "0022", "pwd": inside + "/tree", "echo $SLIPWAY_CANARY": "",
			"cat /proc/net/dev | grep -c :": "1", "grep NoNewPrivs /proc/self/status": "NoNewPrivs:\t1", "grep CapEff /proc/self/status": "CapEff:\t0000000000000000",
			"ls " + inside: "home\ntree", "stat -c %a " + inside + "/home/config": "600",
		} {
			if got := sh(script); got != want {
				t.Errorf("%s: %q, want %q", script, got, want)
			}
		}
		if _, err := j.git("-c", "http.proxy=", "ls-remote", server.URL+"/x.git"); err == nil || reached.Load() > 0 {
			t.Errorf("git reached a server without the proxy: %v", err)
		}
		if _, err := j.git("leak"); err == nil {
			t.Error("git has the settings of the daemon")
		}
		if out, err := j.git("config", "--list", "--show-origin"); err != nil || strings.Contains(string(out), "\tcore.editor") {
			t.Errorf("a header became a setting: %s, %v", out, err)
		}
	})
}

// The program's first thread stays where it is, wherever the goroutine began.
func TestNewThread(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 * runtime.NumCPU() {
		inJail(t, Source{}, func(*jail) {})
		if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
			t.Fatalf("the program is in %s, was in %s (%v)", after, before, err)
		}
	}
}
