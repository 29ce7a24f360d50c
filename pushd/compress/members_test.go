package compress_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/pushd/compress"
)

// A unit is a piece of input with a name, as a tar's entry.
type unit struct {
	name string
	data []byte
}

// units makes n of them, of up to 60 kB, and a large one in their middle.
func units(n int) []unit {
	pool := text(4 << 20)
	var out []unit
	for i := range n {
		size := 500 + i*7919%60_000
		out = append(out, unit{fmt.Sprintf("dir/%d/file-%d", i%17, i), pool[i*1009%(3<<20):][:size]})
	}
	return slices.Insert(out, n/2, unit{"large", text(5 << 20)[1<<20:]})
}

// library has members by key, and counts.
type library struct {
	mu            sync.Mutex
	blob          []byte
	members       map[compress.Key]compress.Member
	asked, missed int
}

func (l *library) Member(k compress.Key, dst []byte) ([]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	m, ok := l.members[k]
	if !ok {
		l.missed++
		return dst, false
	}
	return append(dst, l.blob[m.Offset:][:m.Size]...), true
}

// stream compresses units; told says whether digests of contents are known.
func stream(t *testing.T, o compress.Options, us []unit, told bool) ([]byte, []compress.Member) {
	t.Helper()
	var out bytes.Buffer
	w, err := compress.New(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range us {
		if w.Due(u.name, int64(len(u.data)), 0) {
			w.End()
		}
		fmt.Fprintf(w, "header of %s with %d bytes\n", u.name, len(u.data))
		if told {
			w.Known(sha256.Sum256(u.data), int64(len(u.data)))
		}
		for rest := u.data; len(rest) > 0; {
			n := min(32<<10, len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), w.Made()
}

// A stream that changed a little is made of the members of the one before; it
// is the same to the byte as one that was made anew.
func TestMembersAreUsedAgain(t *testing.T) {
	before := units(900)
	change := map[string]func(us []unit) []unit{
		"nothing": func(us []unit) []unit { return us },
		"content": func(us []unit) []unit {
			us[300].data = append([]byte("new "), us[300].data...)
			return us
		},
		"one more":  func(us []unit) []unit { return slices.Insert(us, 100, unit{"new", text(30_000)}) },
		"one fewer": func(us []unit) []unit { return slices.Delete(us, 700, 701) },
		"large": func(us []unit) []unit {
			us[450].data = bytes.Clone(us[450].data)
			us[450].data[2<<20] ^= 1
			return us
		},
	}
	for _, typ := range []compress.Type{compress.Gzip, compress.Zstd} {
		for _, told := range []bool{true, false} {
			lib := &library{}
			blob, made := stream(t, compress.Options{Type: typ, Members: lib}, before, told)
			lib.blob, lib.members = blob, map[compress.Key]compress.Member{}
			for _, m := range made {
				lib.members[m.Key] = m
			}
			if len(made) < 20 {
				t.Fatalf("%d members of %d bytes", len(made), len(blob))
			}
			for name, f := range change {
				after := f(slices.Clone(before))
				lib.asked, lib.missed = 0, 0
				got, _ := stream(t, compress.Options{Type: typ, Members: lib, Parallel: 3}, after, told)
				want, _ := stream(t, compress.Options{Type: typ, Parallel: 1}, after, false)
				if !bytes.Equal(got, want) {
					t.Errorf("%s, %s: other bytes than without members", typ, name)
				}
				if most := map[bool]int{true: 0, false: 5}[name == "nothing"]; lib.missed > most {
					t.Errorf("%s, %s: %d of %d members were made anew", typ, name, lib.missed, lib.asked)
				}
			}
		}
	}
}

// What a member is made of, and with, is in its key.
func TestKeysTellMembersApart(t *testing.T) {
	data := text(1 << 20)
	other := bytes.Clone(data)
	other[1000]++
	keys := map[compress.Key]string{}
	for name, tc := range map[string]struct {
		o    compress.Options
		data []byte
		told bool
	}{
		"plain":   {compress.Options{}, data, false},
		"known":   {compress.Options{}, data, true},
		"other":   {compress.Options{}, other, false},
		"other 2": {compress.Options{}, other, true},
		"level":   {compress.Options{Level: 5}, data, false},
		"type":    {compress.Options{Type: compress.Zstd}, data, false},
		"shorter": {compress.Options{}, data[:len(data)-1], false},
		"part":    {compress.Options{}, data[:len(data)-1], true},
	} {
		tc.o.Members = &library{}
		_, made := stream(t, tc.o, []unit{{"u", tc.data}, {"v", text(2 << 20)}}, tc.told)
		if len(made) == 0 {
			t.Fatalf("%s: no members", name)
		}
		if same, ok := keys[made[0].Key]; ok {
			t.Errorf("%s and %s have one key", name, same)
		}
		keys[made[0].Key] = name
	}
}
