package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// enumName returns an enum's value as JSON has it: in lower case, "" if unset.
func enumName(prefix string, v interface{ String() string }) string {
	s := strings.ToLower(strings.TrimPrefix(v.String(), prefix))
	if s == "unspecified" {
		return ""
	}
	return s
}

// timeOf returns a time for JSON, nil if there is none.
func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}

// ago says how long t is past.
func ago(t *time.Time) string {
	if t == nil {
		return "–"
	}
	d := time.Since(*t)
	if d < time.Second {
		return "just now"
	}
	return span(d) + " ago"
}

// span returns d in its largest unit.
func span(d time.Duration) string {
	for _, u := range []struct {
		size time.Duration
		name string
	}{
		{365 * 24 * time.Hour, "year"},
		{30 * 24 * time.Hour, "month"},
		{7 * 24 * time.Hour, "week"},
		{24 * time.Hour, "day"},
		{time.Hour, "hour"},
		{time.Minute, "minute"},
		{time.Second, "second"},
	} {
		if n := d / u.size; n == 1 {
			return "1 " + u.name
		} else if n > 1 {
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return "0 seconds"
}
