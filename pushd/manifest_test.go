package pushd_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

// marshal describes a document of a media type.
func marshal(t testing.TB, mediaType string, v any) pushd.Manifest {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return pushd.Manifest{Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, Raw: raw}
}

func indexOf(t testing.TB, children ...pushd.Manifest) pushd.Manifest {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, c := range children {
		index.Manifests = append(index.Manifests, c.Descriptor)
	}
	return marshal(t, ocispec.MediaTypeImageIndex, index)
}

func imageOf(t testing.TB, config, layer []byte) pushd.Manifest {
	t.Helper()
	desc, raw := targettest.Manifest(t, config, layer)
	return pushd.Manifest{Descriptor: desc, Raw: raw}
}

// about returns an artifact, such as a signature, that refers to a manifest.
func about(t testing.TB, subject pushd.Manifest, config []byte, kind string) pushd.Manifest {
	t.Helper()
	return marshal(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind,
		Config:      ocispec.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:      []ocispec.Descriptor{},
		Subject:     &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{"kind": kind},
	})
}

// puts returns what manifests were put under, in order.
func (g *registry) puts() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.put)
}

// An index goes after what it lists, tags after everything, in whatever order
// they are given.
func TestIndexComesLast(t *testing.T) {
	g := newRegistry(t)
	config, a, b := []byte("{}"), targettest.Noise(500, 1), targettest.Noise(500, 2)
	one, two := imageOf(t, config, a), imageOf(t, config, b)
	inner := indexOf(t, two)
	outer := indexOf(t, one, inner)
	one.Tags, outer.Tags = []string{"amd64"}, []string{"v1", "latest"}
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, nil), nil)
		defer push.Abort(nil)
		for _, blob := range [][]byte{config, a, b} {
			push.Add(known(blob))
		}
		if err := push.Manifests(t.Context(), outer, inner, two, one); err != nil {
			t.Fatal(err)
		}
		var order []string
		names := map[string]string{one.Digest.String(): "one", two.Digest.String(): "two", inner.Digest.String(): "inner", outer.Digest.String(): "outer"}
		for _, p := range g.puts() {
			if n, ok := names[p]; ok {
				p = n
			}
			order = append(order, p)
		}
		want := "one two inner one amd64 outer v1 latest"
		if got := strings.Join(order, " "); got != want {
			t.Errorf("put %s; want %s", got, want)
		}
		for tag, want := range map[string]pushd.Manifest{"v1": outer, "latest": outer, "amd64": one} {
			if got, ok := g.manifest(tag); !ok || string(got) != string(want.Raw) {
				t.Errorf("tag %s has another manifest (found: %v)", tag, ok)
			}
		}
	})
}

func TestManifestWithAnotherDigestIsNotPut(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		push := pushd.NewEngine(nil).Push(t.Context(), g.target(t, nil), nil)
		defer push.Abort(nil)
		m := imageOf(t, []byte("{}"), []byte("layer"))
		m.Digest = digest.FromString("other")
		if err := push.Manifests(t.Context(), m); !errors.Is(err, pushd.ErrDigest) {
			t.Errorf("Manifests: %v, want %v", err, pushd.ErrDigest)
		}
		if err := push.Err(); !errors.Is(err, pushd.ErrDigest) {
			t.Errorf("Err: %v", err)
		}
		if n := len(g.calls()); n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

// Who fails in the middle of the tags says which are set.
func TestHalfTaggedIsSaid(t *testing.T) {
	g := newRegistry(t)
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "manifest", from: 4, to: -1, do: answer(403, "DENIED")}}
		g.start(t)
		target := g.target(t, nil)
		desc, raw := targettest.Image(t, target, targettest.Noise(1000, 8))
		err := target.PutManifest(t.Context(), desc, raw, []string{"a", "b", "c", "d"}, pushd.Ignore())
		var half *pushd.TagError
		if !errors.As(err, &half) || !errors.Is(err, pushd.ErrDenied) {
			t.Fatalf("PutManifest: %v", err)
		}
		if !slices.Equal(half.Tagged, []string{"a", "b"}) || !slices.Equal(half.Untagged, []string{"c", "d"}) {
			t.Errorf("tagged %q, not %q", half.Tagged, half.Untagged)
		}
		for _, s := range []string{"a, b", "c, d", host, repo, "403"} {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("the error lacks %q: %v", s, err)
			}
		}
		for _, tag := range []string{"a", "b", "c", "d"} {
			if _, ok := g.manifest(tag); ok != slices.Contains(half.Tagged, tag) {
				t.Errorf("tag %s is there: %v", tag, ok)
			}
		}
	})
}

// What refers to a manifest can be found: where the registry keeps no list,
// by the tag that stands for one.
func TestReferrers(t *testing.T) {
	config := []byte("{}")
	image := imageOf(t, config, config)
	first, second := about(t, image, config, "application/vnd.test.signature"), about(t, image, config, "application/vnd.test.sbom")
	tag := strings.Replace(image.Digest.String(), ":", "-", 1)
	check := func(t *testing.T, list []byte, found bool) {
		t.Helper()
		var index ocispec.Index
		if err := json.Unmarshal(list, &index); err != nil || !found {
			t.Fatalf("no list: %v, %v", found, err)
		}
		got := make(map[digest.Digest]ocispec.Descriptor)
		for _, m := range index.Manifests {
			got[m.Digest] = m
		}
		if len(index.Manifests) != 2 || len(got) != 2 || index.MediaType != ocispec.MediaTypeImageIndex {
			t.Errorf("list %s", list)
		}
		if d := got[second.Digest]; d.ArtifactType != "application/vnd.test.sbom" || d.Size != second.Size || d.Annotations["kind"] != d.ArtifactType {
			t.Errorf("descriptor %+v", d)
		}
	}
	t.Run("by tag", func(t *testing.T) {
		g := newRegistry(t)
		synctest.Test(t, func(t *testing.T) {
			g.faults = []*fault{
				{class: "GET", from: 1, to: -1, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					next.ServeHTTP(w, r)
					time.Sleep(time.Second) // in which others would change the list
				}},
				{class: "GET", from: 1, do: answer(503, "")},
			}
			g.start(t)
			target := g.target(t, nil)
			put(t, target, config, image)
			var wg sync.WaitGroup
			for _, m := range []pushd.Manifest{first, second, first} { // again changes nothing
				wg.Go(func() { put(t, target, config, m) })
			}
			wg.Wait()
			list, ok := g.get("manifests/" + tag)
			check(t, list, ok)
		})
	})
	t.Run("by the registry", func(t *testing.T) {
		g := newRegistry(t)
		synctest.Test(t, func(t *testing.T) {
			g.faults = []*fault{{class: "manifest", from: 1, to: -1, do: rewriting(set("OCI-Subject", image.Digest.String()))}}
			g.start(t)
			target := g.target(t, nil)
			put(t, target, config, image)
			put(t, target, config, first)
			if _, ok := g.get("manifests/" + tag); ok {
				t.Error("there is a tag although the registry keeps the list")
			}
		})
	})
	t.Run("a list that cannot be read", func(t *testing.T) {
		g := newRegistry(t)
		synctest.Test(t, func(t *testing.T) {
			g.faults = []*fault{{class: "GET", from: 1, to: -1, do: answer(403, "DENIED")}}
			g.start(t)
			target := g.target(t, nil)
			put(t, target, config, image)
			if err := target.PutManifest(t.Context(), first.Descriptor, first.Raw, []string{"sig"}, pushd.Ignore()); !errors.Is(err, pushd.ErrDenied) {
				t.Errorf("PutManifest: %v, want %v", err, pushd.ErrDenied)
			}
			if _, ok := g.manifest("sig"); ok {
				t.Error("tagged before it was listed")
			}
		})
	})
	t.Run("local", func(t *testing.T) {
		f := folder(t.TempDir())
		target := pushd.NewLocal("slipway.test/acme/web", f, "")
		for _, m := range []pushd.Manifest{image, first, second, first} {
			put(t, target, config, m)
		}
		list, ok := read(f.manifest(tag))
		check(t, list, ok)
	})
}

func put(t *testing.T, target pushd.Target, config []byte, m pushd.Manifest) {
	t.Helper()
	if _, err := target.Upload(t.Context(), described(config), pushd.Bytes(config), pushd.Ignore()); err != nil {
		t.Error(err)
	}
	if err := target.PutManifest(t.Context(), m.Descriptor, m.Raw, m.Tags, pushd.Ignore()); err != nil {
		t.Error(err)
	}
}

// A registry that says for ever that it lacks a blob is believed the second
// time, and what it confirmed is forgotten.
func TestBlobUnknownForEver(t *testing.T) {
	g := newRegistry(t)
	layer, config := targettest.Noise(5000, 1), []byte("{}")
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "manifest", from: 1, to: 2, do: answer(404, "MANIFEST_BLOB_UNKNOWN")}}
		g.start(t)
		engine, target := pushd.NewEngine(nil), g.target(t, nil)
		for i, want := range []error{pushd.ErrBlobUnknown, nil} {
			push := engine.Push(t.Context(), target, nil)
			before := len(g.calls("head"))
			push.Add(known(layer))
			push.Add(known(config))
			if err := push.Manifests(t.Context(), imageOf(t, config, layer)); !errors.Is(err, want) {
				t.Errorf("push %d: %v, want %v", i, err, want)
			}
			heads := len(g.calls("head")) - before
			if i == 0 && len(g.calls("manifest")) != 2 {
				t.Errorf("tried %d times, want 2", len(g.calls("manifest")))
			}
			if a := push.Account(); i == 0 && a.Uploaded != 2 || i == 1 && (a.Present != 2 || heads != 2) {
				t.Errorf("push %d: account %+v, %d questions", i, a, heads)
			}
			push.Abort(nil)
		}
	})
}

// Docker Hub's two names are one registry; the base of an image is mounted
// from where it is on the same host only.
func TestOrigins(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(5000, 1)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		for name, want := range map[string]string{
			host + "/" + repo:       "library/debian",
			"index.docker.io/a/web": "library/hub",
		} {
			before := len(g.calls("mount"))
			push := pushd.NewEngine(nil).Push(t.Context(), renamed{g.target(t, nil), name}, nil)
			b := known(data)
			b.Origins = []string{"elsewhere.test/library/debian", host + "/library/debian", "docker.io/library/hub", name}
			if _, _, err := push.Add(b).Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			push.Abort(nil)
			for _, c := range g.calls("mount")[before:] {
				if !strings.Contains(c.query, "from="+strings.ReplaceAll(want, "/", "%2F")+"&") {
					t.Errorf("%s: asked to mount by %s, want from %s", name, c.query, want)
				}
			}
			if want == "library/debian" && len(g.calls("mount")) == before {
				t.Errorf("%s: nothing was mounted", name)
			}
			r, _ := http.NewRequest(http.MethodDelete, "http://"+host+"/v2/"+repo+"/blobs/"+digest.FromBytes(data).String(), nil)
			g.app.ServeHTTP(&recorder{header: make(http.Header)}, r)
		}
	})
}

// renamed lets registries of one test have names of their own.
type renamed struct {
	pushd.Target
	name string
}

func (r renamed) Name() string { return r.name }
