package classic

import (
	"context"
	"encoding/json"
	"io/fs"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
	"github.com/slipwayhq/slipway/limits"
)

// nothing is the tree that --link copies into: what is below counts for
// nothing, so the layer is the same over every image.
type nothing struct{}

func (nothing) lstat(p string) (*file, error) {
	if p == "/" {
		return &root, nil
	}
	return nil, fs.ErrNotExist
}

// alone returns what a transfer with --link depends on beside its key, nil for
// one that needs to know the image below. A name in --chown is looked up there.
func (s *stage) alone(t *transfer) []layercache.Part {
	name, group, _ := strings.Cut(t.chown, ":")
	isName := func(s string) bool {
		_, err := parseID(s)
		return s != "" && err != nil
	}
	if !t.link || isName(name) || isName(group) {
		return nil
	}
	return []layercache.Part{
		{Name: "destination", Value: t.dest},
		{Name: "shell", Value: strings.Join(shellOf(&s.node.image), "\x00")}, // of the history
	}
}

func aloneKey(parts, alone []layercache.Part) layercache.Key {
	return layercache.NewKey(slices.Concat([]layercache.Part{{Name: "linked", Value: "v1"}}, parts, alone)...)
}

// keepAlone stores the step for other images than the one it was made over.
func (s *stage) keepAlone(ctx context.Context, rec layercache.Step, c *change) error {
	if c.alone == nil {
		return nil
	}
	rec.Snapshot, rec.RootFS, rec.Peak = "", 0, 0
	return s.build.job.Cache.PutStep(ctx, aloneKey(rec.Parts, c.alone), rec)
}

// adopt looks for the layer that a step with --link made over another image,
// and puts it on this one in the background. It is counted there, not made.
func (s *stage) adopt(ctx context.Context, n *node, c *change) (bool, error) {
	if c.alone == nil || s.disabled() != "" {
		return false, nil
	}
	rec, err := s.findAlone(ctx, c)
	var x extra
	if err == nil && json.Unmarshal(rec.Extra, &x) != nil {
		return false, nil
	}
	var l *layer.Layer
	if err == nil && !rec.Empty {
		l, err = s.layerOf(ctx, n, rec.DiffID, x)
	}
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n.cached, n.created, n.createdBy = true, rec.Created, x.CreatedBy
	s.node = n
	busted := s.busted
	s.build.passes.Go(func() {
		defer close(n.made)
		n.err = failure.At(s.stack(ctx, n, c, rec, l, busted), failure.Build, n.step.line)
		if n.err != nil {
			s.build.fail(n.err)
			s.retract(n)
		}
	})
	return true, nil
}

// findAlone finds what keepAlone stored.
func (s *stage) findAlone(ctx context.Context, c *change) (layercache.Step, error) {
	cache := s.build.job.Cache
	parts, err := c.key(ctx)
	if err != nil {
		return layercache.Step{}, err
	}
	rec, err := cache.Step(ctx, aloneKey(parts, c.alone))
	if !missing(err) || c.also == nil || s.busted {
		return rec, err
	}
	if parts, err = c.also(ctx); err != nil {
		return rec, err
	}
	return cache.Step(ctx, aloneKey(parts, c.alone))
}

// stack puts a layer on the node's parent: it is charged, identified and
// recorded as if it had been made.
func (s *stage) stack(ctx context.Context, n *node, c *change, rec layercache.Step, l *layer.Layer, busted bool) error {
	if err := n.parent.wait(ctx); err != nil {
		return err
	}
	if err := n.parent.ground(ctx); err != nil {
		return err
	}
	// Steps that are hits keep no ledger, and those after them start their own.
	var ledger *limits.Ledger
	var err error
	if busted {
		ledger, err = s.ledgerOf(ctx, n.parent)
	} else {
		ledger, err = s.build.charged(ctx, n.parent.layers())
	}
	if err == nil && l != nil {
		err = layer.Charge(ctx, s.build.job.Cache, l, ledger)
	}
	if err != nil {
		return err
	}
	_, peak := n.parent.size()
	n.layer, n.rootfs, n.peak = l, ledger.Total(), max(peak, ledger.Peak())
	if err := n.identify(); err != nil {
		return err
	}
	parts, err := c.key(ctx)
	if err != nil {
		return err
	}
	rec.Parts, rec.RootFS, rec.Peak, rec.App = parts, n.rootfs, n.peak, s.build.job.App
	n.key = keyAt(n.parent.id, parts)
	if err := s.build.job.Cache.PutStep(ctx, n.key, rec); err != nil {
		return err
	}
	return s.offer(ctx, n)
}
