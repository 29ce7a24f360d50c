package buildctx_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func dir(path string) buildctx.Entry {
	return buildctx.Entry{Path: path, Type: buildctx.TypeDirectory, Mode: 0o755}
}

func file(path, content string) buildctx.Entry {
	return buildctx.Entry{
		Path: path, Type: buildctx.TypeFile, Mode: 0o644, Size: int64(len(content)), Digest: sha256.Sum256([]byte(content)),
	}
}

func link(path string, typ buildctx.Type, target string) buildctx.Entry {
	return buildctx.Entry{Path: path, Type: typ, Mode: 0o777, Link: target}
}

func sample() *buildctx.Manifest {
	withAttr := file("a/x", "x")
	withAttr.Xattrs = map[string][]byte{"security.capability": {1, 0}}
	withAttr.Mode = 0o4755
	withAttr.ModTime = -5
	return &buildctx.Manifest{Entries: []buildctx.Entry{
		dir("a"), dir("a/b"), file("a/b/c", "one"), withAttr,
		file("a-b", ""), link("a.l", buildctx.TypeHardlink, "a/b/c"), file("non-utf8-\xff\xfe", "two"),
		link("s", buildctx.TypeSymlink, "../../anything"), {Path: "z", Type: buildctx.TypeFIFO, Mode: 0o600},
	}}
}

func toParts(t testing.TB, m *buildctx.Manifest) []*slipwayv1.ManifestPart {
	t.Helper()
	var parts []*slipwayv1.ManifestPart
	if err := m.ToProto(func(p *slipwayv1.ManifestPart) error { parts = append(parts, p); return nil }); err != nil {
		t.Fatal(err)
	}
	return parts
}

func fromParts(parts []*slipwayv1.ManifestPart, o *buildctx.DecodeOptions) (*buildctx.Manifest, error) {
	return buildctx.FromProto(func() (*slipwayv1.ManifestPart, error) {
		if len(parts) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		p := parts[0]
		parts = parts[1:]
		return p, nil
	}, o)
}

func TestManifestRoundTrip(t *testing.T) {
	many := &buildctx.Manifest{Entries: []buildctx.Entry{dir("d")}}
	for i := range 30_000 {
		many.Entries = append(many.Entries, file(fmt.Sprintf("d/%06d", i), fmt.Sprint(i)))
	}
	for name, m := range map[string]*buildctx.Manifest{"sample": sample(), "empty": {}, "many": many} {
		t.Run(name, func(t *testing.T) {
			parts := toParts(t, m)
			got, err := fromParts(parts, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(m.Entries)+len(got.Entries) > 0 && !reflect.DeepEqual(got, m) {
				t.Errorf("got %d entries that differ from the %d sent", len(got.Entries), len(m.Entries))
			}
			if name == "many" && len(parts) < 2 {
				t.Errorf("%d part for %d entries", len(parts), len(m.Entries))
			}
		})
	}
}

func TestManifestDigest(t *testing.T) {
	base := sample().Digest()
	touched := sample()
	touched.Entries[2].ModTime++
	if touched.Digest() != base {
		t.Error("a modification time changes the digest")
	}
	for name, change := range map[string]func(*buildctx.Manifest){
		"path":    func(m *buildctx.Manifest) { m.Entries[2].Path += "c" },
		"mode":    func(m *buildctx.Manifest) { m.Entries[2].Mode = 0o755 },
		"size":    func(m *buildctx.Manifest) { m.Entries[2].Size++ },
		"content": func(m *buildctx.Manifest) { m.Entries[2].Digest[31]++ },
		"type":    func(m *buildctx.Manifest) { m.Entries[8].Type = buildctx.TypeDirectory },
		"link":    func(m *buildctx.Manifest) { m.Entries[7].Link += "x" },
		"xattr":   func(m *buildctx.Manifest) { m.Entries[3].Xattrs["security.capability"][0]++ },
		"missing": func(m *buildctx.Manifest) { m.Entries = m.Entries[:8] },
	} {
		m := sample()
		change(m)
		if m.Digest() == base {
			t.Errorf("another %s has the same digest", name)
		}
	}
}

func TestManifestFindAndBelow(t *testing.T) {
	m := sample()
	for i := range m.Entries {
		if got, found := m.Find(m.Entries[i].Path); !found || got != i {
			t.Errorf("Find(%q) = %d, %v; want %d", m.Entries[i].Path, got, found, i)
		}
	}
	if _, found := m.Find("a/c"); found {
		t.Error("found what is not there")
	}
	for _, tc := range []struct {
		path string
		want []string
	}{
		{"a", []string{"a/b", "a/b/c", "a/x"}},
		{"a/b", []string{"a/b/c"}},
		{"a-b", nil},
		{"nothing", nil},
	} {
		from, to := m.Below(tc.path)
		if got := paths(m)[from:to]; !slices.Equal(got, tc.want) {
			t.Errorf("below %q: %q, want %q", tc.path, got, tc.want)
		}
	}
	if from, to := m.Below(""); from != 0 || to != len(m.Entries) {
		t.Errorf("below the root: %d to %d", from, to)
	}
}

func TestFromProtoRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	with := func(e buildctx.Entry, change func(*buildctx.Entry)) buildctx.Entry { change(&e); return e }
	for name, entries := range map[string][]buildctx.Entry{
		"absolute":               {file("/etc", "x")},
		"dot dot":                {dir("a"), file("a/..", "x")},
		"leading dot dot":        {dir(".."), file("../a", "x")},
		"dot":                    {dir(".")},
		"double slash":           {dir("a"), file("a//b", "x")},
		"trailing slash":         {dir("a/")},
		"empty path":             {file("", "x")},
		"NUL":                    {file("a\x00b", "x")},
		"long name":              {file(long, "x")},
		"long path":              {file(strings.Repeat("x/", 2100)+"x", "x")},
		"duplicate":              {file("a", "x"), file("a", "x")},
		"order":                  {file("b", "x"), file("a", "x")},
		"walk order":             {dir("a"), file("a-b", "x"), file("a/b", "x")},
		"no parent":              {file("a/b", "x")},
		"parent is a file":       {file("a", "x"), file("a/b", "x")},
		"parent is a link":       {link("a", buildctx.TypeSymlink, "/"), file("a/b", "x")},
		"parent ended":           {dir("a"), file("b", "x"), file("c/d", "x")},
		"grandparent only":       {dir("a"), file("a/b/c", "x")},
		"bad type":               {with(dir("a"), func(e *buildctx.Entry) { e.Type = 77 })},
		"no type":                {with(dir("a"), func(e *buildctx.Entry) { e.Type = 0 })},
		"mode":                   {with(dir("a"), func(e *buildctx.Entry) { e.Mode = 0o100644 })},
		"negative size":          {with(file("a", "x"), func(e *buildctx.Entry) { e.Size = -1 })},
		"huge size":              {with(file("a", "x"), func(e *buildctx.Entry) { e.Size = 1 << 60 })},
		"size of a directory":    {with(dir("a"), func(e *buildctx.Entry) { e.Size = 1 })},
		"empty with a digest":    {with(file("a", "x"), func(e *buildctx.Entry) { e.Size = 0 })},
		"bytes of the empty":     {with(file("a", ""), func(e *buildctx.Entry) { e.Size = 1 })},
		"link of a file":         {with(file("a", "x"), func(e *buildctx.Entry) { e.Link = "b" })},
		"symlink to nothing":     {link("a", buildctx.TypeSymlink, "")},
		"symlink with NUL":       {link("a", buildctx.TypeSymlink, "a\x00")},
		"long symlink":           {link("a", buildctx.TypeSymlink, strings.Repeat("x", 4097))},
		"hard link to later":     {link("a", buildctx.TypeHardlink, "b"), file("b", "x")},
		"hard link to nothing":   {link("a", buildctx.TypeHardlink, "../b")},
		"hard link to directory": {dir("a"), link("b", buildctx.TypeHardlink, "a")},
		"hard link to link":      {file("a", "x"), link("b", buildctx.TypeHardlink, "a"), link("c", buildctx.TypeHardlink, "b")},
		"attribute name":         {with(file("a", "x"), func(e *buildctx.Entry) { e.Xattrs = map[string][]byte{"": nil} })},
		"attribute value":        {with(file("a", "x"), func(e *buildctx.Entry) { e.Xattrs = map[string][]byte{"user.a": make([]byte, 65<<10)} })},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := fromParts(toParts(t, &buildctx.Manifest{Entries: entries}), nil)
			if !errors.Is(err, buildctx.ErrManifest) {
				t.Errorf("got %v, error %v", m, err)
			}
		})
	}
}

func TestFromProtoBounds(t *testing.T) {
	m := sample()
	for name, o := range map[string]*buildctx.DecodeOptions{
		"entries": {MaxEntries: len(m.Entries) - 1},
		"names":   {MaxNames: 40},
	} {
		if _, err := fromParts(toParts(t, m), o); !errors.Is(err, buildctx.ErrManifest) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := fromParts(toParts(t, m), &buildctx.DecodeOptions{MaxEntries: len(m.Entries)}); err != nil {
		t.Errorf("as many entries as allowed: %v", err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var all slipwayv1.ManifestEntries // a part that has nothing wrong but its length
	for i := range 60_000 {
		all.Entries = append(all.Entries, &slipwayv1.ManifestEntry{Path: fmt.Appendf(nil, "a directory with a long name %06d", i), Type: 2})
	}
	raw, err := proto.Marshal(&all)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(raw, nil)
	for name, part := range map[string]*slipwayv1.ManifestPart{
		"bomb":       {Entries: bomb, Last: true},
		"not zstd":   {Entries: []byte("hello"), Last: true},
		"empty part": {},
		"not proto":  {Entries: enc.EncodeAll([]byte{0xff, 0xff}, nil), Last: true},
	} {
		if _, err := fromParts([]*slipwayv1.ManifestPart{part}, nil); !errors.Is(err, buildctx.ErrManifest) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	d := buildctx.NewManifestDecoder(nil)
	if _, err := d.Add(&slipwayv1.ManifestPart{Last: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Add(&slipwayv1.ManifestPart{Last: true}); !errors.Is(err, buildctx.ErrManifest) {
		t.Errorf("part after the last: error %v", err)
	}
}

func TestLargest(t *testing.T) {
	m := &buildctx.Manifest{Entries: []buildctx.Entry{
		dir("a"), file("a/1", strings.Repeat("x", 30)), file("a/2", strings.Repeat("y", 20)),
		file("b", strings.Repeat("z", 40)), dir("c"), file("d", ""),
	}}
	want := []buildctx.PathSize{{Path: "a", Bytes: 50, Dir: true}, {Path: "b", Bytes: 40}, {Path: "a/1", Bytes: 30}}
	if got := m.Largest(3); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := m.Largest(100); len(got) != 4 {
		t.Errorf("got %v", got)
	}
}

// FuzzFromProto feeds the decoder uncompressed parts: whatever it accepts must
// obey the rules and survive a round trip.
func FuzzFromProto(f *testing.F) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range toParts(f, sample()) {
		raw, err := dec.DecodeAll(p.GetEntries(), nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<20 {
			return
		}
		m, err := fromParts([]*slipwayv1.ManifestPart{{Entries: enc.EncodeAll(raw, nil), Last: true}}, nil)
		if err != nil {
			if !errors.Is(err, buildctx.ErrManifest) {
				t.Fatalf("error %v", err)
			}
			return
		}
		types := map[string]buildctx.Type{}
		for _, e := range m.Entries {
			at := strings.LastIndexByte(e.Path, '/')
			if at >= 0 && types[e.Path[:at]] != buildctx.TypeDirectory {
				t.Fatalf("%q has no parent", e.Path)
			}
			if name := e.Path[at+1:]; name == "" || name == "." || name == ".." || strings.Contains(name, "\x00") {
				t.Fatalf("accepted %q", e.Path)
			}
			if _, twice := types[e.Path]; twice {
				t.Fatalf("%q comes twice", e.Path)
			}
			if e.Type == buildctx.TypeHardlink && types[e.Link] != buildctx.TypeFile {
				t.Fatalf("%q links to %q", e.Path, e.Link)
			}
			types[e.Path] = e.Type
		}
		again, err := fromParts(toParts(t, m), nil)
		if err != nil || again.Digest() != m.Digest() {
			t.Fatalf("round trip: %v", err)
		}
	})
}

// TestPartsAreProto holds the parts to the protocol's own message.
func TestPartsAreProto(t *testing.T) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := dec.DecodeAll(toParts(t, sample())[0].GetEntries(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var msg slipwayv1.ManifestEntries
	if err := proto.Unmarshal(raw, &msg); err != nil {
		t.Fatal(err)
	}
	if len(msg.GetEntries()) != len(sample().Entries) || !bytes.Equal(msg.GetEntries()[6].GetPath(), []byte("non-utf8-\xff\xfe")) {
		t.Errorf("got %v", &msg)
	}
}
