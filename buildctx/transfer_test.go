package buildctx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const mib = 1 << 20

func text(n int) []byte { return bytes.Repeat([]byte("all work and no play "), n/21+1)[:n] }

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// halfNoise compresses to about a half.
func halfNoise(n int) []byte {
	b := noise(n)
	for i := 0; i < n; i += 8 << 10 {
		copy(b[i:], text(min(4<<10, n-i)))
	}
	return b
}

// mixed is a source with contents of every size that matters.
func mixed() memSource {
	s := memSource{"empty": nil, "empty2": nil, "same1": []byte("same"), "same2": []byte("same"), "noise": noise(3*mib + 5)}
	for i, n := range []int{1, 1000, mib - 1, mib, mib + 1, 2 * mib, 5*mib + 3} {
		s[fmt.Sprintf("size%d", i)] = append(text(n-1), byte(i))
	}
	for i := range 500 {
		s[fmt.Sprintf("small/%03d", i)] = fmt.Appendf(nil, "file %d", i)
	}
	return s
}

func TestTransfer(t *testing.T) {
	source := mixed()
	m := source.manifest()
	for name, o := range map[string]*buildctx.SenderOptions{
		"auto": nil, "never": {Compress: buildctx.CompressNever}, "always": {Compress: buildctx.CompressAlways, Parallel: 1},
		"many": {Compress: buildctx.CompressAlways, Parallel: 9},
	} {
		t.Run(name, func(t *testing.T) {
			store := &memStore{}
			sender, receiver := transfer(t, m, source, store, o)
			var files, total int64
			for i := range m.Entries {
				e := &m.Entries[i]
				got, ok := store.contents[e.Content()]
				if !ok || !bytes.Equal(got, source[e.Path]) {
					t.Errorf("%s: %d bytes arrived of %d, there: %v", e.Path, len(got), e.Size, ok)
				}
			}
			for _, c := range store.contents {
				files++
				total += int64(len(c))
			}
			if p := sender.Progress(); p.Files != files || p.Bytes != total || (p.Wire < total) != (name != "never") {
				t.Errorf("sent %+v of %d files, %d bytes", p, files, total)
			}
			if p := receiver.Progress(); p.Files != files || p.Bytes != total || p.Wire != sender.Progress().Wire {
				t.Errorf("received %+v, sent %+v", p, sender.Progress())
			}
			if store.adds != int(files) {
				t.Errorf("%d adds for %d contents", store.adds, files)
			}
			if again := wantAll(t, m, store); len(again.GetEntries()) != 0 {
				t.Errorf("still wanted: %v", again.GetEntries())
			}
		})
	}
}

func TestTransferOfADirectory(t *testing.T) {
	dir := t.TempDir()
	source := mixed()
	files := map[string]string{}
	for name, data := range source {
		files[name] = string(data)
	}
	writeTree(t, dir, files)
	d := scan(t, dir, nil)
	m, err := fromParts(toParts(t, d.Manifest), nil)
	if err != nil {
		t.Fatal(err)
	}
	store := &memStore{}
	transfer(t, m, d, store, nil)
	for name, data := range source {
		if got := store.contents[entry(t, m, name).Content()]; !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes arrived of %d", name, len(got), len(data))
		}
	}
	d.Close()
	if _, err := d.Open(entry(t, m, "size1")); err == nil {
		t.Error("a closed directory still opens files")
	}
}

func TestSendNothing(t *testing.T) {
	for name, source := range map[string]memSource{"no files": {}, "an empty file": {"a": nil}} {
		store := &memStore{}
		_, receiver := transfer(t, source.manifest(), source, store, nil)
		if int(receiver.Progress().Files) != len(source) || len(store.contents) != len(source) {
			t.Errorf("%s: %+v", name, receiver.Progress())
		}
	}
}

func TestSendFramesAreBounded(t *testing.T) {
	source := mixed()
	m := source.manifest()
	frames, err := toFrames(t.Context(), buildctx.NewSender(m, source, nil), wantAll(t, m, &memStore{}))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		if f.GetSize() > mib || len(f.GetData()) > mib || f.GetLast() != (i == len(frames)-1) || f.GetWantId() != 7 {
			t.Errorf("frame %d: %d bytes as %d, last %v, want %d", i, f.GetSize(), len(f.GetData()), f.GetLast(), f.GetWantId())
		}
	}
}

func TestSendChangedFiles(t *testing.T) {
	big := noise(3 * mib)
	for name, change := range map[string]func(memSource, string){
		"shorter": func(s memSource, p string) { s[p] = s[p][:len(s[p])-1] },
		"longer":  func(s memSource, p string) { s[p] = append(slices.Clone(s[p]), 'x') },
		"other":   func(s memSource, p string) { s[p] = append([]byte{'?'}, s[p][1:]...) },
		"gone":    func(s memSource, p string) { delete(s, p) },
	} {
		for _, victim := range []string{"a", "big"} {
			t.Run(name+" "+victim, func(t *testing.T) {
				source := memSource{"0": []byte("first"), "a": []byte("content"), "big": big, "z": []byte("last")}
				m := source.manifest()
				change(source, victim)
				frames, err := toFrames(t.Context(), buildctx.NewSender(m, source, nil), &slipwayv1.Want{Entries: []uint32{0, 1, 2, 3}})
				var changed *buildctx.ChangedError
				if !errors.As(err, &changed) || changed.Path != victim || !errors.Is(err, buildctx.ErrChanged) {
					t.Errorf("sender: error %v", err)
				}
				r, err := buildctx.NewReceiver(m, &slipwayv1.Want{Entries: []uint32{0, 1, 2, 3}}, &memStore{}, nil)
				if err != nil {
					t.Fatal(err)
				}
				err = r.Receive(t.Context(), fromFrames(frames))
				var remote *buildctx.SourceError
				if !errors.As(err, &remote) || remote.Path != victim || !errors.Is(err, buildctx.ErrSource) {
					t.Errorf("receiver: error %v", err)
				}
			})
		}
	}
}

// A file that is as the scan found it is not digested again by the sender. If
// it lies about that, the receiver finds out.
func TestSendRewrittenFiles(t *testing.T) {
	for name, size := range map[string]int{"small": 100, "large": 3 * mib} {
		for _, hidden := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s hidden=%t", name, hidden), func(t *testing.T) {
				dir := t.TempDir()
				writeTree(t, dir, map[string]string{"a": strings.Repeat("x", size)})
				d := scan(t, dir, nil)
				defer d.Close()
				writeTree(t, dir, map[string]string{"a": strings.Repeat("y", size)})
				then := time.Unix(0, entry(t, d.Manifest, "a").ModTime)
				if !hidden {
					then = then.Add(time.Second)
				}
				if err := os.Chtimes(filepath.Join(dir, "a"), then, then); err != nil {
					t.Fatal(err)
				}
				want := wantAll(t, d.Manifest, &memStore{})
				frames, err := toFrames(t.Context(), buildctx.NewSender(d.Manifest, d, nil), want)
				if got := errors.Is(err, buildctx.ErrChanged); got == hidden {
					t.Errorf("sender: %v", err)
				}
				r, err := buildctx.NewReceiver(d.Manifest, want, &memStore{}, nil)
				if err != nil {
					t.Fatal(err)
				}
				err = r.Receive(t.Context(), fromFrames(frames))
				if (hidden && !errors.Is(err, buildctx.ErrDigest)) || (!hidden && !errors.Is(err, buildctx.ErrSource)) {
					t.Errorf("receiver: %v", err)
				}
			})
		}
	}
}

func TestSendRefusesForeignWants(t *testing.T) {
	m := sample()
	for _, i := range []uint32{0, 5, 7, 8, 9, 1 << 31} {
		want := &slipwayv1.Want{Entries: []uint32{i}}
		if _, err := toFrames(t.Context(), buildctx.NewSender(m, memSource{}, nil), want); !errors.Is(err, buildctx.ErrWant) {
			t.Errorf("entry %d: sender's error %v", i, err)
		}
		if _, err := buildctx.NewReceiver(m, want, &memStore{}, nil); !errors.Is(err, buildctx.ErrWant) {
			t.Errorf("entry %d: receiver's error %v", i, err)
		}
	}
}

func TestSendStops(t *testing.T) {
	source := memSource{"a": noise(40 * mib)}
	m := source.manifest()
	want := &slipwayv1.Want{Entries: []uint32{0}}
	boom := errors.New("boom")
	n := 0
	err := buildctx.NewSender(m, source, nil).Send(t.Context(), want, func(*slipwayv1.ContentFrame) error {
		if n++; n == 3 {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || n != 3 {
		t.Errorf("error %v after %d frames", err, n)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err = buildctx.NewSender(m, source, nil).Send(ctx, want, func(*slipwayv1.ContentFrame) error { cancel(boom); return nil })
	if !errors.Is(err, boom) {
		t.Errorf("cancelled: error %v", err)
	}
}

// TestSendAdapts sends over links of a made-up speed.
func TestSendAdapts(t *testing.T) {
	for _, tc := range []struct {
		name     string
		data     []byte
		perMiB   time.Duration
		min, max float64 // share of frames that are compressed
	}{
		{"slow link", text(64 * mib), 100 * time.Millisecond, 0.95, 1},
		{"fast link", halfNoise(64 * mib), 0, 0, 0.7},
		{"slow link, incompressible", noise(64 * mib), 100 * time.Millisecond, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source := memSource{"a": tc.data}
			m := source.manifest()
			synctest.Test(t, func(t *testing.T) {
				var frames, packed float64
				err := buildctx.NewSender(m, source, &buildctx.SenderOptions{Parallel: 2}).Send(t.Context(),
					&slipwayv1.Want{Entries: []uint32{0}}, func(f *slipwayv1.ContentFrame) error {
						if frames++; f.GetCodec() == slipwayv1.Codec_CODEC_ZSTD {
							packed++
						}
						time.Sleep(tc.perMiB * time.Duration(len(f.GetData())) / mib)
						return nil
					})
				if err != nil {
					t.Fatal(err)
				}
				if share := packed / (frames - 1); share < tc.min || share > tc.max {
					t.Errorf("%v of %v frames are compressed", packed, frames)
				}
			})
		})
	}
}

func TestReceiveRefuses(t *testing.T) {
	source := memSource{"a": []byte("first"), "b": []byte("second"), "big": text(2*mib + 7)}
	m := source.manifest()
	want := wantAll(t, m, &memStore{})
	plain, err := toFrames(t.Context(), buildctx.NewSender(m, source, &buildctx.SenderOptions{Compress: buildctx.CompressNever}), want)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := toFrames(t.Context(), buildctx.NewSender(m, source, &buildctx.SenderOptions{Compress: buildctx.CompressAlways}), want)
	if err != nil {
		t.Fatal(err)
	}
	last := len(plain) - 1
	for name, tc := range map[string]struct {
		frames []*slipwayv1.ContentFrame
		change func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame
		want   error
	}{
		"cut":       {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { return f[:last] }, io.ErrUnexpectedEOF},
		"too short": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { return append(f[:1], f[last]) }, buildctx.ErrProtocol},
		"nothing":   {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { return f[last:] }, buildctx.ErrProtocol},
		"too long":  {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { return append(f[:last], f...) }, buildctx.ErrProtocol},
		"longer last frame": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame {
			f[last].Data, f[last].Size = []byte("x"), 1
			return f
		}, buildctx.ErrProtocol},
		"longer content": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame {
			f[last-1].Data, f[last-1].Size = append(f[last-1].Data, 'x'), f[last-1].Size+1
			return f
		}, buildctx.ErrProtocol},
		"zstd shorter, sum right": {packed, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame {
			f[1].Size++ // and the last piece, of seven bytes, has one less
			f[3].Codec, f[3].Data, f[3].Size = slipwayv1.Codec_CODEC_NONE, make([]byte, 6), 6
			return f
		}, buildctx.ErrProtocol},
		"other want": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[1].WantId++; return f }, buildctx.ErrProtocol},
		"no codec":   {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[0].Codec = 0; return f }, buildctx.ErrProtocol},
		"oversize":   {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[0].Size = 4*mib + 1; return f }, buildctx.ErrProtocol},
		"oversize data": {packed, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame {
			f[0].Data = make([]byte, 4*mib+1)
			return f
		}, buildctx.ErrProtocol},
		"size and data": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[0].Size--; return f }, buildctx.ErrProtocol},
		"empty frame": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame {
			f[0] = &slipwayv1.ContentFrame{WantId: 7, Codec: 1}
			return f
		}, buildctx.ErrProtocol},
		"empty with data": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[last].Data = []byte("x"); return f }, buildctx.ErrProtocol},
		"not zstd":        {packed, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[1].Data = []byte("hello"); return f }, buildctx.ErrProtocol},
		"zstd longer":     {packed, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[1].Size--; return f }, buildctx.ErrProtocol},
		"zstd shorter":    {packed, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[3].Size++; return f }, buildctx.ErrProtocol},
		"wrong small":     {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[0].Data[0]++; return f }, buildctx.ErrDigest},
		"wrong large":     {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { f[2].Data[9]++; return f }, buildctx.ErrDigest},
		"error of nothing": {plain, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame {
			f[1].Error = &slipwayv1.ContentError{Entry: 99}
			return f
		}, buildctx.ErrProtocol},
		"as it should be": {packed, func(f []*slipwayv1.ContentFrame) []*slipwayv1.ContentFrame { return f }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var frames []*slipwayv1.ContentFrame
			for _, f := range tc.frames {
				frames = append(frames, proto.CloneOf(f))
			}
			store := &memStore{}
			r, err := buildctx.NewReceiver(m, want, store, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Receive(t.Context(), fromFrames(tc.change(frames))); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			for d, c := range store.contents {
				if d != digest.FromBytes(c) {
					t.Error("stored what does not match its digest")
				}
			}
			if errors.Is(tc.want, io.ErrUnexpectedEOF) && len(store.contents) != 3 {
				t.Errorf("%d of 3 complete contents were kept", len(store.contents))
			}
		})
	}
}

// failingStore fails for one content, without reading it.
type failingStore struct {
	memStore
	bad digest.Digest
	err error
}

func (s *failingStore) Add(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	if d == s.bad {
		return s.err
	}
	return s.memStore.Add(ctx, d, size, r)
}

func TestReceiveStoreFails(t *testing.T) {
	source := memSource{"a": []byte("first"), "big": noise(60 * mib), "z": []byte("last")}
	m := source.manifest()
	full := errors.New("disk full")
	for _, victim := range []string{"a", "big"} {
		want := wantAll(t, m, &memStore{})
		r, err := buildctx.NewReceiver(m, want, &failingStore{bad: entry(t, m, victim).Content(), err: full}, nil)
		if err != nil {
			t.Fatal(err)
		}
		frames, err := toFrames(t.Context(), buildctx.NewSender(m, source, nil), want)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Receive(t.Context(), fromFrames(frames)); !errors.Is(err, full) || !strings.Contains(err.Error(), victim) {
			t.Errorf("%s: error %v", victim, err)
		}
	}
	// A store that has it already need not read.
	want := wantAll(t, m, &memStore{})
	store := &failingStore{bad: entry(t, m, "big").Content()}
	transferred, err := buildctx.NewReceiver(m, want, store, nil)
	if err != nil {
		t.Fatal(err)
	}
	frames, err := toFrames(t.Context(), buildctx.NewSender(m, source, nil), want)
	if err != nil {
		t.Fatal(err)
	}
	if err := transferred.Receive(t.Context(), fromFrames(frames)); err != nil || len(store.contents) != 2 {
		t.Errorf("error %v, %d contents", err, len(store.contents))
	}
}

// slowStore holds every Add until it is released.
type slowStore struct {
	memStore
	gate chan struct{}
}

func (s *slowStore) Add(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	select {
	case <-s.gate:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.memStore.Add(ctx, d, size, r)
}

func TestReceiveBackPressure(t *testing.T) {
	source := memSource{}
	for i := range 60 {
		source[fmt.Sprintf("%02d", i)] = append(noise(mib-1), byte(i))
	}
	m := source.manifest()
	want := wantAll(t, m, &memStore{})
	frames, err := toFrames(t.Context(), buildctx.NewSender(m, source, nil), want)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{gate: make(chan struct{})}
		r, err := buildctx.NewReceiver(m, want, store, &buildctx.ReceiverOptions{MaxInFlight: 10 * mib})
		if err != nil {
			t.Fatal(err)
		}
		taken := 0
		next := fromFrames(frames)
		done := make(chan error)
		go func() {
			done <- r.Receive(t.Context(), func(ctx context.Context) (*slipwayv1.ContentFrame, error) { taken++; return next(ctx) })
		}()
		synctest.Wait()
		if taken > 11 {
			t.Errorf("%d frames taken, none of them stored", taken)
		}
		close(store.gate)
		if err := <-done; err != nil || len(store.contents) != 60 {
			t.Errorf("error %v, %d contents", err, len(store.contents))
		}
	})
}

func TestReceiveCancelled(t *testing.T) {
	source := memSource{"big": noise(3 * mib)}
	m := source.manifest()
	want := wantAll(t, m, &memStore{})
	frames, err := toFrames(t.Context(), buildctx.NewSender(m, source, nil), want)
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("build cancelled")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		r, err := buildctx.NewReceiver(m, want, &memStore{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		next := fromFrames(frames[:2])
		n := 0
		err = r.Receive(ctx, func(ctx context.Context) (*slipwayv1.ContentFrame, error) {
			if n++; n <= 2 {
				return next(ctx)
			}
			go func() { time.Sleep(time.Second); cancel(reason) }()
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		if !errors.Is(err, reason) {
			t.Errorf("error %v", err)
		}
	})
}

func TestNeeds(t *testing.T) {
	m := sample()
	store := &memStore{}
	if err := store.Add(t.Context(), digest.FromString("two"), 3, strings.NewReader("two")); err != nil {
		t.Fatal(err)
	}
	at := func(p string) int { i, _ := m.Find(p); return i }
	for name, tc := range map[string]struct {
		indices []int
		want    []uint32
	}{
		"all":       {nil, []uint32{2, 3, 4}},
		"none":      {[]int{}, nil},
		"present":   {[]int{at("non-utf8-\xff\xfe")}, nil},
		"hard link": {[]int{at("a.l"), at("a/b/c")}, []uint32{2}},
		"others":    {[]int{at("a"), at("s"), at("z")}, nil},
	} {
		if got, err := buildctx.Needs(t.Context(), m, tc.indices, store); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, error %v; want %v", name, got, err, tc.want)
		}
	}
	liar := &buildctx.Manifest{Entries: []buildctx.Entry{file("a", "x"), file("b", "x")}}
	liar.Entries[1].Size = 2
	if _, err := buildctx.Needs(t.Context(), liar, nil, store); !errors.Is(err, buildctx.ErrManifest) {
		t.Errorf("one digest, two sizes: error %v", err)
	}
}

// FuzzReceive gives a receiver frames that another hand has cut.
func FuzzReceive(f *testing.F) {
	source := memSource{"a": []byte("first"), "b": []byte("second"), "c": nil, "d": text(300)}
	m := source.manifest()
	want := &slipwayv1.Want{Entries: []uint32{0, 1, 2, 3}}
	all := slices.Concat(source["a"], source["b"], source["c"], source["d"])
	f.Add([]byte{5, 6, 44, 255, 1}, byte(0))
	f.Add([]byte{255, 55}, byte(2))
	f.Add([]byte{1, 1, 1, 1, 1, 1, 255}, byte(1))
	f.Fuzz(func(t *testing.T, cuts []byte, flags byte) {
		var frames []*slipwayv1.ContentFrame
		rest := all
		for _, n := range cuts {
			cut := min(int(n), len(rest))
			frames = append(frames, &slipwayv1.ContentFrame{WantId: 0, Codec: 1, Data: rest[:cut], Size: uint32(n)})
			rest = rest[cut:]
		}
		if len(frames) > 0 {
			frames[len(frames)-1].Last = flags&1 == 0
		}
		store := &memStore{}
		r, err := buildctx.NewReceiver(m, want, store, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Receive(t.Context(), fromFrames(frames))
		if err == nil && (len(store.contents) != 4 || !frames[len(frames)-1].GetLast()) {
			t.Fatalf("no error, yet %d contents", len(store.contents))
		}
		for d, c := range store.contents {
			if digest.FromBytes(c) != d {
				t.Fatal("wrong content stored")
			}
		}
	})
}
