package pushd

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// A Journal keeps open upload sessions, so that an upload that a process did
// not finish can be finished by the next. It may lose sessions at any time;
// that costs no more than sending bytes again. Its methods may be called
// concurrently. [OpenJournal] makes one.
type Journal interface {
	// Take returns a session of the target that match accepts and makes it
	// the caller's: nobody else gets it until the caller gives it back by
	// Leave.
	Take(ctx context.Context, target string, match func(Session) bool) (Session, bool)

	// Save keeps s, in place of an older state of the same ID, and makes it
	// the caller's.
	Save(ctx context.Context, s Session)

	// Leave gives a session back, for whom it may concern.
	Leave(ctx context.Context, id string)

	// Drop forgets a session.
	Drop(ctx context.Context, id string)
}

// A Session is an upload that a registry has open. It holds what another
// process must know to go on.
type Session struct {
	ID       string        `json:"id"`       // of letters and digits
	Target   string        `json:"target"`   // HOST/REPOSITORY
	Location string        `json:"location"` // may carry a signature: keep it secret
	Offset   int64         `json:"offset"`   // up to which the registry has confirmed bytes
	MinChunk int64         `json:"min_chunk,omitempty"`
	Digest   digest.Digest `json:"digest,omitempty"` // of the whole blob; empty while it is being made

	// A blob that is being made has no digest yet. When it is made again, it
	// is known by its first bytes, and by all that were confirmed last.
	Head Sum `json:"head,omitzero"`
	Sum  Sum `json:"sum,omitzero"`
}

// A Sum is a checksum (CRC-32C) of the first bytes of a blob. It only finds
// what is probably the same: the registry compares the digest of the whole.
type Sum struct {
	Bytes int64  `json:"bytes"`
	CRC   uint32 `json:"crc"`
}
