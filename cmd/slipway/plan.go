package main

import (
	"fmt"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/progress"
)

// forecasts keeps what the daemon foresees, for deploy --plan.
type forecasts struct {
	progress.Display
	last *slipwayv1.Forecast
}

// Event implements [progress.Display].
func (f *forecasts) Event(ev *slipwayv1.Event) {
	if e := ev.GetForecast(); e != nil {
		f.last = e
	}
	f.Display.Event(ev)
}

// foreseen ends deploy --plan: what would be done is its result.
func (p *program) foreseen(b *buildLog, f *forecasts, res *slipwayv1.Result, err error, app string) error {
	if err != nil || res.GetStatus() != slipwayv1.ResultStatus_RESULT_STATUS_SUCCEEDED || f.last == nil {
		return p.finish(b, res, err, app)
	}
	if err := b.show.Finish(res); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if !p.flags.json {
		progress.NewForecast(f.last).Write(p.stdout)
	}
	return nil
}
