package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Watch passes a build's events to obs, beginning with the one numbered from
// (0 means all), until its result, which it returns. Ending ctx ends the
// watching, never the build. A connection that breaks is made again.
func (c *Client) Watch(ctx context.Context, id string, from uint64, obs Observer) (*slipwayv1.Result, error) {
	o := &observed{to: obs, id: id}
	if from > 0 {
		o.seq = from - 1
	}
	res, err := c.watch(ctx, o)
	if err == nil || ctx.Err() != nil || !isLost(err) {
		return res, orFail(c, err)
	}
	return c.follow(ctx, id, o, lostError(c.opts.Address, err))
}

// Replay passes the events that a build has so far to obs and returns its
// result, nil if it has not ended.
func (c *Client) Replay(ctx context.Context, id string, from uint64, obs Observer) (*slipwayv1.Result, error) {
	o := &observed{to: obs, id: id}
	if from > 0 {
		o.seq = from - 1
	}
	s, err := c.builds.WatchBuild(ctx, &slipwayv1.WatchBuildRequest{Id: id, FromSeq: from, ReplayOnly: true})
	for err == nil {
		var m *slipwayv1.WatchBuildResponse
		if m, err = s.Recv(); err == nil {
			o.event(m.GetEvent())
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, c.fail(err)
	}
	return o.result, nil
}

// watch follows a build over one connection to its result.
func (c *Client) watch(ctx context.Context, o *observed) (*slipwayv1.Result, error) {
	s, err := c.builds.WatchBuild(ctx, &slipwayv1.WatchBuildRequest{Id: o.build(), FromSeq: o.next()})
	for err == nil && o.result == nil {
		var m *slipwayv1.WatchBuildResponse
		if m, err = s.Recv(); err == nil {
			o.event(m.GetEvent())
		}
	}
	return o.result, err
}

// follow takes up a build whose connection broke. It tries again, with growing
// pauses, until the build has not been heard of for the reattach time.
func (c *Client) follow(ctx context.Context, id string, o *observed, cause *Error) (*slipwayv1.Result, error) {
	o.do(func(obs Observer) { obs.Lost(cause) })
	deadline := time.Now().Add(c.opts.reattach())
	told := uint64(0) // where the observer was last told that it goes on
	for pause := 100 * time.Millisecond; ; pause = min(pause*2, 5*time.Second) {
		if !sleep(ctx, pause/2+rand.N(pause/2+1)) {
			return nil, AsError(context.Cause(ctx))
		}
		if !time.Now().Before(deadline) {
			cause.Message += fmt.Sprintf("; build %s was not reached again within %s", id, c.opts.reattach())
			cause.Hint = "The daemon may still be at it: slipway builds attach " + id
			return nil, cause
		}
		c.conn.ResetConnectBackoff()
		from := o.next()
		err := c.reach(ctx, id)
		if err == nil {
			if told != from {
				o.do(func(obs Observer) { obs.Reattached(from) })
				told = from
			}
			var res *slipwayv1.Result
			if res, err = c.watch(ctx, o); err == nil {
				return res, nil
			}
		}
		if e, ok := detail(err); !isLost(err) && !(ok && e.GetCode() == CodeUnavailable) {
			return nil, c.fail(err)
		}
		if o.next() > from { // it worked for a while
			deadline, pause = time.Now().Add(c.opts.reattach()), 100*time.Millisecond
		}
	}
}

// reach returns nil once the daemon answers and knows the build.
func (c *Client) reach(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.timeout())
	defer cancel()
	_, err := c.builds.GetBuild(ctx, &slipwayv1.GetBuildRequest{Id: id})
	return err
}

// sleep waits for d and reports whether ctx lasted that long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func orFail(c *Client, err error) error {
	if err == nil {
		return nil
	}
	return c.fail(err)
}
