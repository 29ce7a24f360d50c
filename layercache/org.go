package layercache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	bolt "go.etcd.io/bbolt"
)

// A Cache is one org's part of a [Store]. It is cheap to make and needs no
// closing.
type Cache struct {
	s   *Store
	org string
	ns  string
}

// Name returns the org's name.
func (c *Cache) Name() string { return c.org }

// namespace returns the containerd namespace of an org. Names that containerd
// does not take are hashed; the prefixes keep the two sorts apart.
func namespace(org string) string {
	if ns := "org-" + org; identifiers.Validate(ns) == nil {
		return ns
	}
	sum := sha256.Sum256([]byte(org))
	return "sha-" + hex.EncodeToString(sum[:24])
}

// context returns ctx for calls of containerd's stores.
func (c *Cache) context(ctx context.Context) context.Context {
	if id, ok := leases.FromContext(ctx); ok && c.s != nil && c.s.held.get(leaseID{c.ns, id}) != nil {
		ctx = bare{ctx} // containerd would look for the lease in the database
	}
	return namespaces.WithNamespace(ctx, c.ns)
}

// view reads the database without stopping anybody.
func (c *Cache) view(read func(*bolt.Tx) error) error { return c.s.meta.View(read) }
