package buildkit

import (
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// owners say whose sessions are. A session's id is its client's choice, and
// whoever names one gets at what is behind it: files, secrets, credentials.
type owners struct {
	mu  sync.Mutex
	all map[string]*owned
}

func newOwners() *owners { return &owners{all: map[string]*owned{}} }

// An owned session is one that is open, or that a build waits for.
type owned struct {
	owner string
	uses  map[use]bool
}

// A use is what somebody has a session for. Each session has one of each.
type use string

const (
	toServe use = "session"
	toBuild use = "build"
	toName  use = "name by "
)

// deploy owns the session of a deploy, which this process opens.
func deploy(session string) string { return "deploy " + session }

var errNotYours = status.Error(codes.PermissionDenied, "the session is not this client's: name those that it has opened, and give each an id of its own")

// maxID bounds what clients call sessions and builds.
const maxID = 128

// take notes that an owner uses a session. Nobody else can until all its uses
// have been released.
func (x *owners) take(id, owner string, u use) (release func(), err error) {
	if id == "" || len(id) > maxID || strings.Contains(id, ":") {
		return nil, status.Errorf(codes.InvalidArgument, "%q is no id of a session: give one of at most %d characters without a colon", id[:min(len(id), maxID)], maxID)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.all[id]
	switch {
	case o == nil:
		o = &owned{owner: owner, uses: map[use]bool{}}
		x.all[id] = o
	case o.owner != owner:
		// Not whose: that somebody has it is more than enough to know.
		return nil, errNotYours
	case o.uses[u]:
		return nil, status.Errorf(codes.AlreadyExists, "the session %s has a %s already: give each an id of its own", id, u)
	}
	o.uses[u] = true
	return sync.OnceFunc(func() { x.release(id, o, u) }), nil
}

func (x *owners) release(id string, o *owned, u use) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if delete(o.uses, u); len(o.uses) == 0 {
		delete(x.all, id)
	}
}

// mayAsk refuses a session that the build names and that is somebody else's.
// One that is not there yet is kept for the build's owner: bake opens sessions
// for several builds.
func (b *build) mayAsk(id string) error {
	// BuildKit leaves away what comes before a colon.
	if _, after, ok := strings.Cut(id, ":"); ok && after != "" {
		id = after
	}
	b.mu.Lock()
	_, named := b.named[id]
	b.mu.Unlock()
	if id == "" || id == b.session || named {
		return nil
	}
	release, err := b.tenant.owners.take(id, b.owner, toName+use(b.session))
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.named == nil {
		b.named = map[string]func(){}
	}
	b.named[id] = release
	return nil
}

// forget gives up the sessions that the build has named.
func (b *build) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, release := range b.named {
		release()
	}
	b.named = nil
}

// mayFetch refuses a source in a session of somebody else.
func (b *build) mayFetch(op *pb.SourceOp) error {
	for _, attr := range sessionAttrs {
		if err := b.mayAsk(op.GetAttrs()[attr]); err != nil {
			return err
		}
	}
	return nil
}

// sessionAttrs are the attributes of sources that name a session.
var sessionAttrs = []string{pb.AttrLocalSessionID, pb.AttrOCILayoutSessionID}

// mayFetch refuses a source in a session of which the vertex's build may not
// ask. A policy for sources may have put it there.
func (t *tenant) mayFetch(v solver.Vertex, op *pb.SourceOp) error {
	named := slices.ContainsFunc(sessionAttrs, func(attr string) bool { return op.GetAttrs()[attr] != "" })
	if !named {
		return nil
	}
	b := t.builds.get(v.Options().Description[markSession])
	if b == nil {
		return errNotYours
	}
	return b.mayFetch(op)
}
