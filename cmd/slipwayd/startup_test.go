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
	tests := []struct {
		name string
		args []string
		says string
	}{
		{"a root that is in use", []string{"--root", running.root}, "another slipwayd uses " + running.root},
		{"an address that is in use", []string{"--grpc", running.grpc}, "address already in use"},
		{"plaintext for everybody", []string{"--grpc", "0.0.0.0:0"}, "plaintext"},
		{"plaintext registry for everybody", []string{"--http", "0.0.0.0:0"}, "plaintext"},
		{"plaintext on all IPv6 addresses", []string{"--grpc", "[::]:0"}, "plaintext"},
		{"a certificate without a key", []string{"--tls-cert", "/nosuch"}, "--tls-key"},
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
