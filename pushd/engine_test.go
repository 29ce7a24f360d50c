package pushd_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

func described(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func known(data []byte) pushd.Blob {
	return pushd.Blob{Descriptor: described(data), Source: pushd.Bytes(data)}
}

// One image: a layer that grows, a base layer elsewhere in the registry, a
// config, then the manifest; and the same again.
func TestPush(t *testing.T) {
	g := newRegistry(t)
	layer, base, config := targettest.Noise(size, 1), targettest.Noise(5000, 2), []byte(`{"os":"linux"}`)
	grown := targettest.NewSpool(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		target, engine := g.target(t, nil), pushd.NewEngine(nil)
		var mu sync.Mutex
		last := make(map[string]pushd.Progress)
		push := engine.Push(t.Context(), target, func(p pushd.Progress) {
			mu.Lock()
			defer mu.Unlock()
			last[p.Name] = p
		})
		defer push.Abort(nil)
		u := push.Add(pushd.Blob{Name: "RUN make", Source: grown, Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}})
		b := known(base)
		b.Name, b.MountFrom = "base", []string{"acme/base"}
		push.Add(b)
		push.Add(known(config))

		go func() {
			for p := layer; len(p) > 0; p = p[min(len(p), chunk):] {
				grown.Write(p[:min(len(p), chunk)])
				time.Sleep(time.Second)
			}
			grown.Commit(t)
		}()
		time.Sleep(4500 * time.Millisecond)
		if n := g.received(); n < 3*chunk {
			t.Errorf("%d bytes sent while the layer grows, want the 4 chunks there are", n)
		}
		if _, ok := g.manifest("v1"); ok {
			t.Error("a manifest before its blobs")
		}

		desc, raw := targettest.Manifest(t, config, layer)
		if err := push.Manifest(t.Context(), desc, raw, "v1"); err != nil {
			t.Fatal(err)
		}
		if got, ok := g.manifest("v1"); !ok || !bytes.Equal(got, raw) {
			t.Error("the tag has another manifest")
		}
		g.mustHave(t, layer)
		got, outcome, err := u.Wait(t.Context())
		if want := described(layer); err != nil || outcome != pushd.Uploaded || got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
			t.Errorf("Wait: %v, %v, %v; want %v", got, outcome, err, want)
		}
		a := push.Account()
		if wire := int64(len(layer) + len(base) + len(config) + 2*len(raw)); a.Uploaded != 3 || a.WireBytes != wire || a.Retries != 0 {
			t.Errorf("account %+v, want 3 uploaded, %d bytes", a, wire)
		}
		mu.Lock()
		if p := last["RUN make"]; p.State != pushd.Done || p.Outcome != pushd.Uploaded || p.Sent != size || p.Size != size {
			t.Errorf("last progress %+v", p)
		}
		mu.Unlock()

		// The same again asks nothing of the registry but the manifest.
		before := len(g.calls())
		again := engine.Push(t.Context(), target, nil)
		defer again.Abort(nil)
		again.Add(known(layer))
		again.Add(known(config))
		if err := again.Manifest(t.Context(), desc, raw, "v2"); err != nil {
			t.Fatal(err)
		}
		if a := again.Account(); a.Present != 2 || a.Uploaded != 0 {
			t.Errorf("account %+v, want 2 present", a)
		}
		if n := len(g.calls()) - before; n != 2 {
			t.Errorf("%d requests, want 2 for the manifest", n)
		}
	})
}

// What an engine remembers expires.
func TestConfirmedExpires(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(100, 1)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		target, engine := g.target(t, nil), pushd.NewEngine(&pushd.Options{Remember: time.Minute})
		for i, heads := range []int{1, 1, 2} {
			push := engine.Push(t.Context(), target, nil)
			if _, _, err := push.Add(known(data)).Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			push.Abort(nil)
			if n := len(g.calls("head")); n != heads {
				t.Errorf("push %d: asked %d times, want %d", i, n, heads)
			}
			time.Sleep(time.Duration(i) * 2 * time.Minute)
		}
	})
}

// Builds with one blob send it once.
func TestSingleFlight(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(size, 1)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		engine, target := pushd.NewEngine(nil), g.target(t, nil)
		var uploads []*pushd.Upload
		for range 5 {
			push := engine.Push(t.Context(), target, nil)
			defer push.Abort(nil)
			uploads = append(uploads, push.Add(known(data)))
		}
		outcomes := make(map[pushd.Outcome]int)
		for _, u := range uploads {
			_, o, err := u.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			outcomes[o]++
		}
		if outcomes[pushd.Uploaded] != 1 || outcomes[pushd.Present] != len(uploads)-1 {
			t.Errorf("outcomes %v", outcomes)
		}
		if n := g.received(); n != size {
			t.Errorf("the registry got %d bytes, want %d", n, size)
		}
	})
}

// Layers that turn out to be the same while they are sent are finished once.
func TestSingleFlightWhileGrowing(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(size, 1)
	sources := []*targettest.Spool{targettest.NewSpool(t), targettest.NewSpool(t)}
	synctest.Test(t, func(t *testing.T) {
		slow := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			time.Sleep(10 * time.Second)
			next.ServeHTTP(w, r)
		}
		g.faults = []*fault{{class: "chunk", from: 1, to: -1, do: slow}}
		g.start(t)
		engine, target := pushd.NewEngine(nil), g.target(t, nil)
		var uploads []*pushd.Upload
		for _, s := range sources {
			push := engine.Push(t.Context(), target, nil)
			defer push.Abort(nil)
			uploads = append(uploads, push.Add(pushd.Blob{Source: s}))
			s.Write(data)
		}
		time.Sleep(15 * time.Second)
		for _, s := range sources {
			s.Commit(t)
		}
		outcomes := make(map[pushd.Outcome]int)
		for _, u := range uploads {
			_, o, err := u.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			outcomes[o]++
		}
		if outcomes[pushd.Uploaded] != 1 || outcomes[pushd.Present] != 1 {
			t.Errorf("outcomes %v", outcomes)
		}
		if n := g.received(); n > size+3*chunk {
			t.Errorf("the registry got %d bytes, want not much more than %d", n, size)
		}
	})
}

// When the one who brings a blob is stopped, another takes over.
func TestFlightIsTakenOver(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(size, 1)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "chunk", from: 3, do: g.silence}}
		g.start(t)
		engine, target := pushd.NewEngine(nil), g.target(t, nil)
		first, second := engine.Push(t.Context(), target, nil), engine.Push(t.Context(), target, nil)
		defer second.Abort(nil)
		a := first.Add(known(data))
		synctest.Wait()
		b := second.Add(known(data))
		synctest.Wait()
		boom := errors.New("cancelled by user")
		first.Abort(boom)
		if _, _, err := a.Wait(t.Context()); !errors.Is(err, boom) {
			t.Errorf("first: %v, want %v", err, boom)
		}
		if _, o, err := b.Wait(t.Context()); o != pushd.Uploaded || err != nil {
			t.Errorf("second: %v, %v", o, err)
		}
		g.mustHave(t, data)
	})
}

// A layer whose digest becomes known on the way is not sent to the end if the
// registry has it.
func TestGrowingTurnsOutPresent(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(20<<20, 1)
	src := targettest.NewSpool(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		target := g.target(t, nil)
		if _, err := target.Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		before := g.received()
		g.faults = []*fault{{class: "chunk", from: len(g.calls("chunk")) + 1, do: g.silence}} // a slow line
		push := pushd.NewEngine(nil).Push(t.Context(), target, nil)
		defer push.Abort(nil)
		u := push.Add(pushd.Blob{Source: src})
		src.Write(data)
		synctest.Wait()
		src.Commit(t)
		if _, o, err := u.Wait(t.Context()); o != pushd.Present || err != nil {
			t.Errorf("Wait: %v, %v", o, err)
		}
		if n := g.received() - before; n > chunk {
			t.Errorf("%d bytes sent", n)
		}
	})
}

// The first failure stops the others and keeps the manifest back.
func TestFirstFailureStops(t *testing.T) {
	g := newRegistry(t)
	waiting := targettest.NewSpool(t)
	data := targettest.Noise(100, 1)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "finish", from: 1, to: -1, do: answer(403, "DENIED")}}
		g.start(t)
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, nil), nil)
		defer push.Abort(nil)
		other := push.Add(pushd.Blob{Source: waiting})
		push.Add(known(data))
		desc, raw := targettest.Manifest(t, data, data)
		if err := push.Manifest(t.Context(), desc, raw, "v1"); !errors.Is(err, pushd.ErrDenied) {
			t.Errorf("Manifest: %v, want %v", err, pushd.ErrDenied)
		}
		if _, _, err := other.Wait(t.Context()); !errors.Is(err, pushd.ErrDenied) {
			t.Errorf("the other blob: %v", err)
		}
		if n := len(g.calls("manifest")); n != 0 {
			t.Errorf("%d manifests were put", n)
		}
	})
}

func TestAbort(t *testing.T) {
	g := newRegistry(t)
	src := targettest.NewSpool(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, nil), nil)
		u := push.Add(pushd.Blob{Source: src})
		src.Write(make([]byte, 2*chunk))
		synctest.Wait()
		boom := errors.New("root file system too large")
		push.Abort(boom)
		if _, _, err := u.Wait(t.Context()); !errors.Is(err, boom) {
			t.Errorf("Wait: %v, want %v", err, boom)
		}
		if _, _, err := push.Add(known([]byte("late"))).Wait(t.Context()); err == nil {
			t.Error("an ended push took a blob")
		}
		desc, raw := targettest.Manifest(t, nil, nil)
		if err := push.Manifest(t.Context(), desc, raw); !errors.Is(err, boom) {
			t.Errorf("Manifest: %v, want %v", err, boom)
		}
	})
}

// A registry that lost a confirmed blob gets it again.
func TestLostBlobIsBroughtAgain(t *testing.T) {
	g := newRegistry(t)
	layer, config := targettest.Noise(5000, 1), []byte("{}")
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		engine, target := pushd.NewEngine(nil), g.target(t, nil)
		push := func(tag string) *pushd.Push {
			p := engine.Push(t.Context(), target, nil)
			defer p.Abort(nil)
			p.Add(known(layer))
			p.Add(known(config))
			desc, raw := targettest.Manifest(t, config, layer)
			if err := p.Manifest(t.Context(), desc, raw, tag); err != nil {
				t.Errorf("push %s: %v", tag, err)
			}
			return p
		}
		push("v1")
		r, _ := http.NewRequest(http.MethodDelete, "http://"+host+"/v2/"+repo+"/blobs/"+digest.FromBytes(layer).String(), nil)
		w := &recorder{header: make(http.Header)}
		g.app.ServeHTTP(w, r)
		if w.status != http.StatusAccepted {
			t.Fatalf("delete: %d", w.status)
		}
		if a := push("v2").Account(); a.Uploaded != 1 || a.Present != 1 {
			t.Errorf("account %+v, want 1 uploaded, 1 present", a)
		}
		g.mustHave(t, layer)
	})
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(s int)           { r.status = s }

func TestPromisedDigest(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, nil), nil)
		defer push.Abort(nil)
		b := known([]byte("what comes"))
		b.Digest = digest.FromString("what was promised")
		if _, _, err := push.Add(b).Wait(t.Context()); !errors.Is(err, pushd.ErrDigest) {
			t.Errorf("Wait: %v, want %v", err, pushd.ErrDigest)
		}
	})
}

// A push counts and reports its retries.
func TestProgressTellsRetries(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "start", from: 1, to: 2, do: answer(503, "UNAVAILABLE")}}
		g.start(t)
		var told []pushd.Progress
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, nil), func(p pushd.Progress) { told = append(told, p) })
		if _, _, err := push.Add(known([]byte("x"))).Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		push.Abort(nil)
		retrying := 0
		for _, p := range told {
			if p.State == pushd.Retrying {
				retrying++
				if !errors.Is(p.Err, pushd.ErrUnavailable) || p.Wait <= 0 {
					t.Errorf("progress %+v", p)
				}
			}
		}
		if retrying != 2 || push.Account().Retries != 2 || told[len(told)-1].State != pushd.Done {
			t.Errorf("%d reports of a retry, account %+v, last %+v", retrying, push.Account(), told[len(told)-1])
		}
	})
}

// The end of the caller's context is the end of the push.
func TestPushEndsWithContext(t *testing.T) {
	g := newRegistry(t)
	src := targettest.NewSpool(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		push := pushd.NewEngine(nil).Push(ctx, g.target(t, nil), nil)
		defer push.Abort(nil)
		u := push.Add(pushd.Blob{Source: src})
		boom := errors.New("client went away")
		cancel(boom)
		if _, _, err := u.Wait(t.Context()); !errors.Is(err, boom) {
			t.Errorf("Wait: %v, want %v", err, boom)
		}
	})
}
