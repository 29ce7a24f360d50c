package sandbox

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestDump is inside the package: the kernel interrupts no dump on demand.
func TestDump(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name    string
		answers []error // of each try; nil after the last
		want    error
		tries   int
	}{
		{"quiet", nil, nil, 1},
		{"changed twice", []error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted}, nil, 3},
		{"fails", []error{boom}, boom, 1},
		{"fails after a change", []error{netlink.ErrDumpInterrupted, boom}, boom, 2},
	} {
		tries := 0
		got, err := dump(func() ([]int, error) {
			tries++
			if tries <= len(tc.answers) {
				return []int{0}, tc.answers[tries-1]
			}
			return []int{1, 2}, nil
		})
		if !errors.Is(err, tc.want) || tries != tc.tries || err == nil && len(got) != 2 {
			t.Errorf("%s: %v, %v after %d tries; want %v after %d", tc.name, got, err, tries, tc.want, tc.tries)
		}
	}
	if _, err := dump(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("a list that never rests: %v", err)
	}
}
