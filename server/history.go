package server

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/builder"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
)

// recent is how many builds a forecast may look at.
const recent = 50

// History tells forecasts of an app's last successful builds that made an image.
func History(r *records.Store) builder.History {
	return func(ctx context.Context, org, app string) ([]*slipwayv1.Result, error) {
		list, err := r.List(ctx, records.Query{Org: org, App: app, Status: records.Succeeded, Limit: recent})
		if err != nil {
			return nil, err
		}
		var out []*slipwayv1.Result
		for _, b := range list {
			res := &slipwayv1.Result{}
			if proto.Unmarshal(b.Result, res) == nil && res.RootfsBytes > 0 {
				out = append(out, res)
			}
		}
		return out, nil
	}
}
