package main_test

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExec(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	if r := c.slipway("exec", "-a", "shop", "--", "true"); r.code() != exitUser || !strings.Contains(r.stderr.String(), "error: not_found (user)") {
		t.Errorf("before the first deploy: exit code %d\n%s", r.code(), r.text())
	}
	first := c.deploy("shop", dockerfile("FROM busybox", "ENV COLOR=green", "RUN echo one > /version", "WORKDIR /home/app", "USER app", `ENTRYPOINT ["/nope"]`).write(t), "--image-label", "one")
	c.deploy("shop", dockerfile("FROM busybox", "ENV COLOR=green", "RUN echo two > /version", "WORKDIR /home/app", "USER app").write(t))
	c.deployFails(exitUser, "step_failed", "shop", dockerfile("FROM busybox", "RUN echo three; false").write(t))

	for _, tc := range []struct {
		name   string
		flags  []string
		args   []string
		input  string
		code   int
		stdout string
		stderr string
	}{
		{"as the image says", nil, []string{"sh", "-c", "pwd; id -un; echo $COLOR; cat /version"}, "", 0, "/home/app\napp\ngreen\ntwo\n", ""},
		{"streams apart", nil, []string{"sh", "-c", "echo out; echo err >&2; exit 42"}, "", 42, "out\n", "err\n"},
		{"no shell reads it", nil, []string{"echo", "$COLOR", ";", "a b"}, "", 0, "$COLOR ; a b\n", ""},
		{"by tag", []string{"--image", "one"}, []string{"cat", "/version"}, "", 0, "one\n", ""},
		{"by digest", []string{"--image", "@" + first.Digest}, []string{"cat", "/version"}, "", 0, "one\n", ""},
		{"input", []string{"-i"}, []string{"wc", "-c"}, "12345", 0, "5\n", ""},
		{"no input", nil, []string{"wc", "-c"}, "12345", 0, "0\n", ""},
		{"killed", nil, []string{"sh", "-c", "kill -9 $$"}, "", 137, "", ""},
		{"an own code is told apart", nil, []string{"sh", "-c", "exit 3"}, "", 3, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := c.typed(tc.input, append(append(append([]string{"exec", "-a", "shop"}, tc.flags...), "--"), tc.args...)...)
			if r.code() != tc.code || r.stdout.String() != tc.stdout || r.stderr.String() != tc.stderr {
				t.Errorf("exit code %d, %q, %q; want %d, %q, %q", r.code(), r.stdout.String(), r.stderr.String(), tc.code, tc.stdout, tc.stderr)
			}
		})
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"unknown program", []string{"--", "nope"}, exitUser, "error: not_found (user)"},
		{"unknown tag", []string{"--image", "nope", "--", "true"}, exitUser, "error: not_found (user): there is no image"},
		{"no tag at all", []string{"--image", "../blog:x", "--", "true"}, exitUser, "names no image"},
		{"another app's", []string{"-a", "blog", "--", "true"}, exitUser, "nothing was released of the app blog"},
		{"environment", []string{"--env", "production", "--", "true"}, exitUser, "to production"},
		{"too long", []string{"--time-limit", "1s", "--", "sleep", "100"}, exitUser, "error: timeout (user): the command was ended after 1s"},
		{"no command", nil, exitUser, "command to run is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := c.slipway(append([]string{"exec", "-a", "shop"}, tc.args...)...)
			if r.code() != tc.code || r.stdout.String() != "" || !strings.Contains(r.stderr.String(), tc.says) {
				t.Errorf("exit code %d, want %d and %q\n%s", r.code(), tc.code, tc.says, r.text())
			}
		})
	}
	d.quiet(10 * time.Second)
	before := diskUse(t, d.root+"/cache")
	if r := c.slipway("exec", "-a", "shop", "--json", "--", "sh", "-c", "dd if=/dev/zero of=big bs=1M count=50 2>/dev/null; printf 'gr\\303\\274n'; sleep 0.3; printf '\\377' >&2"); r.code() != 0 || r.stdout.String() !=
		`{"type":"output","stream":"stdout","data":"grün"}`+"\n"+`{"type":"output","stream":"stderr","data_base64":"/w=="}`+"\n"+`{"type":"result","exit_code":0,"error":null}`+"\n" {
		t.Errorf("exit code %d\n%s", r.code(), r.text())
	}
	if grown := diskUse(t, d.root+"/cache") - before; grown > 1<<20 {
		t.Errorf("%d bytes of it were kept", grown)
	}
}

// Ctrl-C ends the command on the daemon, too.
func TestExecInterrupted(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	c.deploy("shop", dockerfile("FROM busybox", "RUN true").write(t))
	r := c.start("exec", "-a", "shop", "--", "sh", "-c", "echo begun; sleep 1000")
	r.untilPrinted("begun")
	r.signal(syscall.SIGINT)
	if code := r.wait(20 * time.Second); code != exitCancelled || !strings.Contains(r.stderr.String(), "error: cancelled") {
		t.Errorf("exit code %d\n%s", code, r.text())
	}
	d.quiet(10 * time.Second)
	// On a terminal it is a key.
	in, keys := keyboard(t)
	r = c.startWith(in, "exec", "-a", "shop", "-i", "-T", "--", "sh", "-c", "trap 'echo caught; exit 6' INT; echo ready; sleep 50; sleep 50")
	r.untilPrinted("ready")
	if _, err := keys.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	if code := r.wait(20 * time.Second); code != 6 || !strings.Contains(r.stdout.String(), "caught") {
		t.Errorf("exit code %d\n%s", code, r.text())
	}
	d.quiet(10 * time.Second)
}

// A machine-exec token runs its command; an ssh token opens shells, until it is
// revoked.
func TestTokensOfProcesses(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	c.deploy("shop", dockerfile("FROM busybox", "RUN echo one > /version").write(t))
	id := c.fails("shop", dockerfile("FROM busybox", "RUN false").write(t))
	create := func(args ...string) (id string, user *client) {
		t.Helper()
		var made struct{ ID, Token string }
		c.slipway(append([]string{"tokens", "create", "--json"}, args...)...).value(&made)
		if made.Token == "" {
			t.Fatal("no token")
		}
		return made.ID, c.with("SLIPWAY_API_TOKEN=" + made.Token)
	}
	_, machine := create("machine-exec", "-a", "shop", "--", "cat", "/version")
	if r := machine.slipway("exec", "-a", "shop", "--", "cat", "/version"); r.code() != 0 || r.stdout.String() != "one\n" {
		t.Errorf("its own command: exit code %d\n%s", r.code(), r.text())
	}
	for _, args := range [][]string{{"-a", "shop", "--", "cat", "/etc/passwd"}, {"-a", "shop", "-i", "--", "cat", "/version"}, {"-a", "blog", "--", "cat", "/version"}} {
		if r := machine.slipway(append([]string{"exec"}, args...)...); r.code() != exitAuth || r.stdout.String() != "" {
			t.Errorf("%q: exit code %d\n%s", args, r.code(), r.text())
		}
	}
	if r := machine.slipway("builds", "shell", id); r.code() != exitAuth {
		t.Errorf("a shell for a machine-exec token: exit code %d\n%s", r.code(), r.text())
	}
	token, ssh := create("ssh", "-a", "shop")
	in, keys := keyboard(t)
	r := ssh.startWith(in, "builds", "shell", id)
	if _, err := keys.WriteString("echo ready; sleep 1000\n"); err != nil {
		t.Fatal(err)
	}
	r.untilPrinted("ready")
	if revoke := c.slipway("tokens", "revoke", token); revoke.code() != exitDone {
		t.Fatal(revoke.text())
	}
	revoked := time.Now()
	if code := r.wait(10 * time.Second); code != exitAuth || time.Since(revoked) > 3*time.Second {
		t.Errorf("exit code %d %v after the token was revoked\n%s", code, time.Since(revoked), r.text())
	}
	d.quiet(10 * time.Second)
}
