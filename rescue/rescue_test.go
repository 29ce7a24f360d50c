package rescue_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/rescue"
)

func explode() error { panic("at the disco") }

func TestRun(t *testing.T) {
	var p *rescue.Panic
	if err := rescue.Run(explode); !errors.As(err, &p) || p.Value != "at the disco" || !strings.Contains(err.Error(), "rescue_test.explode") {
		t.Errorf("error %v", err)
	}
	boom := errors.New("boom")
	for _, want := range []error{nil, boom} {
		if err := rescue.Run(func() error { return want }); err != want { //nolint:errorlint // the very same
			t.Errorf("error %v, want %v", err, want)
		}
	}
}
