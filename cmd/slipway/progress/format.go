package progress

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var units = []string{"B", "kB", "MB", "GB", "TB", "PB"}

// Size returns n bytes in decimal units as people read them: 512 B, 18 kB,
// 11.9 MB, 206 MB, 4.9 GB.
func Size[N int64 | uint64](n N) string {
	v, u := scale(float64(n))
	if u < 2 || math.Abs(v) >= 99.95 {
		return fmt.Sprintf("%.0f %s", v, units[u])
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// scale divides v into the unit in which it has one to three digits.
func scale(v float64) (float64, int) {
	u := 0
	for math.Abs(v) >= 999.5 && u < len(units)-1 {
		v /= 1000
		u++
	}
	return v, u
}

// delta returns a change in bytes with its sign, in whole units; "" if it is
// less than a kilobyte.
func delta(n int64) string {
	if n > -1000 && n < 1000 {
		return ""
	}
	v, u := scale(float64(n))
	digits := 0
	if u > 2 && math.Abs(v) < 9.95 {
		digits = 1
	}
	return fmt.Sprintf("%+.*f %s", digits, v, units[u])
}

// gigabytes returns used and limit in one unit, "0.24", "8 GB", or where used
// is too little for that in two: "2.7 MB", "8 GB".
func gigabytes(used, limit uint64) (string, string) {
	v, u := scale(float64(limit))
	share := float64(used) / math.Pow(1000, float64(u))
	text := fmt.Sprintf("%.2f", share)
	if share < 0.1 {
		text = Size(used)
	}
	return text, strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64) + " " + units[u]
}

// Count returns n with separators: 1,204.
func Count[N int | int64 | uint64 | uint32](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural returns "1 file", "2 files".
func plural[N int | int64 | uint64 | uint32](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return Count(n) + " " + noun + "s"
}

// Join returns a message and what follows it, each as a sentence or clause of
// its own.
func Join(message, more string) string {
	last, _ := utf8.DecodeLastRuneInString(message)
	first, _ := utf8.DecodeRuneInString(more)
	switch {
	case message == "" || more == "":
		return message + more
	case strings.ContainsRune(".?!…:", last):
		return message + " " + more
	case unicode.IsLower(first):
		return message + "; " + more
	}
	return message + ". " + more
}

// Duration returns d as 0.3s, 14.2s, 1m42s, 2h05m.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0.0s"
	case d < 59950*time.Millisecond:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour-500*time.Millisecond:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

func millis(ms int64) string { return Duration(time.Duration(ms) * time.Millisecond) }

// seconds returns d in whole seconds, for what is only roughly so long.
func seconds(d time.Duration) string {
	if d = d.Round(time.Second); d < time.Minute {
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	return Duration(d)
}

// bar draws a share of ten cells in eighths.
func bar(share float64) string {
	eighths := int(math.Max(0, math.Min(1, share)) * 80)
	s := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		s += string(rune('█' + 8 - rest))
	} else if eighths == 0 && share > 0 {
		s += "▏"
	}
	return s + strings.Repeat("░", 10-utf8.RuneCountInString(s))
}

// clip returns s in at most n columns, of one line.
func clip(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return strings.TrimRight(string(r[:n-1]), " ") + "…"
}

// pad fills s up with spaces to n columns.
func pad(s string, n int) string {
	return s + strings.Repeat(" ", max(0, n-utf8.RuneCountInString(s)))
}
