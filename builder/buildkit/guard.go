package buildkit

import (
	"context"
	"strings"

	"github.com/moby/buildkit/cache"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// CacheManager implements BuildKit's worker: it is for containers that
// frontends ask for. Steps have a [vertex].
func (w *worker) CacheManager() cache.Manager { return &mountless{w.Worker.CacheManager()} }

// A mountless cache has no cache mounts: whose they were could not be known.
type mountless struct{ cache.Manager }

// indexCacheMount is where BuildKit notes cache mounts by their id.
const indexCacheMount = "cache-dir:"

// Search implements BuildKit's cache.
func (g *mountless) Search(ctx context.Context, index string, nested bool) ([]cache.RefMetadata, error) {
	if strings.HasPrefix(index, indexCacheMount) {
		return nil, status.Error(codes.PermissionDenied, "cache mounts are for RUN steps: a frontend's container gets none here")
	}
	return g.Manager.Search(ctx, index, nested)
}

// PruneCacheMounts implements BuildKit's worker, which a definition without a
// cache asks for. The ids are as the definition has them, of any app: [build.mark]
// empties those of the build's.
func (w *worker) PruneCacheMounts(context.Context, map[string]bool) error { return nil }
