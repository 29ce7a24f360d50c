package main_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BuildKit's clients, which have no token to send, get in by our proxy, by the
// daemon's socket and by certificates.
func TestWaysOfStockClients(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := selfSigned(t, dir, time.Now().Add(time.Hour))
	ca := newClientCA(t)
	d := newDaemon(t)
	socket := filepath.Join(d.root, "grpc.sock")
	d.args = []string{"--root", d.root, "--grpc", d.grpc, "--http", d.http, "--tls-cert", cert, "--tls-key", key,
		"--tls-client-ca", ca.file, "--grpc-unix", socket}
	d.start()
	c := d.stock()
	c.client = c.with("SLIPWAY_ADDR=https://"+d.grpc, "SLIPWAY_TLS_CA="+cert)
	files := dockerfile("FROM scratch", "COPY a /a").and("a", "alpha").write(t)
	// build is what follows the options of a client.
	build := func(out string) []string {
		return []string{"build", "--frontend", "dockerfile.v0", "--local", "context=" + files, "--local", "dockerfile=" + files, "--output", out}
	}
	arrived := func(way, out string) {
		t.Helper()
		if text, err := os.ReadFile(filepath.Join(out, "a")); err != nil || string(text) != "alpha" {
			t.Errorf("%s: built %q, %v", way, text, err)
		}
	}

	t.Run("proxy", func(t *testing.T) {
		buildctl := filepath.Join(bin, "buildctl")
		out := t.TempDir()
		if r := c.slipway(append([]string{"buildkit-proxy", "--", buildctl}, build("type=local,dest="+out)...)...); r.code() != exitDone {
			t.Errorf("buildctl: exit code %d\n%s", r.code(), r.text())
		}
		arrived("a command of the proxy", out)
		if r := c.slipway(append([]string{"buildkit-proxy", "--", buildctl}, build("type=nosuch")...)...); r.code() != 1 || !strings.Contains(r.text(), "nosuch") {
			t.Errorf("a build that fails: exit code %d\n%s", r.code(), r.text())
		}
		listen := filepath.Join(d.root, "proxy.sock")
		proxy := c.start("buildkit-proxy", "--listen", "unix://"+listen)
		poll(t, 20*time.Second, "the proxy to listen", func() bool {
			_, err := os.Stat(listen)
			return err == nil
		})
		out = t.TempDir()
		c.run("buildx", "create", "--name", "proxy", "--driver", "remote", "unix://"+listen).ok(t)
		c.run("buildx", "build", "--builder", "proxy", "--output", "type=local,dest="+out, files).ok(t)
		arrived("buildx", out)
		d.stop()
		d.start()
		c.run("buildctl", append([]string{"--addr", "unix://" + listen}, build("type=local,dest="+t.TempDir())...)...).ok(t)
		proxy.signal(syscall.SIGTERM)
		if code := proxy.wait(patience); code != exitDone {
			t.Errorf("the proxy ended with %d\n%s", code, proxy.text())
		}
		if _, err := os.Stat(listen); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the proxy left its socket: %v", err)
		}
		if strings.Contains(proxy.text(), d.token) {
			t.Errorf("the proxy shows the token: %s", proxy.text())
		}
	})

	t.Run("socket", func(t *testing.T) {
		out := t.TempDir()
		c.run("buildctl", append([]string{"--addr", "unix://" + socket}, build("type=local,dest="+out)...)...).ok(t)
		arrived("buildctl", out)
	})

	t.Run("certificate", func(t *testing.T) {
		pair := ca.sign(time.Now().Add(time.Hour), "slipway://default/shop")
		certFile, keyFile := writePair(t, pair)
		by := []string{"--addr", "tcp://" + d.grpc, "--tlscacert", cert, "--tlscert", certFile, "--tlskey", keyFile}
		c.run("buildctl", append(by, build("type=image,push=true,name="+d.http+"/shop:1")...)...).ok(t)
		c.run("buildctl", append(by, build("type=image,push=true,name="+d.http+"/blog:1")...)...).refused(t, `for app "shop", not "blog"`)
		cache := "--export-cache=type=registry,mode=max,ref=" + d.http
		c.run("buildctl", append(append(by, build("type=image,push=true,name="+d.http+"/shop:1")...), cache+"/shop:cache")...).ok(t)
		c.run("buildctl", append(append(by, build("type=image,push=true,name="+d.http+"/shop:1")...), cache+"/blog:cache")...).refused(t, `for app "shop", not "blog"`)
		c.run("buildctl", append(by[:4:4], build("type=local,dest="+t.TempDir())...)...).refused(t, "no token was given")
		out := t.TempDir()
		c.run("buildx", "create", "--name", "certificate", "--driver", "remote", "--driver-opt", "cacert="+cert+",cert="+certFile+",key="+keyFile, "tcp://"+d.grpc).ok(t)
		c.run("buildx", "build", "--builder", "certificate", "--output", "type=local,dest="+out, files).ok(t)
		arrived("buildx", out)
	})
}

// writePair writes a certificate and its key as clients want them.
func writePair(t testing.TB, pair tls.Certificate) (cert, key string) {
	t.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.(interface{ TempDir() string }).TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
