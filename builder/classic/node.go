package classic

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/oklog/ulid/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/layercache"
)

// A node is the image as it stands after a step. Its config is known at once;
// its layer and identity are known when made is closed.
type node struct {
	parent *node // nil for what FROM names
	stage  *stage
	step   *step
	image  dockerspec.DockerOCIImage // config and author; the rest is put together at the end

	// Of a node without parent.
	base    []*layer.Layer
	history []ocispec.History

	made      chan struct{}
	err       error
	layer     *layer.Layer // nil if the step has none
	id        digest.Digest
	key       layercache.Key // of a step
	asked     layercache.Key // that it was looked up by
	rootfs    int64          // bytes unpacked
	peak      int64
	created   time.Time
	createdBy string
	cached    bool
	tooLarge  bool // it was cached, with more than the limit is now
	ghost     bool // of a forecast: the step would run, and nothing is known of its result

	inputs func() []layercache.Part // see change; may be nil
	reads  []*transfer              // see change

	fill  func(ctx context.Context, s *layercache.Snapshot) error // writes the layer into an upper directory; may be nil
	plain bool                                                    // it never has a layer: its tree is the parent's
	from  bool                                                    // it is the FROM of a stage on a stage: no history

	making   sync.Mutex // held while a snapshot is made
	mu       sync.Mutex // guards snapshot; never held while waiting
	snapshot string     // a committed snapshot of the whole image, if there is one

	mounting sync.Mutex
	mounted  string // where the tree is mounted; "" if nowhere

	also  layercache.Key // a further key, of what a step copies; zero if it is not known
	claim *claim         // of a step that a cache elsewhere has; else nil
}

// wait returns when the node is made.
func (n *node) wait(ctx context.Context) error {
	select {
	case <-n.made:
		return n.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *node) isMade() bool {
	select {
	case <-n.made:
		return true
	default:
		return false
	}
}

// layers lists the image's layers, lowest first. The node must be made.
func (n *node) layers() []*layer.Layer {
	if n.parent == nil {
		return append([]*layer.Layer(nil), n.base...)
	}
	return append(n.parent.layers(), n.own()...)
}

// identify derives the identity of what the node stands for: the tree below,
// its own layer, and the whole config. Times do not count.
func (n *node) identify() error {
	h := sha256.New()
	cfg, err := json.Marshal(struct {
		Config   dockerspec.DockerOCIImageConfig
		Author   string
		Platform ocispec.Platform
	}{n.image.Config, n.image.Author, n.image.Platform})
	if err != nil {
		return fmt.Errorf("image config: %w", err)
	}
	below := digest.Digest("scratch")
	if n.parent != nil {
		below = n.parent.id
	} else if len(n.base) > 0 {
		below = digest.Digest(layer.ChainID(n.base))
	}
	var diffID digest.Digest
	if n.layer != nil {
		diffID = n.layer.DiffID
	}
	fmt.Fprintf(h, "image/v1 %s %s %d:", below, diffID, len(cfg))
	h.Write(cfg)
	n.id = digest.NewDigest(digest.SHA256, h)
	return nil
}

// rootSnapshot returns a committed snapshot of the node's whole tree, making
// what is missing; "" is the empty tree.
func (n *node) rootSnapshot(ctx context.Context) (string, error) {
	if n.plain {
		return n.parent.rootSnapshot(ctx)
	}
	n.making.Lock()
	defer n.making.Unlock()
	cache := n.stage.build.job.Cache
	if name := n.getSnapshot(); name != "" && cache.SnapshotExists(ctx, name) {
		return name, nil
	}
	if n.parent == nil {
		name, err := n.stage.build.opts.Unpacker.Snapshot(ctx, cache, n.base)
		n.setSnapshot(name)
		return name, err
	}
	if n.fill != nil && !n.isMade() {
		return n.fillSnapshot(ctx, cache)
	}
	if err := n.wait(ctx); err != nil {
		return "", err
	}
	if n.layer == nil {
		return n.parent.rootSnapshot(ctx)
	}
	if n.fill != nil {
		return n.fillSnapshot(ctx, cache)
	}
	name := layer.ChainID(n.layers())
	if !cache.SnapshotExists(ctx, name) {
		if err := n.ground(ctx); err != nil {
			return "", err
		}
		below, err := n.parent.rootSnapshot(ctx)
		if err != nil {
			return "", err
		}
		if err := n.stage.build.opts.Unpacker.Apply(ctx, cache, below, name, n.own()[0]); err != nil {
			return "", err
		}
	}
	n.setSnapshot(name)
	return name, nil
}

// fillSnapshot writes the layer into a snapshot beside the layer's own pass,
// so that a RUN need not wait for the compressor. What fails is this node's
// step, whichever step needs the snapshot.
func (n *node) fillSnapshot(ctx context.Context, cache *layercache.Cache) (string, error) {
	below, err := n.parent.rootSnapshot(ctx)
	if err != nil {
		return "", err
	}
	name := snapshotName()
	if err := layer.Fill(ctx, cache, below, name, func(s *layercache.Snapshot) error { return n.fill(ctx, s) }); err != nil {
		return "", failure.At(err, failure.Build, n.step.line)
	}
	n.setSnapshot(name)
	return name, nil
}

func (n *node) getSnapshot() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.snapshot
}

func (n *node) setSnapshot(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snapshot = name
}

// filled returns the snapshot for the node's record. One that is being filled
// is worth waiting for: it needs nothing but the nodes below, which are made.
func (n *node) filled() string {
	if n.fill != nil {
		n.making.Lock()
		defer n.making.Unlock()
	}
	return n.getSnapshot()
}

// snapshotName is a new name for a snapshot that a step makes.
func snapshotName() string { return "step-" + ulid.Make().String() }

// mediaType is that of the layers that the build makes.
func (b *build) mediaType() string { return b.job.Maker.MediaType() }
