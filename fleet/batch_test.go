package fleet_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/fleet"
)

func FuzzBatch(f *testing.F) {
	f.Add([]byte{})
	f.Add(fleet.FormatBatch(1, true))
	f.Add(fleet.FormatBatch(7, false, []byte("a"), nil, bytes.Repeat([]byte("b"), 300)))
	f.Add(fleet.FormatBatch(1<<64-1, false, []byte("a")))
	f.Fuzz(func(t *testing.T, msg []byte) {
		entries, end, err := fleet.ParseBatch(msg)
		if err != nil || len(entries) == 0 {
			return
		}
		payloads := make([][]byte, len(entries))
		for i, en := range entries {
			if en.Seq != entries[0].Seq+uint64(i) {
				t.Fatalf("entry %d has number %d, the first %d", i, en.Seq, entries[0].Seq)
			}
			payloads[i] = en.Payload
		}
		again, endAgain, err := fleet.ParseBatch(fleet.FormatBatch(entries[0].Seq, end, payloads...))
		if err != nil || endAgain != end || len(again) != len(entries) {
			t.Fatalf("formatted and parsed again: %d entries, end %v, %v; want %d, %v", len(again), endAgain, err, len(entries), end)
		}
	})
}

func TestBatchRefusesDamage(t *testing.T) {
	whole := fleet.FormatBatch(3, true, []byte("one"), []byte("two"))
	if entries, end, err := fleet.ParseBatch(whole); err != nil || !end || len(entries) != 2 || entries[1].Seq != 4 || string(entries[1].Payload) != "two" {
		t.Fatalf("whole: %v, %v, %v", entries, end, err)
	}
	for n := range whole {
		if _, _, err := fleet.ParseBatch(whole[:n]); err == nil {
			t.Errorf("cut to %d of %d bytes: no error", n, len(whole))
		}
	}
	if _, _, err := fleet.ParseBatch(append(whole, 0)); err == nil {
		t.Error("a byte too many: no error")
	}
}

func TestToken(t *testing.T) {
	names := []string{"", "=", "==", "a", "A", "a.b", "a=2eb", "*", ">", " ", "\n", "ü", strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("x", 66), strings.Repeat("/", 128)}
	seen := map[string]string{}
	for _, name := range names {
		tok := fleet.Token(name)
		if other, ok := seen[tok]; ok {
			t.Errorf("%q and %q are both %q", name, other, tok)
		}
		seen[tok] = name
		if tok == "" || len(tok) > 70 || strings.ContainsAny(tok, ".*> \n/") {
			t.Errorf("%q becomes %q", name, tok)
		}
	}
}
