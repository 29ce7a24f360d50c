package limits_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/limits"
)

// A player turns bytes into layers: few names, so that entries meet.
type player struct{ rest []byte }

func (p *player) next(n int) int {
	if len(p.rest) == 0 {
		return 0
	}
	b := int(p.rest[0]) % n
	p.rest = p.rest[1:]
	return b
}

func (p *player) path() string {
	parts := make([]string, 1+p.next(3))
	for i := range parts {
		parts[i] = string(rune('a' + p.next(4)))
	}
	return strings.Join(parts, "/")
}

func (p *player) header() *tar.Header {
	h := &tar.Header{Name: p.path(), Mode: int64(p.next(8)) << 6, Uid: p.next(3)}
	switch p.next(11) {
	case 0, 1, 2:
		h.Typeflag, h.Size = tar.TypeReg, int64(p.next(256))*99
	case 3:
		h.Typeflag = tar.TypeDir
	case 4:
		h.Typeflag, h.Linkname = tar.TypeSymlink, p.path()
	case 5:
		h.Typeflag, h.Linkname = tar.TypeSymlink, "/"+strings.Repeat("./", p.next(256))+p.path()
	case 6, 7:
		h.Typeflag, h.Linkname = tar.TypeLink, p.path()
	case 8:
		h.Typeflag = tar.TypeFifo
	case 9:
		at := strings.LastIndexByte(h.Name, '/') + 1
		h.Typeflag, h.Name = tar.TypeReg, h.Name[:at]+".wh."+h.Name[at:]
	case 10:
		h.Typeflag, h.Name = tar.TypeReg, h.Name+"/.wh..wh..opq"
	}
	if p.next(6) == 0 && h.Typeflag != tar.TypeFifo && h.Typeflag != tar.TypeLink {
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.k": strings.Repeat("v", p.next(256))}
	}
	return h
}

// layer returns a layer's entries.
func (p *player) layer() []*tar.Header {
	hs := make([]*tar.Header, 1+p.next(24))
	for i := range hs {
		hs[i] = p.header()
	}
	return hs
}

// FuzzCharge charges the same layers as entries, as streams and by their deltas:
// totals, trees and reports are the same, whichever way, also where a layer is
// stopped.
func FuzzCharge(f *testing.F) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		b := make([]byte, 50+rnd.IntN(600))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b, uint8(rnd.IntN(256)))
	}
	f.Fuzz(func(t *testing.T, data []byte, most uint8) {
		if len(data) == 0 {
			return // not even a root
		}
		limit := int64(-1)
		if most > 0 {
			limit = int64(most) * 3 * block
		}
		charged, read, replayed := limits.NewLedger(limit), limits.NewLedger(limit), limits.NewLedger(limit)
		p := &player{data}
		for i := 0; len(p.rest) > 0; i++ {
			src := limits.Source{Line: i % 5, Text: "RUN make"}
			hs := p.layer()
			delta, err := chargeEntries(charged, src, hs)
			if readErr := chargeStream(read, src, hs); fmt.Sprint(readErr) != fmt.Sprint(err) {
				t.Fatalf("layer %d as stream: %v; as entries: %v", i, readErr, err)
			}
			if err != nil {
				sameLedgers(t, read, charged)
				return
			}
			if err := replayed.Replay(src, delta); err != nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			sameLedgers(t, read, charged)
			sameLedgers(t, replayed, charged)
			again, err := chargeEntries(limits.NewLedger(-1), limits.Source{}, hs)
			if err == nil && !bytes.Equal(again, delta) {
				t.Fatalf("layer %d has another delta elsewhere", i)
			}
			checkHeld(t, charged)
		}
		checkLedger(t, charged)
	})
}

func chargeEntries(l *limits.Ledger, src limits.Source, hs []*tar.Header) (limits.Delta, error) {
	y := l.Begin(src)
	for _, h := range hs {
		if err := y.Entry(h); err != nil {
			_, _ = y.Close()
			return nil, err
		}
	}
	return y.Close()
}

func chargeStream(l *limits.Ledger, src limits.Source, hs []*tar.Header) error {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		for _, h := range hs {
			c := *h
			if tw.WriteHeader(&c) != nil {
				return
			}
			if _, err := io.CopyN(tw, noise{}, h.Size); err != nil {
				return
			}
		}
		w.CloseWithError(tw.Close())
	}()
	y := l.Begin(src)
	_, err := io.Copy(io.Discard, y.Reader(r))
	r.Close()
	if _, closeErr := y.Close(); err == nil {
		err = closeErr
	}
	return err
}

// sameLedgers compares all that a ledger tells.
func sameLedgers(t *testing.T, got, want *limits.Ledger) {
	t.Helper()
	if got.Total() != want.Total() || got.Peak() != want.Peak() {
		t.Fatalf("total %d, peak %d; want %d, %d", got.Total(), got.Peak(), want.Total(), want.Peak())
	}
	if a, b := got.Report(), want.Report(); !reflect.DeepEqual(a, b) {
		t.Fatalf("report\n%v\nwant\n%v", a, b)
	}
	for _, path := range everyPath {
		a, okA := got.Stat(path)
		b, okB := want.Stat(path)
		if a != b || okA != okB {
			t.Fatalf("Stat(%s) = %v, %v; want %v, %v", path, a, okA, b, okB)
		}
		ownA, treeA := got.Held(path)
		ownB, treeB := want.Held(path)
		if ownA != ownB || treeA != treeB {
			t.Fatalf("Held(%s) = %d, %d; want %d, %d", path, ownA, treeA, ownB, treeB)
		}
	}
}

// everyPath that a player names.
var everyPath = func() (paths []string) {
	at := []string{""}
	for range 3 {
		var below []string
		for _, dir := range at {
			for _, name := range "abcd" {
				below = append(below, dir+"/"+string(name))
			}
		}
		paths = append(paths, below...)
		at = below
	}
	return paths
}()

// checkHeld holds Held to what cannot be otherwise.
func checkHeld(t *testing.T, l *limits.Ledger) {
	t.Helper()
	for _, path := range everyPath[:4] {
		own, tree := l.Held(path)
		if own > tree || tree > l.Total() {
			t.Fatalf("Held(%s) = %d, %d of %d", path, own, tree, l.Total())
		}
	}
}

// Directories that come after others went have their own attributes.
func TestDirectoryAttributesStayApart(t *testing.T) {
	l := limits.NewLedger(-1)
	mode := func(i int) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint(i), Mode: int64(i), Uid: i}
	}
	var hs []*tar.Header
	for i := range 40 {
		if hs = append(hs, mode(i)); i%3 == 0 {
			hs = append(hs, file(fmt.Sprint(i), 1))
		}
	}
	for i := 40; i < 80; i++ {
		hs = append(hs, mode(i))
	}
	entries(t, l, limits.Source{}, hs...)
	for i := range 80 {
		n, _ := l.Stat(fmt.Sprint(i))
		if isDir := i >= 40 || i%3 != 0; isDir && (n.Mode != int64(i) || n.UID != i) || isDir != (n.Type == tar.TypeDir) {
			t.Errorf("%d is %+v", i, n)
		}
	}
}
