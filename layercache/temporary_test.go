package layercache_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/slipwayhq/slipway/layercache"
)

// A tenant is an org's part of a store as a lodger uses it.
type tenant struct {
	*testing.T
	layercache.Containerd
	ctx context.Context
	c   *layercache.Cache
}

func newTenant(t *testing.T) *tenant {
	c := open(t, layercache.Options{}).Org("acme")
	ctd := c.Containerd()
	return &tenant{t, ctd, namespaces.WithNamespace(t.Context(), ctd.Namespace), c}
}

func temporary(l *leases.Lease) error {
	if l.Labels == nil {
		l.Labels = map[string]string{}
	}
	l.Labels["buildkit/lease.temporary"] = "now"
	return nil
}

func (t *tenant) lease(id string, opts ...leases.Opt) leases.Lease {
	t.Helper()
	return must(t.Leases.Create(t.ctx, append(opts, leases.WithID(id))...))(t.T)
}

func (t *tenant) add(l leases.Lease, kind, id string) {
	t.Helper()
	if err := t.Leases.AddResource(t.ctx, l, leases.Resource{ID: id, Type: kind}); err != nil {
		t.Fatal(err)
	}
}

func (t *tenant) blob(ctx context.Context, text string) digest.Digest {
	t.Helper()
	desc := ocispec.Descriptor{Digest: digest.FromString(text), Size: int64(len(text))}
	if err := content.WriteBlob(ctx, t.Content, text, strings.NewReader(text), desc); err != nil {
		t.Fatal(err)
	}
	return desc.Digest
}

func (t *tenant) prepare(ctx context.Context, key string) {
	t.Helper()
	if _, err := t.Snapshots.Prepare(ctx, key, ""); err != nil {
		t.Fatal(err)
	}
}

// stays collects, and tells which of the snapshots and blobs stay.
func (t *tenant) stays(want bool, snapshots []string, blobs ...digest.Digest) {
	t.Helper()
	if _, err := t.Collect(t.ctx); err != nil {
		t.Fatal(err)
	}
	for _, key := range snapshots {
		if _, err := t.Snapshots.Stat(t.ctx, key); (err == nil) != want {
			t.Errorf("snapshot %s: %v, want it to stay: %t", key, err, want)
		}
	}
	for _, d := range blobs {
		if _, err := t.Content.Info(t.ctx, d); (err == nil) != want {
			t.Errorf("blob %s: %v, want it to stay: %t", d, err, want)
		}
	}
}

// What a temporary lease holds stays until it is deleted, whichever way it got
// it: by name, before or after it was there, or by a context.
func TestTemporaryLease(t *testing.T) {
	x := newTenant(t)
	l := x.lease("build", temporary)
	under := leases.WithLease(x.ctx, l.ID)
	x.add(l, "snapshots/"+x.Snapshotter, "early")
	x.prepare(x.ctx, "early")
	x.prepare(x.ctx, "late")
	x.add(l, "snapshots/"+x.Snapshotter, "late")
	x.prepare(under, "under")
	x.prepare(under, "active")
	if err := x.Snapshots.Commit(under, "committed", "active"); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Snapshots.View(under, "view", "committed"); err != nil {
		t.Fatal(err)
	}
	snapshots := []string{"early", "late", "under", "committed", "view"}
	mine := x.blob(under, "mine")
	named := x.blob(x.ctx, "named")
	x.add(l, "content", named.String())
	twice := x.blob(x.ctx, "twice")
	if got := x.blob(under, "twice"); got != twice {
		t.Fatal(got)
	}
	x.stays(true, snapshots, mine, named, twice)
	x.stays(true, snapshots, mine, named, twice) // also the second time

	// Our own stores do not mind the lease.
	if _, err := x.c.PutBytes(under, []byte("own")); err != nil {
		t.Errorf("a blob of our own under a temporary lease: %v", err)
	}
	if rs := must(x.Leases.ListResources(x.ctx, l))(t); len(rs) != 8 {
		t.Errorf("the lease has %v", rs)
	}
	if err := x.Leases.DeleteResource(x.ctx, l, leases.Resource{ID: named.String(), Type: "content"}); err != nil {
		t.Fatal(err)
	}
	if err := x.Leases.Delete(x.ctx, l); err != nil {
		t.Fatal(err)
	}
	x.stays(false, snapshots, mine, named, twice)
	if err := x.Leases.Delete(x.ctx, l); !errdefs.IsNotFound(err) {
		t.Errorf("deleted again: %v", err)
	}
}

func TestTemporaryLeaseExpires(t *testing.T) {
	x := newTenant(t)
	for id, ttl := range map[string]time.Duration{"over": -time.Second, "under way": time.Hour} {
		x.lease(id, temporary, leases.WithExpiration(ttl))
		x.prepare(leases.WithLease(x.ctx, id), id)
	}
	x.stays(false, []string{"over"})
	x.stays(true, []string{"under way"})
}

// Leases are listed and are there once, whether the database has them yet or not.
func TestHeldLeases(t *testing.T) {
	x := newTenant(t)
	x.lease("temporary", temporary)
	x.lease("empty")
	full := x.lease("full")
	x.add(full, "snapshots/"+x.Snapshotter, "s")
	x.prepare(x.ctx, "s")
	for _, id := range []string{"temporary", "empty", "full"} {
		if _, err := x.Leases.Create(x.ctx, leases.WithID(id)); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%s made again: %v", id, err)
		}
		if ls := must(x.Leases.List(x.ctx, "id=="+id))(t); len(ls) != 1 || ls[0].ID != id {
			t.Errorf("list of %s: %v", id, ls)
		}
	}
	if ls := must(x.Leases.List(x.ctx, `labels."buildkit/lease.temporary"`))(t); len(ls) != 1 {
		t.Errorf("temporary leases: %v", ls)
	}
	for _, r := range []leases.Resource{{ID: "x", Type: "content"}, {ID: "x", Type: "sandbox"}, {Type: "snapshots/" + x.Snapshotter}} {
		if err := x.Leases.AddResource(x.ctx, leases.Lease{ID: "temporary"}, r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v was added: %v", r, err)
		}
	}
	// A lease that holds nothing yet holds what is made under it.
	under := leases.WithLease(x.ctx, "empty")
	x.prepare(under, "under")
	x.stays(true, []string{"s", "under"}, x.blob(under, "blob"))
	if err := x.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.stays(false, []string{"s", "under"}, digest.FromString("blob"))
	if ls := must(x.Leases.List(x.ctx))(t); len(ls) != 0 {
		t.Errorf("leases after all were forgotten: %v", ls)
	}
}

// A lodger may use several namespaces.
func TestHeldLeasesNamespaces(t *testing.T) {
	x := newTenant(t)
	x.lease("l", temporary)
	x.ctx = namespaces.WithNamespace(t.Context(), x.Namespace+"_history")
	l := x.lease("l", temporary)
	d := x.blob(x.ctx, "record")
	x.add(l, "content", d.String())
	x.stays(true, nil, d)
	if err := x.Leases.Delete(x.ctx, l); err != nil {
		t.Fatal(err)
	}
	x.stays(false, nil, d)
	x.ctx = namespaces.WithNamespace(t.Context(), x.Namespace)
	if ls := must(x.Leases.List(x.ctx, "id==l"))(t); len(ls) != 1 {
		t.Errorf("the lease of the other namespace: %v", ls)
	}
}
