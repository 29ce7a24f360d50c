package layercache_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/layercache"
)

func BenchmarkPutStep(b *testing.B) {
	c := open(b, layercache.Options{}).Org("acme")
	st := layercache.Step{Empty: true, Parts: []layercache.Part{{Name: "instruction", Value: "RUN make"}}}
	for i := 0; b.Loop(); i++ {
		if err := c.PutStep(b.Context(), layercache.NewKey(layercache.Part{Value: fmt.Sprint(i)}), st); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutStepParallel(b *testing.B) {
	c := open(b, layercache.Options{}).Org("acme")
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			k := layercache.NewKey(layercache.Part{Value: fmt.Sprint(rand.Uint64())})
			if err := c.PutStep(b.Context(), k, layercache.Step{Empty: true}); err != nil {
				b.Error(err)
			}
		}
	})
}

// A hit with a layer of one blob and a chain of ten snapshots.
func BenchmarkStep(b *testing.B) {
	c := open(b, layercache.Options{}).Org("acme")
	ctx, release := leased(b, c)
	defer release()
	k, l := putLayer(b, ctx, c, "app", "one", random(b, 1000))
	parent := ""
	for i := range 10 {
		name := fmt.Sprint("snap", i)
		commit(b, c, parent, name)
		parent = name
	}
	if err := c.PutStep(ctx, k, layercache.Step{DiffID: l.DiffID, Snapshot: parent}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Step(ctx, k); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	c := open(b, layercache.Options{}).Org("acme")
	ctx, release := leased(b, c)
	defer release()
	commit(b, c, "", "base")
	for i := 0; b.Loop(); i++ {
		s := must(c.Prepare(ctx, "base"))(b)
		if err := s.Commit(ctx, fmt.Sprint(i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBlobWriter(b *testing.B) {
	for _, size := range []int{1 << 10, 1 << 20, 64 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := open(b, layercache.Options{MaxBytes: 2e9}).Org("acme")
			data := random(b, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				data[rand.IntN(size)]++
				w := must(c.Create(b.Context()))(b)
				if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{bytes.NewReader(data)}, make([]byte, 256<<10)); err != nil {
					b.Fatal(err)
				}
				if _, err := w.Commit(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// files is a context like those of real applications: most files are small,
// most bytes in few.
func files(b *testing.B, count, total int) ([][]byte, []digest.Digest) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	data := random(b, 8<<20)
	fs, ds := make([][]byte, count), make([]digest.Digest, count)
	mean := total / count
	for i := range fs {
		size := int(r.ExpFloat64() * float64(mean))
		at := r.IntN(len(data) - min(size, len(data)-1))
		fs[i] = append([]byte(fmt.Sprint(i)), data[at:at+min(size, len(data)-at)]...)
		ds[i] = digest.FromBytes(fs[i])
	}
	return fs, ds
}

func BenchmarkContentsAdd(b *testing.B) {
	for _, workers := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("12000 files, %d workers", workers), func(b *testing.B) {
			fs, ds := files(b, 12_000, 700e6)
			var total int64
			for _, f := range fs {
				total += int64(len(f))
			}
			b.SetBytes(total)
			b.ReportAllocs()
			for b.Loop() {
				x := open(b, layercache.Options{}).Org("acme").Contents()
				w := x.Writer(b.Context())
				var wg sync.WaitGroup
				for part := range workers {
					wg.Go(func() {
						for i := part; i < len(fs); i += workers {
							if err := w.Add(ds[i], int64(len(fs[i])), bytes.NewReader(fs[i])); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				if err := w.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkContents(b *testing.B) {
	fs, ds := files(b, 12_000, 100e6)
	c := open(b, layercache.Options{}).Org("acme")
	ctx, release := leased(b, c)
	defer release()
	x := c.Contents()
	w := x.Writer(ctx)
	for i, f := range fs {
		if err := w.Add(ds[i], int64(len(f)), bytes.NewReader(f)); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	b.Run("missing of 12000", func(b *testing.B) {
		for b.Loop() {
			if m, err := x.Missing(ctx, ds); err != nil || len(m) > 0 {
				b.Fatal(m, err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			must(x.Open(ctx, ds[i%len(ds)]))(b).Close()
		}
	})
	b.Run("read all", func(b *testing.B) {
		b.SetBytes(100e6)
		buf := make([]byte, 256<<10)
		for b.Loop() {
			for _, d := range ds {
				o := must(x.Open(ctx, d))(b)
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{o}, buf); err != nil {
					b.Fatal(err)
				}
				o.Close()
			}
		}
	})
}
