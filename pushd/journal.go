package pushd

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// A Journal keeps open upload sessions, so that an upload that a process did
// not finish can be finished by the next. Only blobs whose digest is known
// are kept. A journal may lose sessions at any time; it costs no more than
// sending bytes again. Its methods may be called concurrently.
type Journal interface {
	// Load returns the session of the blob in the target, or false.
	Load(ctx context.Context, target string, d digest.Digest) (Session, bool)

	// Save keeps s, also in place of an older session.
	Save(ctx context.Context, target string, d digest.Digest, s Session)

	// Drop forgets the session.
	Drop(ctx context.Context, target string, d digest.Digest)
}

// A Session is an upload that a registry has open.
type Session struct {
	Location string // may carry a signature: keep it secret
	Offset   int64  // up to which the registry has confirmed bytes
	MinChunk int64  // bytes a chunk must have, but the last; 0: any
}
