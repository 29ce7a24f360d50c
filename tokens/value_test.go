package tokens_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/tokens"
)

func TestNew(t *testing.T) {
	seen := make(map[string]bool)
	var used [256]bool
	for _, typ := range tokens.Types() {
		form := regexp.MustCompile(`^s[a-z]_[0-9A-Za-z]{38}$`)
		for range 100 {
			v := tokens.New(tokens.Prefix(typ))
			if !form.MatchString(v) || seen[v] {
				t.Fatalf("New: %q", v)
			}
			seen[v] = true
			for _, c := range v[3:35] {
				used[c] = true
			}
			if got, err := tokens.Check(v); got != typ || err != nil {
				t.Fatalf("Check(%q) = %q, %v; want %q", v, got, err, typ)
			}
		}
	}
	for _, c := range "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" {
		if !used[c] {
			t.Errorf("%q never occurs in %d values", c, len(seen))
		}
	}
}

func TestPrefixesDiffer(t *testing.T) {
	seen := make(map[string]string)
	for _, typ := range tokens.Types() {
		p := tokens.Prefix(typ)
		if other, taken := seen[p]; taken || p == "" {
			t.Errorf("%s and %s have the prefix %q", typ, other, p)
		}
		seen[p] = typ
	}
	if p, s := tokens.Prefix("king"), tokens.Scopes("king"); p != "" || s != nil {
		t.Errorf("a type that is none has prefix %q, scopes %v", p, s)
	}
}

// good is a value made once: the format is a promise to scanners.
const good = "sd_0123456789ABCDEFGHIJKLMNOPQRSTUV1bvw1C"

func TestCheck(t *testing.T) {
	for _, tc := range []struct{ name, value, typ string }{
		{"good", good, tokens.TypeDeploy},
		{"empty", "", ""},
		{"prefix only", "sd_", ""},
		{"no prefix", good[3:], ""},
		{"other prefix", "xx_" + good[3:], ""},
		{"prefix of another type", "so_" + good[3:], ""},
		{"cut short", good[:len(good)-1], ""},
		{"too long", good + "0", ""},
		{"newline", good + "\n", ""},
		{"one character", strings.Replace(good, "5", "6", 1), ""},
		{"two swapped", strings.Replace(good, "56", "65", 1), ""},
		{"checksum", good[:len(good)-1] + "x", ""},
		{"letter case", strings.ToLower(good), ""},
		{"not base62", strings.Replace(good, "5", "-", 1), ""},
		{"not base62, with its checksum", "sd_--------------------------------1dD7LP", ""},
		{"not ASCII", strings.Replace(good, "56", "é", 1), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			typ, err := tokens.Check(tc.value)
			if typ != tc.typ || (err == nil) != (tc.typ != "") || err != nil && !errors.Is(err, tokens.ErrMalformed) {
				t.Errorf("Check = %q, %v; want %q", typ, err, tc.typ)
			}
			if err != nil && len(tc.value) > 8 && strings.Contains(err.Error(), tc.value[3:8]) {
				t.Errorf("the error shows the value: %v", err)
			}
		})
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(good, 0, byte('x'))
	f.Add("sa_", 40, byte(0))
	f.Add(strings.Repeat("_", 41), 2, byte('s'))
	f.Fuzz(func(t *testing.T, value string, at int, b byte) {
		typ, err := tokens.Check(value)
		if err != nil {
			if typ != "" || !errors.Is(err, tokens.ErrMalformed) {
				t.Fatalf("Check(%q) = %q, %v", value, typ, err)
			}
			return
		}
		if !strings.HasPrefix(value, tokens.Prefix(typ)) || len(value) != len(tokens.New(tokens.Prefix(typ))) {
			t.Fatalf("Check(%q) = %q", value, typ)
		}
		// CRC-32 notices every change of a single byte.
		if at < 0 || at >= len(value) || value[at] == b {
			return
		}
		damaged := value[:at] + string([]byte{b}) + value[at+1:]
		if typ, err := tokens.Check(damaged); err == nil {
			t.Fatalf("Check(%q) = %q, but it was %q", damaged, typ, value)
		}
	})
}

func TestHash(t *testing.T) {
	// What databases hold must not change: it is the SHA-256 of the value.
	const want = "85d085753611b4b175333178ba7a908133db63b004022975d61c34153a7e25d7"
	if got := fmt.Sprintf("%x", tokens.Hash(good)); got != want {
		t.Errorf("Hash = %s, want %s", got, want)
	}
}
