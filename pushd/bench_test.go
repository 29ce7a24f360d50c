package pushd_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// registryDir makes the test binary be a registry that keeps its files there.
const registryDir = "PUSHD_TEST_REGISTRY"

// serveRegistry serves on a port of its choice until standard input ends.
func serveRegistry(dir string) int {
	c := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  {"rootdirectory": dir},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
	c.HTTP.Secret = "secret of the benchmark"
	c.HTTP.RelativeURLs = true
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(l.Addr())
	server := &http.Server{Handler: handlers.NewApp(context.Background(), c), ReadHeaderTimeout: time.Minute}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	_ = server.Serve(l)
	return 0
}

// startRegistry runs a registry in a process of its own and returns its
// address.
func startRegistry(b *testing.B, dir string) string {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), registryDir+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("registry did not start: %v", err)
	}
	return strings.TrimSpace(addr)
}

// A fileBlob is a finished blob on disk.
type fileBlob struct {
	path string
	desc ocispec.Descriptor
}

func (f fileBlob) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	r, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	_, err = r.Seek(off, io.SeekStart)
	return r, err
}

func (f fileBlob) Descriptor(context.Context) (ocispec.Descriptor, error) { return f.desc, nil }

// newBlobs writes n files of noise.
func newBlobs(b *testing.B, n int, size int64) []fileBlob {
	b.Helper()
	var blobs []fileBlob
	dir := b.TempDir()
	for i := range n {
		path := filepath.Join(dir, strconv.Itoa(i))
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		h := digest.SHA256.Digester()
		if _, err := io.CopyN(io.MultiWriter(f, h.Hash()), rand.Reader, size); err != nil {
			b.Fatal(err)
		}
		f.Close()
		blobs = append(blobs, fileBlob{path, ocispec.Descriptor{Digest: h.Digest(), Size: size}})
	}
	return blobs
}

// BenchmarkPushAgainstCurl pushes four blobs of BENCH_MB megabytes over TCP to
// a registry in another process, in turns with four curls that do POST and PUT
// of the same files. It reports how long a push takes for each second of curl
// (the ratio of the medians is what counts; run it with -benchtime 10x), and
// what processor time of our own process it costs.
func BenchmarkPushAgainstCurl(b *testing.B) {
	if _, err := exec.LookPath("curl"); err != nil {
		b.Skip("needs curl")
	}
	mb, _ := strconv.Atoi(os.Getenv("BENCH_MB"))
	if mb == 0 {
		mb = 16
	}
	chunkMB, _ := strconv.Atoi(os.Getenv("BENCH_CHUNK"))
	size := int64(mb) * 1e6
	b.SetBytes(4 * size)
	blobs := newBlobs(b, 4, size)
	dir := b.TempDir()
	addr := startRegistry(b, dir)
	tr := pushd.NewTransport()
	defer tr.CloseIdleConnections()

	var curls, pushes []time.Duration
	var cpu time.Duration
	round := 0
	fresh := func() string { // nothing of the round before is there
		round++
		if err := os.RemoveAll(filepath.Join(dir, "docker")); err != nil {
			b.Fatal(err)
		}
		return fmt.Sprintf("http://%s/bench/%d", addr, round)
	}
	for b.Loop() {
		b.StopTimer()
		repository := fresh()
		began := time.Now()
		curl(b, addr, repository, blobs)
		curls = append(curls, time.Since(began))

		repository = fresh()
		target, err := pushd.NewHTTP(repository, &pushd.HTTPOptions{Transport: tr, Chunk: int64(chunkMB) << 20})
		if err != nil {
			b.Fatal(err)
		}
		before := ownCPU(b)
		b.StartTimer()
		began = time.Now()
		push := pushd.NewEngine(nil).Push(b.Context(), target, nil)
		var uploads []*pushd.Upload
		for _, f := range blobs {
			uploads = append(uploads, push.Add(pushd.Blob{Descriptor: f.desc, Source: f}))
		}
		for _, u := range uploads {
			if _, _, err := u.Wait(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		pushes = append(pushes, time.Since(began))
		cpu += ownCPU(b) - before
		push.Abort(nil)
		b.StartTimer()
	}
	b.ReportMetric(median(pushes).Seconds()/median(curls).Seconds(), "×curl")
	b.ReportMetric(median(curls).Seconds(), "curl-s")
	b.ReportMetric(median(pushes).Seconds(), "push-s")
	b.ReportMetric(cpu.Seconds()/float64(len(pushes)), "cpu-s/op")
}

// curl uploads the blobs at once, each by POST and PUT.
func curl(b *testing.B, addr, repository string, blobs []fileBlob) {
	b.Helper()
	var wg sync.WaitGroup
	for _, f := range blobs {
		wg.Go(func() {
			script := `set -e; l=$(curl -sSf -X POST -D - -o /dev/null "$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
curl -sSf -T "$3" -H 'Content-Type: application/octet-stream' "http://$4$l&digest=$2" >/dev/null`
			path := strings.Replace(repository, addr+"/", addr+"/v2/", 1)
			cmd := exec.Command("sh", "-c", script, "sh", path, f.desc.Digest.String(), f.path, addr)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Errorf("curl: %v\n%s", err, out)
			}
		})
	}
	wg.Wait()
}

func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
