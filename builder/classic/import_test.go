package classic_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/stepcache"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd"
)

// elsewhere returns a world with the same registry and nothing in its cache.
func (w *world) elsewhere() *world {
	w.tb.Helper()
	own := *w
	var err error
	own.cache, err = layercache.Open(w.tb.Context(), layercache.Options{Root: filepath.Join(w.tb.TempDir(), "cache"), MinFree: -1})
	w.must(err)
	w.tb.Cleanup(func() { w.must(own.cache.Close()) })
	return &own
}

// cacheRef is where the tests keep steps.
const cacheRef = registryHost + "/fid/cache:main"

func toRegistry(all bool) *slipwayv1.CacheExport {
	return &slipwayv1.CacheExport{Type: slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY, Ref: cacheRef, All: all}
}

var inline = &slipwayv1.CacheExport{Type: slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_INLINE}

// lucky is a build that never makes the same twice: what is equal was not made
// again.
const lucky = `FROM fid/base:1 AS build
COPY src /src
RUN cat /src /proc/sys/kernel/random/uuid > /out
FROM fid/base:1
WORKDIR /app
COPY --from=build /out /app/out
RUN cat /proc/sys/kernel/random/uuid > /app/id
ENV A=b
COPY late /app/late
CMD ["cat", "/app/id"]
`

func (w *world) luckyDir() string {
	dir := w.tb.TempDir()
	w.write(dir, map[string]string{"src": "source\n", "late": "late\n"})
	return dir
}

// pulled lists the blobs that came from a cache.
func (o *outcome) pulled(ref string) map[string]bool {
	out := map[string]bool{}
	for _, e := range o.events {
		if p := e.GetPull(); p != nil && p.Ref == ref {
			out[p.Digest] = true
		}
	}
	return out
}

func (o *outcome) notes() string {
	var b strings.Builder
	for _, e := range o.events {
		if l := e.GetStepLog(); l != nil && l.Stream == slipwayv1.LogStream_LOG_STREAM_NOTE {
			b.Write(l.Data)
		}
	}
	return b.String()
}

// matches compares hits; "?" is a step whose fate depends on which stage is
// faster.
func matches(got, want string) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range got {
		if want[i] != '?' && got[i] != want[i] {
			return false
		}
	}
	return true
}

// check expects these hits, no warning but those of warn, and an image.
func (o *outcome) check(hits string, warn ...string) *image {
	o.world.tb.Helper()
	img := o.pull()
	if got := o.cached(); !matches(got, hits) {
		o.world.tb.Errorf("cached %s, want %s", got, hits)
	}
	got := o.warnings()
	if len(got) != len(warn) {
		o.world.tb.Fatalf("warnings %q, want %q", got, warn)
	}
	for i := range got {
		if !strings.Contains(got[i], warn[i]) {
			o.world.tb.Errorf("warning %q, want %q", got[i], warn[i])
		}
	}
	return img
}

func TestCacheFromRegistry(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	first := w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	first.check("--------")

	b := w.elsewhere()
	again := b.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	again.check("++++++++")
	if again.Digest != first.Digest {
		t.Errorf("digest %s, was %s", again.Digest, first.Digest)
	}
	if again.RootfsBytes != first.RootfsBytes {
		t.Errorf("root file system of %d bytes, was %d", again.RootfsBytes, first.RootfsBytes)
	}
	if len(again.needed) != 0 {
		t.Errorf("needed %v of the context", again.needed)
	}
	if got := strings.Count(again.notes(), "from "+cacheRef); got != 8 {
		t.Errorf("%d notes say where the steps come from:\n%s", got, again.notes())
	}
	// The other stage is known by name only.
	own := map[string]bool{}
	for _, l := range again.Layers[1:] {
		own[l.Digest] = true
	}
	if got := again.pulled(cacheRef); len(got) != 4 || len(own) != 4 {
		t.Errorf("pulled %v; the image has %v over its base", got, own)
	} else {
		for d := range got {
			if !own[d] {
				t.Errorf("pulled %s, which the image does not have", d)
			}
		}
	}

	for _, st := range w.steps() {
		if st.InImage != own[digestOf(st)] && !st.Empty {
			t.Errorf("%s: in the image %v", st.CreatedBy, st.InImage)
		}
	}

	// The steps are the org's own now.
	third := b.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	third.check("++++++++")
	if got := third.pulled(cacheRef); third.Digest != first.Digest || len(got) != 0 {
		t.Errorf("third build: digest %s, was %s, pulled %v", third.Digest, first.Digest, got)
	}
	if got := b.build(t.Context(), request{org: "rival", dir: dir, dockerfile: lucky}); got.check("--------") == nil || got.Digest == first.Digest {
		t.Error("another org got the steps")
	}
}

func TestCacheFromRegistryLaterStepsRun(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	first := w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	before := first.check("--------")
	w.write(dir, map[string]string{"late": "later\n"})
	b := w.elsewhere()
	late := b.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	img := late.check("++++++--")
	for _, path := range []string{"/app/id", "/app/out"} {
		if img.tree[path].SHA256 != before.tree[path].SHA256 {
			t.Errorf("%s is %+v, was %+v", path, img.tree[path], before.tree[path])
		}
	}
	if got := img.tree["/app/late"].SHA256; got != digest.FromString("later\n").Encoded() {
		t.Errorf("/app/late is %s", got)
	}

	// What a RUN stands on in another stage is brought then.
	changed := strings.Replace(lucky, "> /out\n", "> /out\nRUN cat /out > /copy\n", 1)
	c := w.elsewhere()
	more := c.build(t.Context(), request{dir: dir, dockerfile: changed, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	more.check("++-++++--") // what it copies is the same: found by content
	if more.RootfsBytes != late.RootfsBytes {
		t.Errorf("root file system of %d bytes, want %d", more.RootfsBytes, late.RootfsBytes)
	}
	plain := c.build(t.Context(), request{dir: dir, dockerfile: changed})
	plain.check("+++++++++")
	if plain.Digest != more.Digest {
		t.Errorf("without the cache elsewhere %s, was %s", plain.Digest, more.Digest)
	}
}

func TestCacheToMin(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(false)}}}).check("--------")
	again := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	again.check("--+-----") // its own stage depends on one that it has nothing of
}

func TestCacheInline(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	dockerfile := lucky[strings.LastIndex(lucky, "FROM"):]
	dockerfile = strings.Replace(dockerfile, "COPY --from=build /out", "COPY src", 1)
	build := func(w *world, start *slipwayv1.Start) *outcome {
		return w.build(t.Context(), request{dir: dir, dockerfile: dockerfile, start: start})
	}
	plain := build(w, nil)
	without := plain.check("------")
	first := build(w, &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{inline}})
	with := first.check("++++++")
	doc, err := stepcache.OfConfig(with.raw)
	if err != nil || len(doc.Steps) != 6 {
		t.Fatalf("document %v, %v", doc, err)
	}
	raw, err := doc.Encode()
	w.must(err)
	if rest := bytes.Replace(with.raw, []byte(`,"`+stepcache.Field+`":`+string(raw)), nil, 1); !bytes.Equal(rest, without.raw) {
		t.Errorf("the rest of the config is\n%s\nwant\n%s", rest, without.raw)
	}
	ref := registryHost + "/fid/case:latest"
	again := build(w.elsewhere(), &slipwayv1.Start{CacheFrom: []string{ref}, CacheTo: []*slipwayv1.CacheExport{inline}})
	again.check("++++++")
	if again.Digest != first.Digest || again.Digest == plain.Digest {
		t.Errorf("digest %s, was %s; without steps %s", again.Digest, first.Digest, plain.Digest)
	}
	if bare := build(w.elsewhere(), &slipwayv1.Start{CacheFrom: []string{ref}}); bare.check("++++++") == nil || bare.Digest != plain.Digest {
		t.Errorf("digest %s, want %s", bare.Digest, plain.Digest)
	}
}

// A cache must not take the place of the image.
func TestCacheToTheImage(t *testing.T) {
	w := newWorld(t)
	same := toRegistry(true)
	same.Ref = registryHost + "/fid/case:latest"
	if o := w.build(t.Context(), request{dockerfile: "FROM fid/base:1\n", start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{same}}}); o.GetError().GetCode() != failure.InvalidArgument {
		t.Errorf("result %v", o.Result)
	}
}

// Layers come as they are, and as the build wants them if it insists.
func TestCacheFromWithCompression(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	first := w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	first.check("--------")
	for _, force := range []bool{false, true} {
		o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{
			CacheFrom:   []string{cacheRef},
			Compression: &slipwayv1.Compression{Type: slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD, Force: force},
		}})
		o.check("++++++++")
		for i, l := range o.Layers {
			if zstd := strings.HasSuffix(l.MediaType, "zstd"); zstd != force || l.DiffId != first.Layers[i].DiffId {
				t.Errorf("force %v: layer %s is %s", force, l.CreatedBy, l.MediaType)
			}
		}
	}
}

// What a cache lent and nobody needed goes on to the next cache.
func TestCacheToAfterCacheFrom(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	first := w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	doc := w.document("fid/cache", "main")
	next := registryHost + "/fid/next:main"
	to := []*slipwayv1.CacheExport{toRegistry(true), {Type: slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY, Ref: next, All: true}}
	w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}, CacheTo: to}}).check("++++++++")
	for _, name := range []string{"fid/cache", "fid/next"} {
		if got := w.document(name, "main"); !bytes.Equal(got, doc) {
			t.Errorf("%s holds\n%s\nwant\n%s", name, got, doc)
		}
	}
	w.write(dir, map[string]string{"late": "later\n"})
	last := strings.Replace(lucky, "> /out\n", "> /out\nRUN cat /out > /copy\n", 1)
	o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: last, start: &slipwayv1.Start{CacheFrom: []string{next}}})
	o.check("++-++++--")
	if o.Layers[2].Digest != first.Layers[2].Digest {
		t.Errorf("layer %s, was %s", o.Layers[2].Digest, first.Layers[2].Digest)
	}
}

// document reads what a cache in the registry says.
func (w *world) document(name, tag string) []byte {
	w.tb.Helper()
	_, config := w.artifact(name, tag)
	return config
}

func (w *world) artifact(name, tag string) (ocispec.Manifest, []byte) {
	w.tb.Helper()
	repo, err := w.registry.Repository(name)
	w.must(err)
	_, raw, err := repo.Manifest(w.tb.Context(), tag)
	w.must(err)
	var m ocispec.Manifest
	w.must(json.Unmarshal(raw, &m))
	path, _, err := repo.Blob(w.tb.Context(), m.Config.Digest)
	w.must(err)
	config, err := os.ReadFile(path)
	w.must(err)
	return m, config
}

// steps lists those of the tests' cache.
func (w *world) steps() []stepcache.Step {
	w.tb.Helper()
	doc, err := stepcache.Decode(w.document("fid/cache", "main"))
	w.must(err)
	return doc.Steps
}

func digestOf(st stepcache.Step) string {
	if st.Blob == nil {
		return ""
	}
	return st.Blob.Digest.String()
}

// poison puts a changed cache in place of the one that a build wrote.
func (w *world) poison(change func(*ocispec.Manifest, *stepcache.Document)) {
	w.tb.Helper()
	m, config := w.artifact("fid/cache", "main")
	var d stepcache.Document
	w.must(json.Unmarshal(config, &d))
	change(&m, &d)
	config, err := json.Marshal(d)
	w.must(err)
	m.Config.Digest, m.Config.Size = digest.FromBytes(config), int64(len(config))
	repo, err := w.registry.Repository("fid/cache")
	w.must(err)
	ctx := w.tb.Context()
	p := pushd.NewEngine(nil).Push(ctx, pushd.NewLocal("fid/cache", repo, filepath.Join(w.root, "tmp")), nil)
	defer p.Abort(nil)
	p.Add(pushd.Blob{Descriptor: m.Config, Source: pushd.Bytes(config)})
	raw, err := json.Marshal(m)
	w.must(err)
	w.must(p.Manifest(ctx, ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, "main"))
}

func TestPoisonedCache(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}}).check("--------")
	// Steps in the document: 0 COPY src, 1 RUN, 2 WORKDIR, 3 COPY --from, 4 RUN, 5 ENV, 6 COPY late, 7 CMD.
	last := strings.Replace(lucky, "> /out\n", "> /out\nRUN cat /out > /copy\n", 1)
	other := digest.FromString("something else")
	resize := func(m *ocispec.Manifest, b *stepcache.Blob, size int64) {
		for i := range m.Layers {
			if m.Layers[i].Digest == b.Digest {
				m.Layers[i].Size = size
			}
		}
		b.Size = size
	}
	for _, test := range []struct {
		name       string
		dockerfile string
		change     func(m *ocispec.Manifest, d *stepcache.Document)
		hits       string
		warn       string
	}{
		{"diff ID", lucky, func(_ *ocispec.Manifest, d *stepcache.Document) { d.Steps[4].DiffID = other }, "++++----", "content has diff ID"},
		{"blob of another step", lucky, func(_ *ocispec.Manifest, d *stepcache.Document) { d.Steps[4].Blob = d.Steps[6].Blob }, "++++----", "content has diff ID"},
		{"blob that the manifest lacks", lucky, func(_ *ocispec.Manifest, d *stepcache.Document) { d.Steps[4].Blob.Digest = other }, "++++----", "has no blob"},
		{"too long", lucky, func(m *ocispec.Manifest, d *stepcache.Document) { resize(m, d.Steps[4].Blob, d.Steps[4].Blob.Size+1) }, "++++----", ""},
		{"too short", lucky, func(m *ocispec.Manifest, d *stepcache.Document) { resize(m, d.Steps[4].Blob, d.Steps[4].Blob.Size-1) }, "++++----", "longer than"},
		{"huge", lucky, func(m *ocispec.Manifest, d *stepcache.Document) { resize(m, d.Steps[4].Blob, 1<<60) }, "++++----", "larger than any image"},
		{"layer of a step that makes none", lucky, func(_ *ocispec.Manifest, d *stepcache.Document) {
			env := &d.Steps[5]
			env.Empty, env.DiffID, env.Blob = false, d.Steps[4].DiffID, d.Steps[4].Blob
		}, "+++++---", "which makes none"},
		{"no document", lucky, func(m *ocispec.Manifest, d *stepcache.Document) { d.Version = 99 }, "--------", "version 99"},
		{"media type", lucky, func(m *ocispec.Manifest, d *stepcache.Document) { d.Steps[4].Blob.MediaType = "text/html" }, "--------", "text/html"},
		// A claim of another stage that is found to be false when the stage
		// has to run after all: the build begins anew.
		{"diff ID below a RUN", last, func(_ *ocispec.Manifest, d *stepcache.Document) { d.Steps[1].DiffID = other }, "---?-----", "content has diff ID"},
		// Sizes are counted, not believed.
		{"sizes", last, func(_ *ocispec.Manifest, d *stepcache.Document) {
			for i := range d.Steps {
				d.Steps[i].RootFS, d.Steps[i].Peak = 1<<50, 1<<50
			}
		}, "++-++++++", "-"},
		{"small sizes", last, func(_ *ocispec.Manifest, d *stepcache.Document) {
			for i := range d.Steps {
				d.Steps[i].RootFS, d.Steps[i].Peak = 0, 0
			}
		}, "++-++++++", "-"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := w.on(t)
			clean, _ := w.artifact("fid/cache", "main")
			w.poison(test.change)
			defer w.tag("fid/cache", "main", clean)
			b := w.elsewhere()
			var warn []string
			if test.warn != "-" {
				warn = []string{test.warn}
			}
			o := b.build(t.Context(), request{dir: dir, dockerfile: test.dockerfile, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
			img := o.check(test.hits, warn...)
			if img.tree["/app/id"].Size != 37 || img.tree["/app/out"].Size != 37+int64(len("source\n")) {
				t.Errorf("tree %+v", img.tree)
			}
			// Nothing of it is left behind: what is built again is the same.
			again := b.build(t.Context(), request{dir: dir, dockerfile: test.dockerfile})
			if again.Digest != o.Digest && !strings.Contains(test.hits, "++-") {
				t.Errorf("digest %s, then %s", o.Digest, again.Digest)
			}
			if again.RootfsBytes != o.RootfsBytes || o.RootfsBytes == 0 || o.RootfsBytes > 1<<40 {
				t.Errorf("root file system of %d, then %d bytes", o.RootfsBytes, again.RootfsBytes)
			}
		})
	}
}

// tag puts a manifest that the repository has had under a tag again.
func (w *world) tag(name, tag string, m ocispec.Manifest) {
	w.tb.Helper()
	repo, err := w.registry.Repository(name)
	w.must(err)
	raw, err := json.Marshal(m)
	w.must(err)
	w.must(repo.PutManifest(w.tb.Context(), ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, tag))
}

// A claim must not bring an image past the limit.
func TestCacheFromIsCounted(t *testing.T) {
	w := newWorld(t)
	dockerfile := "FROM fid/base:1\nRUN head -c 10000000 /dev/urandom > /a\nRUN head -c 10000000 /dev/urandom > /b\n"
	first := w.build(t.Context(), request{dockerfile: dockerfile, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	first.check("--")
	w.poison(func(_ *ocispec.Manifest, d *stepcache.Document) {
		for i := range d.Steps {
			d.Steps[i].RootFS, d.Steps[i].Peak = 1, 1
		}
	})
	b := w.elsewhere()
	b.max = 15_000_000
	o := b.build(t.Context(), request{dockerfile: dockerfile, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	if o.GetError().GetCode() != failure.TooLarge || o.cached() != "+-" {
		t.Errorf("cached %s, result %v", o.cached(), o.Result)
	}
}

func TestCacheFromThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	missing, bare := registryHost+"/fid/none:x", registryHost+"/fid/base:1"
	start := &slipwayv1.Start{CacheFrom: []string{missing, bare, cacheRef}}
	w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}}).check("--------")
	o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: lucky, start: start})
	o.pull()
	if got := strings.Join(o.warnings(), "\n"); len(o.warnings()) != 2 || !strings.Contains(got, missing) || !strings.Contains(got, bare+": holds no steps") || o.cached() != "++++++++" {
		t.Errorf("cached %s, warnings %s", o.cached(), got)
	}
	for _, bad := range []string{"UPPER CASE", "", "a@sha256:1"} {
		o := w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{bad}}})
		if o.GetError().GetCode() != failure.InvalidArgument {
			t.Errorf("%q: %v", bad, o.Result)
		}
	}
	if o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef, missing}, NoCache: true}}); o.check("--------") == nil {
		t.Error("no image")
	}
}

// A blob that is gone when a stage needs it makes the stage run.
func TestCacheWhoseBlobIsGone(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}}).check("--------")
	repo, err := w.registry.Repository("fid/cache")
	w.must(err)
	path, _, err := repo.Blob(t.Context(), w.steps()[1].Blob.Digest)
	w.must(errors.Join(err, os.Remove(path)))
	begun := time.Now()
	last := strings.Replace(lucky, "> /out\n", "> /out\nRUN cat /out > /copy\n", 1)
	o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: last, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	o.check("---?-----", "nothing more is taken from the cache "+cacheRef)
	if spent := time.Since(begun); spent > time.Minute {
		t.Errorf("took %v", spent)
	}
	for _, e := range o.events {
		if d := e.GetStepDone(); d != nil && d.Error != "" {
			t.Errorf("step %d is told to have failed: %s", d.Step, d.Error)
		}
	}
}

// A plan counts what caches elsewhere have, and brings nothing of it.
func TestForecastWithCacheFrom(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	w.build(t.Context(), request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}}).check("--------")
	b := w.elsewhere()
	f, _ := b.plan(request{dir: dir, dockerfile: lucky, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	if got := marks(f); got != "++++++++" {
		t.Errorf("plan %s", got)
	}
	f, _ = b.plan(request{dir: dir, dockerfile: strings.Replace(lucky, "ENV A=b", "ENV A=c", 1), start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	if got := marks(f); got != "+++++---" {
		t.Errorf("with another ENV, plan %s", got)
	}
	f, _ = b.plan(request{dir: dir, dockerfile: lucky})
	if got := marks(f); strings.Contains(got, "+") {
		t.Errorf("without the cache, plan %s", got)
	}
}

// What a step mounts of a stage that was never pulled is pulled for it, and a
// step that mounts is found by what it mounts.
func TestCacheFromBelowMounts(t *testing.T) {
	w := newWorld(t)
	dir := w.luckyDir()
	df := `FROM fid/base:1 AS build
COPY src /src
RUN cat /src /proc/sys/kernel/random/uuid > /out
FROM fid/base:1
RUN --mount=type=bind,from=build,source=/out,target=/in cat /in > /final
RUN --mount=type=cache,target=/c cp /final /c/x && cat /proc/sys/kernel/random/uuid > /id
`
	first := w.build(t.Context(), request{dir: dir, dockerfile: df, start: &slipwayv1.Start{CacheTo: []*slipwayv1.CacheExport{toRegistry(true)}}})
	a := first.check("----")
	o := w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: df, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	o.check("++++")
	if o.Digest != first.Digest {
		t.Error("digest")
	}
	df = strings.Replace(df, "> /final", "> /final && true", 1)
	o = w.elsewhere().build(t.Context(), request{dir: dir, dockerfile: df, start: &slipwayv1.Start{CacheFrom: []string{cacheRef}}})
	b := o.check("++--")
	if a.tree["/final"].SHA256 != b.tree["/final"].SHA256 || a.tree["/final"].SHA256 == "" {
		t.Errorf("%+v %+v", a.tree["/final"], b.tree["/final"])
	}
}
