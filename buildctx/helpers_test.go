package buildctx_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func goRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	return strings.TrimSpace(string(out)), err
}

// scan scans dir and closes the result with the test.
func scan(t testing.TB, dir string, o *buildctx.ScanOptions) *buildctx.Dir {
	t.Helper()
	d, err := buildctx.Scan(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// writeTree makes files with their contents, and directories where the name
// ends with a slash.
func writeTree(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func paths(m *buildctx.Manifest) []string {
	list := []string{}
	for i := range m.Entries {
		list = append(list, m.Entries[i].Path)
	}
	return list
}

// entry returns the entry at path.
func entry(t testing.TB, m *buildctx.Manifest, path string) *buildctx.Entry {
	t.Helper()
	i, found := m.Find(path)
	if !found {
		t.Fatalf("no entry %q among %q", path, paths(m))
	}
	return &m.Entries[i]
}

// memStore is a [buildctx.Store] in memory.
type memStore struct {
	mu       sync.Mutex
	contents map[digest.Digest][]byte
	adds     int
	discard  bool // keep no bytes
}

func (s *memStore) Missing(_ context.Context, contents []digest.Digest) ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []int
	for i, d := range contents {
		if _, ok := s.contents[d]; !ok {
			missing = append(missing, i)
		}
	}
	return missing, nil
}

func (s *memStore) Add(_ context.Context, content digest.Digest, size int64, r io.Reader) error {
	var buf bytes.Buffer
	var w io.Writer = &buf
	if s.discard {
		w = io.Discard
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), r)
	if err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != content || n != size {
		return fmt.Errorf("%w: want %s, got %s (%d of %d bytes)", buildctx.ErrDigest, content, got, n, size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.contents == nil {
		s.contents = map[digest.Digest][]byte{}
	}
	s.contents[content] = buf.Bytes()
	s.adds++
	return nil
}

// memSource is a [buildctx.Source] in memory, and makes the manifest for it.
type memSource map[string][]byte

func (s memSource) Open(e *buildctx.Entry) (io.ReadCloser, error) {
	data, ok := s[e.Path]
	if !ok {
		return nil, os.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (s memSource) manifest() *buildctx.Manifest {
	m := &buildctx.Manifest{}
	for _, name := range sortedKeys(s) {
		m.Entries = append(m.Entries, buildctx.Entry{
			Path: name, Type: buildctx.TypeFile, Mode: 0o644, Size: int64(len(s[name])), Digest: sha256.Sum256(s[name]),
		})
	}
	return m
}

// toFrames serves a want into a slice.
func toFrames(ctx context.Context, s *buildctx.Sender, want *slipwayv1.Want) ([]*slipwayv1.ContentFrame, error) {
	var frames []*slipwayv1.ContentFrame
	err := s.Send(ctx, want, func(f *slipwayv1.ContentFrame) error {
		frames = append(frames, proto.CloneOf(f))
		return nil
	})
	return frames, err
}

// fromFrames is a receiver's next.
func fromFrames(frames []*slipwayv1.ContentFrame) func(context.Context) (*slipwayv1.ContentFrame, error) {
	return func(context.Context) (*slipwayv1.ContentFrame, error) {
		if len(frames) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		f := frames[0]
		frames = frames[1:]
		return f, nil
	}
}

// wantAll is a want for everything that the store lacks.
func wantAll(t testing.TB, m *buildctx.Manifest, s buildctx.Store) *slipwayv1.Want {
	t.Helper()
	entries, err := buildctx.Needs(t.Context(), m, nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return &slipwayv1.Want{Id: 7, Entries: entries}
}

// transfer brings a context's contents into the store through a channel of
// marshalled frames.
func transfer(t testing.TB, m *buildctx.Manifest, source buildctx.Source, store buildctx.Store, o *buildctx.SenderOptions) (*buildctx.Sender, *buildctx.Receiver) {
	t.Helper()
	want := wantAll(t, m, store)
	sender := buildctx.NewSender(m, source, o)
	receiver, err := buildctx.NewReceiver(m, want, store, nil)
	if err != nil {
		t.Fatal(err)
	}
	wire := make(chan []byte)
	sent := make(chan error, 1)
	go func() {
		sent <- sender.Send(t.Context(), want, func(f *slipwayv1.ContentFrame) error {
			b, err := proto.Marshal(f)
			wire <- b
			return err
		})
	}()
	err = receiver.Receive(t.Context(), func(context.Context) (*slipwayv1.ContentFrame, error) {
		f := new(slipwayv1.ContentFrame)
		return f, proto.Unmarshal(<-wire, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return sender, receiver
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
