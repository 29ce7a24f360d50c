package limits

import (
	"fmt"
	"strconv"
)

// A SizeError says by how much and where a root file system passed the limit.
// It wraps [ErrTooLarge].
type SizeError struct{ Report }

func (e *SizeError) Error() string {
	return fmt.Sprintf("%v: %s of at most %s at %s", ErrTooLarge, gigabytes(e.Total), gigabytes(e.Max), e.Path)
}

func (e *SizeError) Unwrap() error { return ErrTooLarge }

// gigabytes names n in the unit that suits it, with few digits, unless n is so
// small that bytes are clearer.
func gigabytes(n int64) string {
	switch {
	case n >= 1_000_000_000:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1_000_000:
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	}
	return strconv.FormatInt(n, 10) + " bytes"
}

// entryError says what is wrong with the entry of that name.
func entryError(name, format string, args ...any) error {
	const most = 200 // of a name that may be hostile
	if len(name) > most {
		name = name[:most] + "…"
	}
	return fmt.Errorf("%w %q: %s", ErrEntry, name, fmt.Sprintf(format, args...))
}
