package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// signalPatience bounds how long a signal waits for a listener that is busy.
const signalPatience = 5 * time.Second

// Signal implements [Engine].
func (e *JetStream) Signal(ctx context.Context, id string, payload []byte) error {
	if err := errors.Join(checkID(id), checkPayload(payload)); err != nil {
		return err
	}
	if err := e.begin(); err != nil {
		return err
	}
	defer e.work.Done()
	ctx, cancel := context.WithTimeout(ctx, signalPatience)
	defer cancel()
	_, err := e.nc.RequestWithContext(ctx, signalSubject(id), payload)
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: %s", ErrNoListener, id)
	}
	if err != nil {
		return fmt.Errorf("signal job %s: %w", id, err)
	}
	return nil
}

// Signals implements [Engine].
func (e *JetStream) Signals(ctx context.Context, id string) (<-chan []byte, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.work.Done()
	c, err := e.listen(ctx, id)
	if err != nil {
		return nil, err
	}
	return c, e.nc.FlushWithContext(ctx)
}

// listen returns the signals of a job until ctx or the engine ends. The server
// knows of it before it answers anything that is asked later. The caller has begun.
func (e *JetStream) listen(ctx context.Context, id string) (<-chan []byte, error) {
	sub, err := e.nc.SubscribeSync(signalSubject(id))
	if err != nil {
		return nil, fmt.Errorf("listen to job %s: %w", id, err)
	}
	c := make(chan []byte, 16)
	e.work.Add(1)
	go func() {
		defer e.work.Done()
		defer close(c)
		ctx, cancel := bind(ctx, e.closed)
		defer cancel()
		defer sub.Unsubscribe() //nolint:errcheck // it fails when the connection is gone, and the subscription with it
		for {
			m, err := sub.NextMsgWithContext(ctx)
			if err != nil {
				return
			}
			select {
			case c <- m.Data:
			case <-ctx.Done():
				return
			}
			if err := m.Respond(nil); err != nil {
				e.log.Warn("cannot confirm a signal", "job", id, "err", err)
			}
		}
	}()
	return c, nil
}
