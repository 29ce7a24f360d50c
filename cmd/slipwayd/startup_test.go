package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon that cannot start says why and ends.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	running := startDaemon(t)
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	login, yaml, broken := file(`{"current":"127.0.0.1:7070","logins":[]}`), file("root: /srv\n"), file("max-builds = 2\nroot = /srv\n")
	cert, key := selfSigned(t, t.TempDir(), time.Now().Add(time.Hour))
	tests := []struct {
		name string
		args []string
		says string
	}{
		{"a login file as settings", []string{"--config", login}, login + " is not TOML, it looks like the login file of the slipway command"},
		{"YAML as settings", []string{"--config", yaml}, yaml + " is not TOML, it looks like YAML"},
		{"TOML with a mistake", []string{"--config", broken}, broken + " is not TOML: line 2"},
		{"settings that are not there", []string{"--config", "/nosuch.toml"}, "/nosuch.toml: no such file"},
		{"images without a name", []string{"--http", "0.0.0.0:0", "--insecure"}, "--registry-host"},
		{"images without a name, IPv6", []string{"--http", "[::]:0", "--insecure"}, "--registry-host"},
		{"images without a name, no address", []string{"--http", ":0", "--insecure"}, "--registry-host"},
		{"a cache of nothing", []string{"--cache-size", "0"}, "--cache-size"},
		{"a cache of nothing, with a unit", []string{"--cache-size", "0GB"}, "--cache-size"},
		{"a grace that is none", []string{"--client-grace", "-1s"}, "--client-grace"},
		{"a root that is in use", []string{"--root", running.root}, "another slipwayd uses " + running.root},
		{"an address that is in use", []string{"--grpc", running.grpc}, "address already in use"},
		{"plaintext for everybody", []string{"--grpc", "0.0.0.0:0"}, "plaintext"},
		{"plaintext registry for everybody", []string{"--http", "0.0.0.0:0"}, "plaintext"},
		{"plaintext on all IPv6 addresses", []string{"--grpc", "[::]:0"}, "plaintext"},
		{"a certificate without a key", []string{"--tls-cert", "/nosuch"}, "--tls-key"},
		{"an authority of clients without TLS", []string{"--tls-client-ca", "/nosuch.pem"}, "--tls-key"},
		{"an authority of clients that is not there", []string{"--tls-cert", cert, "--tls-key", key, "--tls-client-ca", "/nosuch.pem"}, "--tls-client-ca"},
		{"an authority of clients that is none", []string{"--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key}, "holds no PEM certificate"},
		{"a group without a socket", []string{"--grpc-unix-group", "root"}, "--grpc-unix"},
		{"a group that is none", []string{"--grpc-unix", filepath.Join(t.TempDir(), "s"), "--grpc-unix-group", "nosuchgroup"}, "nosuchgroup"},
		{"a file as socket", []string{"--grpc-unix", login}, "no socket"},
		{"a socket in a file", []string{"--grpc-unix", login + "/socket"}, "--grpc-unix"},
		{"a size that is none", []string{"--max-rootfs", "much"}, "--max-rootfs"},
		{"an unknown network", []string{"--network", "wifi"}, "--network"},
		{"a CA bundle that is not there", []string{"--build-ca", "/nosuch.pem"}, "--build-ca"},
		{"an unknown flag", []string{"--nosuch"}, "--nosuch"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := newDaemon(t, test.args...)
			d.launch()
			select {
			case <-d.ended:
			case <-time.After(20 * time.Second):
				t.Fatal("it started")
			}
			if d.exit == nil || !strings.Contains(d.log.String(), test.says) {
				t.Errorf("%v: %s; want it to say %q", d.exit, d.log, test.says)
			}
		})
	}
	if running.metric("slipway_builds_running") != 0 || !running.running() {
		t.Error("the running daemon suffered")
	}
}

func TestConfigFile(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	file := filepath.Join(t.TempDir(), "slipwayd.toml")
	if err := os.WriteFile(file, []byte("max-rootfs = \"3MB\"\nmax-builds = 2\nlog-format = \"json\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.args = append(d.args, "--config", file)
	d.env = append(d.env, "SLIPWAY_MAX_ROOTFS=2500kB")
	d.start()
	d.push(busyboxBase(t), "library/busybox")
	r := d.client().deployFails(exitTooLarge, "too_large", "small", dockerfile("FROM busybox", "RUN head -c 1000000 /dev/zero > /f").write(t))
	if r.Error.Size.Limit != 2500000 {
		t.Errorf("the limit is %d; the environment beats the file", r.Error.Size.Limit)
	}
	if !strings.Contains(d.log.String(), `{"time":`) {
		t.Errorf("the log is no JSON: %s", d.log)
	}
}

// The client's environment is none of the daemon's business, and the daemon's
// none of the client's.
func TestSharedEnvironment(t *testing.T) {
	t.Parallel()
	logins := filepath.Join(t.TempDir(), "login.json")
	d := newDaemon(t, "--registry-host", "images.test")
	config := filepath.Join(t.TempDir(), "slipwayd.toml")
	if err := os.WriteFile(config, []byte("max-builds = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	both := []string{"SLIPWAY_CONFIG=" + config, "SLIPWAY_LOGIN_FILE=" + logins, "SLIPWAY_INSECURE=1", "SLIPWAY_ADDR=" + d.grpc, "SLIPWAY_APP=shop"}
	d.env = append(d.env, both...)
	d.start()
	c := d.client().with(both...)
	if r := c.slipway("login", "-t", d.token); r.code() != exitDone {
		t.Fatalf("login: exit code %d\n%s", r.code(), r.text())
	}
	saved, err := os.ReadFile(logins)
	if err != nil || !strings.Contains(string(saved), d.token) {
		t.Errorf("the login went elsewhere: %v", err)
	}
	json := logins + ".json"
	if r := c.with("SLIPWAY_LOGIN_FILE=", "SLIPWAY_CONFIG="+json).slipway("login", "-t", d.token); r.code() != exitDone {
		t.Errorf("login with a JSON file in SLIPWAY_CONFIG: exit code %d\n%s", r.code(), r.text())
	}
	if _, err := os.Stat(json); err != nil {
		t.Errorf("the login went elsewhere: %v", err)
	}
	if r := c.with("SLIPWAY_LOGIN_FILE=").slipway("login", "-t", d.token); r.code() != exitDone {
		t.Errorf("login with the daemon's file in SLIPWAY_CONFIG: exit code %d\n%s", r.code(), r.text())
	}
	if text, err := os.ReadFile(config); err != nil || string(text) != "max-builds = 2\n" {
		t.Errorf("a login changed the daemon's settings: %q, %v", text, err)
	}
	elsewhere := c.with("SLIPWAY_ADDR=198.51.100.1:7070")
	if r := elsewhere.with("SLIPWAY_ALLOW_PLAINTEXT=1").slipway("whoami", "--timeout", "1s"); r.code() == exitDone || strings.Contains(r.text(), "plaintext") {
		t.Errorf("plaintext was allowed: exit code %d\n%s", r.code(), r.text())
	}
	if r := elsewhere.slipway("whoami"); r.code() != exitUser || !strings.Contains(r.text(), "plaintext") {
		t.Errorf("the daemon's SLIPWAY_INSECURE let the client speak plaintext: exit code %d\n%s", r.code(), r.text())
	}
}

// By the name that --http has, images are named.
func TestRegistryHost(t *testing.T) {
	t.Parallel()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.LookupHost(name); err != nil {
		t.Skip("needs an address of this machine's name:", err)
	}
	d := newDaemon(t, "--insecure")
	_, port, _ := net.SplitHostPort(d.http)
	d.args = append(d.args, "--http", name+":"+port)
	d.start()
	if want := "registry=" + name + ":" + port; !strings.Contains(d.log.String(), want) {
		t.Errorf("no %s in %s", want, d.log)
	}
}

// The order in which a start comes by these tells how far it is.
func TestStoppedWhileStarting(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, reached := range []string{"lock", "cache", "registry", "fleet", "records.db", "sandbox"} {
		if err := os.RemoveAll(d.root); err != nil {
			t.Fatal(err)
		}
		d.log.reset()
		d.launch()
		for begin := time.Now(); time.Since(begin) < 20*time.Second; {
			if _, err := os.Stat(filepath.Join(d.root, reached)); err == nil {
				break
			}
		}
		d.signal(syscall.SIGTERM)
		if d.exit != nil || strings.Contains(d.log.String(), "slipwayd: ") {
			t.Errorf("stopped when it had %s: %v\n%s", reached, d.exit, d.log)
		}
		if log := d.log.String(); !strings.Contains(log, "stopped before it was ready") && !strings.Contains(log, "draining") {
			t.Errorf("stopped when it had %s, the log does not say so: %s", reached, log)
		}
		d.checkNothingLeft()
	}
}

// Records say who builds what: they are for nobody else.
func TestRecordsAreProtected(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	files, err := filepath.Glob(filepath.Join(d.root, "records.db*"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%q, %v; want the database and its log", files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
}

func TestAdminToken(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	info, err := os.Stat(filepath.Join(d.root, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the admin's token has mode %v", info.Mode())
	}
	was := d.token
	d.stop()
	d.start()
	if d.token != was {
		t.Error("a restart changed the admin's token")
	}
	if strings.Contains(d.log.String(), was) {
		t.Error("the log has the token")
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		until time.Time
		exit  int
	}{{"valid", time.Now().Add(time.Hour), exitDone}, {"expired", time.Now().Add(-time.Hour), exitUnavailable}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			cert, key := selfSigned(t, dir, test.until)
			d := newDaemon(t, "--tls-cert", cert, "--tls-key", key)
			d.args = []string{"--root", d.root, "--grpc", d.grpc, "--http", d.http, "--tls-cert", cert, "--tls-key", key}
			d.start()
			c := d.client()
			c.env = append(c.env, "SLIPWAY_ADDR=https://"+d.grpc)
			files := dockerfile("FROM scratch", "COPY a /a").and("a", "a").write(t)
			r := c.tryDeploy("tls", files, "--tls-ca", cert)
			if test.exit == exitDone && r.code() != exitDone || test.exit != exitDone && (r.code() == exitDone || r.Error == nil || !strings.Contains(r.Error.Message, "expired")) {
				t.Errorf("exit code %d, error %+v\n%s", r.code(), r.Error, r.text())
			}
			if r := c.tryDeploy("tls", files); r.code() == exitDone || r.Error == nil || r.Error.Code != "tls_failed" {
				t.Errorf("a certificate that nobody vouches for: exit code %d, error %+v", r.code(), r.Error)
			}
			if r := c.with("SLIPWAY_ADDR="+d.grpc).tryDeploy("tls", files); r.code() == exitDone {
				t.Error("a plaintext client got in")
			}
		})
	}
}

func selfSigned(t testing.TB, dir string, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "slipwayd"}, NotBefore: until.Add(-24 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// A full disk fails the build that filled it, says so and loses nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	need(t, "root", os.Geteuid() == 0)
	mkfs := needCommand(t, "mkfs.ext4")
	dir := rootDir(t)
	disk, root := filepath.Join(dir, "disk"), filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	sparse(t, dir, "disk", 200<<20)
	command(t, mkfs, "-q", "-F", "-m", "0", disk)
	command(t, "mount", "-o", "loop", disk, root)
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("unmount the full disk: %v", err)
		}
	})
	d := newDaemon(t, "--cache-min-free", "1MB")
	d.root = filepath.Join(root, "d")
	d.args = append(d.args, "--root", d.root)
	d.start()
	d.push(busyboxBase(t), "library/busybox")
	c := d.client()
	kept := c.deploy("kept", dockerfile("FROM busybox", "RUN echo kept > /f").write(t))
	full := c.tryDeploy("full", dockerfile("FROM busybox", "RUN dd if=/dev/urandom of=/big bs=1000000 count=400").write(t))
	if full.code() == exitDone || full.Error == nil || full.Error.Code != "disk_full" {
		t.Errorf("exit code %d, error %+v; want disk_full\n%s", full.code(), full.Error, full.text())
	}
	big := dockerfile("FROM busybox", "COPY big /big").write(t)
	if err := os.WriteFile(filepath.Join(big, "big"), []byte(noise(220<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	copied := c.tryDeploy("full", big)
	if copied.code() == exitDone || copied.Error == nil || copied.Error.Code != "disk_full" {
		t.Errorf("COPY: exit code %d, error %+v; want disk_full\n%s", copied.code(), copied.Error, copied.text())
	}
	if tags := d.tags("full"); len(tags) != 0 {
		t.Errorf("pushed %q", tags)
	}
	d.quiet(10 * time.Second)
	d.pull(kept)
	again := c.deploy("kept", dockerfile("FROM busybox", "RUN echo more > /g").write(t))
	d.pull(again)
	d.signal(syscall.SIGKILL)
	d.start()
	d.pull(kept)
	if b := c.show(kept.BuildID); b.Status != "succeeded" {
		t.Errorf("the build before is %s", b.Status)
	}
	if b := c.show(full.BuildID); b.Status != "failed" || b.Result.Error.Code != "disk_full" {
		t.Errorf("the record of the failed build says %s", b.Status)
	}
}
