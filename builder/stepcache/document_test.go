package stepcache_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/stepcache"
	"github.com/slipwayhq/slipway/layercache"
)

func key(name string) layercache.Key { return layercache.NewKey(layercache.Part{Name: name}) }

// sample has a step of each kind.
func sample() *stepcache.Document {
	return &stepcache.Document{Steps: []stepcache.Step{
		{
			Keys: []layercache.Key{key("env")}, Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
			CreatedBy: "/bin/sh -c #(nop)  ENV A=b", Empty: true, InImage: true, RootFS: 4096, Peak: 8192,
		},
		{
			Keys: []layercache.Key{key("copy"), key("copied")}, Created: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
			CreatedBy: "/bin/sh -c #(nop) COPY file:abc in /f ", DiffID: digest.FromString("tar"), RootFS: 8192, Peak: 8192,
			Blob: &stepcache.Blob{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("gzip"), Size: 123},
		},
	}}
}

// Documents outlive the daemon that wrote them: what they look like may change
// with their version only.
func TestDocumentIsAsItWas(t *testing.T) {
	got, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, bytes.TrimSpace(want)) {
		t.Errorf("document is\n%s\nwant\n%s", got, want)
	}
	d, err := stepcache.Decode(got)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.Encode(); err != nil || !bytes.Equal(again, got) {
		t.Errorf("read and written again it is\n%s\n(%v)", again, err)
	}
}

func TestDocumentsThatAreNone(t *testing.T) {
	raw, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(raw)
	for what, bad := range map[string]string{
		"no JSON":             good[:len(good)-1],
		"another version":     strings.Replace(good, `"version":1`, `"version":2`, 1),
		"no version":          strings.Replace(good, `"version":1,`, ``, 1),
		"short key":           strings.Replace(good, key("env").String(), "ab", 1),
		"no key":              strings.Replace(good, `"keys":["`+key("env").String()+`"]`, `"keys":[]`, 1),
		"negative size":       strings.Replace(good, `"size":123`, `"size":-1`, 1),
		"size beyond int64":   strings.Replace(good, `"size":123`, `"size":123456789012345678901`, 1),
		"negative rootfs":     strings.Replace(good, `"rootfs":4096`, `"rootfs":-1`, 1),
		"peak below rootfs":   strings.Replace(good, `"rootfs":4096`, `"rootfs":8193`, 1),
		"diff ID":             strings.Replace(good, digest.FromString("tar").String(), "sha256:../../etc", 1),
		"digest":              strings.Replace(good, digest.FromString("gzip").String(), "md5:d41d8cd98f00b204e9800998ecf8427e", 1),
		"media type":          strings.Replace(good, "tar+gzip", "tar+exe", 1),
		"layer and empty":     strings.Replace(good, `"diff_id"`, `"empty":true,"diff_id"`, 1),
		"neither":             strings.Replace(good, `"empty":true,`, ``, 1),
		"steps that are none": `{"version":1,"steps":[` + strings.Repeat("{},", 1<<20) + `{}]}`,
		"no steps":            `{"version":1,"steps":{}}`,
		"too long":            good + strings.Repeat(" ", stepcache.MaxSize),
	} {
		if bad == good {
			t.Errorf("%s: the document is the good one", what)
		}
		if d, err := stepcache.Decode([]byte(bad)); !errors.Is(err, stepcache.ErrInvalid) {
			t.Errorf("%s: %v, %v", what, d, err)
		}
	}
}

func TestDocumentOfConfig(t *testing.T) {
	raw, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	d, err := stepcache.OfConfig([]byte(`{"os":"linux","` + stepcache.Field + `":` + string(raw) + `}`))
	if err != nil || len(d.Steps) != 2 {
		t.Errorf("%v, %v", d, err)
	}
	if _, err := stepcache.OfConfig([]byte(`{"os":"linux"}`)); !errors.Is(err, stepcache.ErrNone) {
		t.Errorf("without a document: %v", err)
	}
	for _, bad := range []string{``, `{"slipway.cache.v1":null}`, `{"slipway.cache.v1":[]}`, `[]`} {
		if d, err := stepcache.OfConfig([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, d)
		}
	}
}

// FuzzDecode: whatever anybody writes is refused, or reads back as written.
func FuzzDecode(f *testing.F) {
	raw, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"version":1,"steps":[{"keys":null,"empty":true}]}`))
	f.Add([]byte(`{"version":1,"steps":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := stepcache.Decode(data)
		if err != nil {
			if !errors.Is(err, stepcache.ErrInvalid) {
				t.Fatalf("unknown error %v", err)
			}
			return
		}
		for _, s := range d.Steps {
			if len(s.Keys) == 0 || s.Empty != (s.Blob == nil) || !s.Empty && (s.DiffID.Validate() != nil || s.Blob.Digest.Validate() != nil) {
				t.Fatalf("step %+v", s)
			}
		}
		out, err := d.Encode()
		if err != nil {
			return // longer than it came: escapes
		}
		if _, err := stepcache.Decode(out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}
