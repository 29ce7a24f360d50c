package web

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// functions are what pages write values with.
func functions() template.FuncMap {
	return template.FuncMap{
		"bytes": func(n any) string { return size(number(n)) }, "count": func(n any) string { return count(number(n)) },
		"plural": func(n any, noun string) string { return plural(number(n), noun) },
		"millis": func(ms int64) string { return duration(time.Duration(ms) * time.Millisecond) },
		"ago":    func(t *timestamppb.Timestamp) string { return ago(t, time.Now()) },
		"exact":  exact, "iso": iso, "short": short, "percent": percent, "path": path, "join": strings.Join,
		"status": buildStatus, "tokenStatus": tokenStatus, "drift": driftOf, "initial": initial, "add": func(a, b int) int { return a + b },
		"blame": func(b slipwayv1.Blame) string { return strings.ToLower(strings.TrimPrefix(b.String(), "BLAME_")) },
		"delta": delta, "span": span,
	}
}

// number reads any of the integers that messages have.
func number(n any) float64 {
	switch n := n.(type) {
	case int:
		return float64(n)
	case int32:
		return float64(n)
	case int64:
		return float64(n)
	case uint32:
		return float64(n)
	case uint64:
		return float64(n)
	}
	return math.NaN()
}

// size returns bytes in decimal units as people read them.
func size(v float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	u := 0
	for math.Abs(v) >= 999.5 && u < len(units)-1 {
		v /= 1000
		u++
	}
	if u < 2 || math.Abs(v) >= 99.95 {
		return fmt.Sprintf("%.0f %s", v, units[u])
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// delta returns a change in bytes with its sign; "" for less than a kilobyte.
func delta(n int64) string {
	switch {
	case n >= 1000:
		return "+" + size(float64(n))
	case n <= -1000:
		return "−" + size(-float64(n))
	}
	return ""
}

// count returns a number with separators.
func count(v float64) string {
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(v float64, noun string) string {
	if v == 1 {
		return "1 " + noun
	}
	return count(v) + " " + noun + "s"
}

// duration returns d as 0.3s, 14.2s, 1m42s, 2h05m.
func duration(d time.Duration) string {
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

// ago says how far a time is from now: "2 days ago", "in 28 days".
func ago(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "–"
	}
	d := now.Sub(t.AsTime())
	if d < 0 {
		return "in " + span(-d)
	}
	if d < 5*time.Second {
		return "just now"
	}
	return span(d) + " ago"
}

// span says a length of time in its largest unit.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		size time.Duration
		name string
		from int64 // how many make the unit worth it
	}{{365 * day, "year", 2}, {30 * day, "month", 3}, {7 * day, "week", 5}, {day, "day", 1}, {time.Hour, "hour", 1}, {time.Minute, "minute", 1}} {
		if n := int64((d + u.size/20) / u.size); n >= u.from {
			return plural(float64(n), u.name)
		}
	}
	return plural(float64(max(1, int64(d/time.Second))), "second")
}

func exact(t *timestamppb.Timestamp) string {
	return t.AsTime().UTC().Format("2006-01-02 15:04:05 UTC")
}
func iso(t *timestamppb.Timestamp) string { return t.AsTime().UTC().Format(time.RFC3339) }

// short returns enough of a digest or ID to tell it from others.
func short(s string) string {
	s = strings.TrimPrefix(s, "sha256:")
	if len(s) > 12 {
		return s[:12]
	}
	return s
}

// percent returns a part of a whole, from 0 to 100.
func percent(part, whole any) float64 {
	p, w := number(part), number(whole)
	if w <= 0 || math.IsNaN(p) {
		return 0
	}
	return math.Round(min(100, max(0, 100*p/w))*10) / 10
}

func initial(who *slipwayv1.WhoAmIResponse) string {
	for _, name := range []string{who.GetUser(), who.GetName(), who.GetOrg()} {
		for _, r := range name {
			return strings.ToUpper(string(r))
		}
	}
	return "?"
}

// A state is a word, and the class of what shows it.
type state struct{ Word, Class string }

func buildStatus(s slipwayv1.BuildStatus) state {
	switch s {
	case slipwayv1.BuildStatus_BUILD_STATUS_QUEUED:
		return state{"Queued", "wait"}
	case slipwayv1.BuildStatus_BUILD_STATUS_RUNNING:
		return state{"Running", "run"}
	case slipwayv1.BuildStatus_BUILD_STATUS_SUCCEEDED:
		return state{"Succeeded", "good"}
	case slipwayv1.BuildStatus_BUILD_STATUS_FAILED:
		return state{"Failed", "bad"}
	case slipwayv1.BuildStatus_BUILD_STATUS_CANCELLED:
		return state{"Cancelled", "off"}
	}
	return state{"Unknown", "off"}
}

func tokenStatus(s slipwayv1.TokenStatus) state {
	switch s {
	case slipwayv1.TokenStatus_TOKEN_STATUS_ACTIVE:
		return state{"Active", "good"}
	case slipwayv1.TokenStatus_TOKEN_STATUS_EXPIRED:
		return state{"Expired", "wait"}
	case slipwayv1.TokenStatus_TOKEN_STATUS_REVOKED:
		return state{"Revoked", "bad"}
	}
	return state{"Unknown", "off"}
}

func driftOf(s slipwayv1.DriftStatus) state {
	switch s {
	case slipwayv1.DriftStatus_DRIFT_STATUS_IN_SYNC:
		return state{"In sync", "good"}
	case slipwayv1.DriftStatus_DRIFT_STATUS_PENDING:
		return state{"Not pulled yet", "wait"}
	case slipwayv1.DriftStatus_DRIFT_STATUS_DRIFTED:
		return state{"Drifted", "bad"}
	case slipwayv1.DriftStatus_DRIFT_STATUS_UNRELEASED:
		return state{"Never released", "wait"}
	case slipwayv1.DriftStatus_DRIFT_STATUS_MIXED:
		return state{"Mixed", "bad"}
	}
	return state{"Unknown", "off"}
}
