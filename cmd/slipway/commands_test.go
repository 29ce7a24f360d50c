package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// value parses standard output as one JSON value.
func value[T any](c *cli) T {
	c.t.Helper()
	var v T
	if err := json.Unmarshal(c.stdout.Bytes(), &v); err != nil {
		c.t.Fatalf("standard output %q: %v", c.stdout.String(), err)
	}
	return v
}

func TestTokenPrecedence(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	c.vars = map[string]string{"SLIPWAY_ADDR": d.addr}
	c.stdin = "good\n"
	c.want(0, "login")
	if runtime.GOOS != "windows" {
		info, err := os.Stat(c.env.loginFile)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("login file: %v, %v", info, err)
		}
	}
	steps := []struct {
		set, value string
		args       []string
		from       string
	}{
		{"", "", nil, "the saved login"},
		{"FLY_ACCESS_TOKEN", "c", nil, "FLY_ACCESS_TOKEN"},
		{"FLY_API_TOKEN", "b", nil, "FLY_API_TOKEN"},
		{"SLIPWAY_API_TOKEN", "a", nil, "SLIPWAY_API_TOKEN"},
		{"", "", []string{"-t", "z"}, "--access-token"},
	}
	for _, s := range steps {
		if s.set != "" {
			c.vars[s.set] = s.value
		}
		sent := "good"
		if s.value != "" {
			sent = s.value
		} else if s.args != nil {
			sent = "z"
		}
		d.token = sent
		c.want(0, append([]string{"whoami", "--json"}, s.args...)...)
		id := value[identity](c)
		if id.TokenFrom != s.from || id.HiddenLogin != (s.from != "the saved login") || id.Org != "acme" {
			t.Errorf("%+v, want the token of %s", id, s.from)
		}
		if got := d.tokens[len(d.tokens)-1]; got != "Bearer "+sent {
			t.Errorf("sent %q instead of %s", got, sent)
		}
	}
	d.token = "good"
	c.want(3, "whoami")
	c.sees(&c.stderr, "unauthorized (user)", "The token comes from SLIPWAY_API_TOKEN; a saved login for acme is hidden by it", "exit code 3")
	c.want(3, "builds", "list", "-j")
	if e := value[map[string]map[string]any](c)["error"]; e["code"] != "unauthorized" {
		t.Errorf("error %v", e)
	}
	c.vars = map[string]string{"SLIPWAY_ADDR": d.addr}
	c.want(0, "logout")
	c.want(3, "whoami")
	c.sees(&c.stderr, ". There is no token")
}

func TestSavedTokenStaysWithItsDaemon(t *testing.T) {
	one, other := startDaemon(t, nil), startDaemon(t, nil)
	c := newCLI(t, nil)
	c.vars, c.stdin = map[string]string{}, "good\n"
	c.want(0, "login", "--addr", one.addr)
	c.want(0, "whoami") // the address is saved as well
	c.want(3, "whoami", "--addr", other.addr)
	if got := other.tokens; len(got) != 1 || got[0] != "" {
		t.Errorf("the other daemon got %q", got)
	}
}

func TestLoginRefuses(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	c.stdin = "wrong\n"
	c.want(3, "login")
	c.stdin = ""
	c.want(2, "login")
	c.stdin = "two words\n"
	c.want(2, "login", "--json")
	if _, err := os.Stat(c.env.loginFile); err == nil {
		t.Error("a login was saved")
	}
}

func TestBuildsCommands(t *testing.T) {
	d := startDaemon(t, nil)
	d.record(plan("FROM scratch", "RUN false"))
	d.record(output(2, "boom\n"))
	c := newCLI(t, d)
	c.want(0, "builds", "list", "--json")
	if b := value[[]build](c); len(b) != 1 || b[0].ID != buildID || b[0].Status != "failed" || b[0].Result.Error.ExitCode != 7 {
		t.Errorf("builds %+v", b)
	}
	c.want(0, "builds", "list")
	c.sees(&c.stdout, "ID", buildID, "shop", "step_failed")
	c.want(0, "builds", "show", buildID)
	c.sees(&c.stdout, buildID, "running")
	c.want(2, "builds", "show", "other", "--json")
	if e := value[map[string]map[string]any](c)["error"]; e["code"] != "not_found" {
		t.Errorf("error %v", e)
	}
	c.want(2, "builds", "show")
	c.want(0, "builds", "logs", buildID)
	c.sees(&c.stdout, "shop · 2 steps, 1 stage", "[2/2] | boom")
	c.want(0, "builds", "logs", buildID, "--from", "2", "--json")
	if all := c.lines(); len(all) != 1 || all[0]["type"] != "step_log" || all[0]["data"] != "boom\n" {
		t.Errorf("lines %v", all)
	}
	c.want(2, "builds", "logs", "other", "--json")
	c.result()
	c.want(0, "builds", "cancel", buildID)
	c.sees(&c.stdout, "is cancelled")
	d.record(end(failed(stepFailed)))
	c.want(2, "builds", "attach", buildID, "--json")
	if r := c.result(); r["status"] != "failed" || len(c.lines()) != 3 {
		t.Errorf("lines %v", c.lines())
	}
	c.want(0, "builds", "logs", buildID, "--follow")
	c.sees(&c.stdout, "error: step_failed (user)")
}

func TestCacheCommands(t *testing.T) {
	d := startDaemon(t, nil)
	c := newCLI(t, d)
	c.want(0, "cache", "usage")
	c.sees(&c.stdout, "41.0 GB of 50.0 GB, 9.0 GB free", "shop", "1.2 MB")
	c.want(0, "cache", "usage", "-j")
	if u := value[usage](c); u.Bytes != 41_000_000_000 || len(u.Apps) != 1 || u.Kinds == nil {
		t.Errorf("usage %+v", u)
	}
	c.want(0, "cache", "prune", "--json")
	if r := value[map[string]int](c); r["freed_bytes"] != 5_000_000 || r["records"] != 3 {
		t.Errorf("pruned %v", r)
	}
	if d.prune.GetAll() || d.prune.GetOlderThan().AsDuration() != 168*time.Hour {
		t.Errorf("prune without flags is %v", d.prune)
	}
	c.want(0, "cache", "prune", "--all", "-a", "shop", "--keep-bytes", "2GB")
	if !d.prune.GetAll() || d.prune.GetApp() != "shop" || d.prune.GetKeepBytes() != 2_000_000_000 {
		t.Errorf("prune is %v", d.prune)
	}
	c.want(2, "cache", "prune", "--all", "--older-than", "1h")
}

func TestDoctor(t *testing.T) {
	d := startDaemon(t, nil)
	d.checks = []*slipwayv1.Check{{Name: "disk", Status: slipwayv1.CheckStatus_CHECK_STATUS_WARNING, Detail: "9 % free", Hint: "prune"}}
	c := newCLI(t, d)
	c.want(0, "doctor")
	c.sees(&c.stdout, "✓ daemon "+d.addr, "slipwayd 0.3.0, up 3 days, protocol matches", "! disk", "9 % free", "hint: prune", "✓ clock")
	d.checks[0].Status = slipwayv1.CheckStatus_CHECK_STATUS_FAILED
	c.want(1, "doctor", "--json")
	if got := value[diagnosis](c); got.OK || len(got.Checks) != 4 {
		t.Errorf("diagnosis %+v", got)
	}
	c.want(3, "doctor", "-t", "bad")
	c.sees(&c.stdout, "✗ token")
	c.want(6, "doctor", "--addr", "127.0.0.1:1", "--json")
	if got := value[diagnosis](c); got.OK || got.Checks[0].Status != "failed" {
		t.Errorf("diagnosis %+v", got)
	}
}

func TestUsageErrors(t *testing.T) {
	c := newCLI(t, nil)
	c.want(2, "launch")
	c.want(2, "builds", "list", "--what", "--json")
	value[map[string]any](c)
	c.want(2, "whoami", "extra")
	c.want(2, "whoami", "--addr", "a b")
	c.want(0, "version", "--json")
	if v := value[map[string]any](c); v["version"] != "test" || v["protocol"] != 1.0 {
		t.Errorf("version %v", v)
	}
	c.want(0, "completion", "bash")
	if err := os.MkdirAll(filepath.Dir(c.env.loginFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.env.loginFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.want(2, "whoami")
	c.sees(&c.stderr, "saved login", "Delete the file")
}

// certificate makes one for 127.0.0.1 that is its own authority.
func certificate(t *testing.T, until time.Time) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func TestTLS(t *testing.T) {
	cert, ca := certificate(t, time.Now().Add(time.Hour))
	d := startDaemon(t, nil, withTLS(cert))
	c := newCLI(t, nil)
	c.want(0, "whoami", "--addr", "https://"+d.addr, "--tls-ca", ca)
	c.want(0, "whoami", "--addr", d.addr, "--tls", "--tls-skip-verify")
	c.want(7, "whoami", "--addr", "https://"+d.addr)
	c.sees(&c.stderr, "tls_failed (network)", "--tls-ca")
	c.want(6, "whoami", "--addr", d.addr) // plaintext to a TLS port
	if n := len(d.tokens); n != 2 {
		t.Errorf("the token went out %d times, want 2", n)
	}
	// A login remembers how the daemon is reached.
	c.vars, c.stdin = map[string]string{}, "good\n"
	c.want(0, "login", "--addr", "https://"+d.addr, "--tls-ca", ca)
	c.want(0, "whoami")
	c.want(0, "whoami", "--addr", d.addr)

	expired, ca := certificate(t, time.Now().Add(-time.Hour))
	d = startDaemon(t, nil, withTLS(expired))
	c.want(7, "whoami", "--addr", "https://"+d.addr, "--tls-ca", ca)
	c.sees(&c.stderr, "expired", "has to be renewed")

	plain := startDaemon(t, nil)
	c.want(7, "whoami", "--addr", "https://"+plain.addr)
	c.sees(&c.stderr, "speaks plaintext")
}
