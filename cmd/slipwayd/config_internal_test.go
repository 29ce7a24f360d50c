package main

import (
	"testing"

	"github.com/spf13/pflag"
)

// What the cache gets to know of its sizes: 0 means a default there.
func TestCacheSizes(t *testing.T) {
	for _, test := range []struct {
		args       []string
		size, free int64
	}{
		{nil, 50e9, 0},
		{[]string{"--cache-size", "2GB", "--cache-min-free", "1MB"}, 2e9, 1e6},
		{[]string{"--cache-min-free", "0"}, 50e9, -1},
		{[]string{"--cache-min-free", "0GB"}, 50e9, -1},
	} {
		var c config
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.register(f)
		if err := f.Parse(test.args); err != nil {
			t.Fatal(err)
		}
		if err := c.complete(f, func(string) (string, bool) { return "", false }); err != nil {
			t.Fatal(err)
		}
		if c.cacheBytes != test.size || c.cacheFreeBytes != test.free {
			t.Errorf("%q: size %d, free %d; want %d, %d", test.args, c.cacheBytes, c.cacheFreeBytes, test.size, test.free)
		}
	}
}
