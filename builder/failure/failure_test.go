package failure_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
)

func TestAs(t *testing.T) {
	known := failure.Userf(failure.StepFailed, "", "no")
	for want, err := range map[string]error{
		failure.DiskFull:  fmt.Errorf("write: %w", &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}),
		failure.Cancelled: fmt.Errorf("wait: %w", context.Canceled), failure.Timeout: fmt.Errorf("wait: %w", context.DeadlineExceeded),
		failure.TooLarge: fmt.Errorf("layer: %w", &limits.SizeError{}), failure.StepFailed: errors.Join(errors.New("x"), fmt.Errorf("y: %w", known)),
		failure.Internal: errors.New("open /var/lib/x"),
	} {
		e := failure.As(failure.At(err, failure.Build, 7))
		if e.Code != want || e.Phase != failure.Build || e.Line != 7 || !errors.Is(e, err) && want != failure.StepFailed {
			t.Errorf("%v: %+v", err, e)
		}
		if strings.Contains(e.Message+e.Hint, "/var/lib") {
			t.Errorf("shown: %s", e.Message)
		}
	}
	if known.Phase != "" || failure.As(syscall.EDQUOT).Code != failure.DiskFull || failure.At(nil, "", 0) != nil {
		t.Error("At changes its argument, or a quota is no full disk")
	}
	if s := failure.As(errors.New("open /var/lib/x")).Error(); !strings.Contains(s, "/var/lib/x") {
		t.Errorf("the log gets %q", s)
	}
}

func TestTooLargeSaysWhatWouldHelp(t *testing.T) {
	e := failure.As(&limits.SizeError{Report: limits.Report{Advice: []limits.Advice{{Text: "one"}, {Text: "two"}}}})
	if e.Hint != "one;\ntwo" {
		t.Errorf("hint %q", e.Hint)
	}
	if e := failure.As(&limits.SizeError{}); e.Hint == "" {
		t.Error("no hint where nothing is known")
	}
}
