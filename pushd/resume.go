package pushd

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"sync"

	"github.com/opencontainers/go-digest"
)

// resume takes up what an earlier upload began, or what a mount left open.
func (u *upload) resume(ctx context.Context) error {
	kept, ok, err := u.take(ctx)
	if err != nil {
		return err
	}
	if !ok {
		if s, ok := u.t.takeSpare(); ok {
			u.s = &s
			u.note(ctx)
		}
		return nil
	}
	scheme, err := u.t.resolveScheme(ctx)
	if err != nil {
		return err
	}
	loc, err := url.Parse(kept.Location)
	if err != nil || scheme == "https" && loc.Scheme != "https" {
		u.entry.drop(ctx)
		return nil
	}
	u.s = &session{location: loc, offset: kept.Offset, minChunk: kept.MinChunk, patched: true, unsure: true}
	if u.done {
		return nil
	}
	// What was sent must be what comes now.
	switch err := u.scout.reach(ctx, kept.Sum.Bytes); {
	case err != nil && !errors.Is(err, errEnds):
		return err
	case u.scout.sum != kept.Sum:
		u.forget(ctx)
	}
	return nil
}

// take finds the session of the blob in the journal. A blob that is being made
// must show its first chunk for it.
func (u *upload) take(ctx context.Context) (Session, bool, error) {
	if u.entry == nil {
		return Session{}, false, nil
	}
	if !u.done {
		switch err := u.scout.reach(ctx, u.t.opts.Chunk); {
		case errors.Is(err, errEnds):
			if err := u.know(ctx); err != nil {
				return Session{}, false, err
			}
		case err != nil:
			return Session{}, false, err
		default:
			u.entry.head(u.scout.sum)
		}
	}
	match := func(s Session) bool { return s.Digest == u.desc.Digest }
	if !u.done {
		match = func(s Session) bool { return s.Head == u.scout.sum }
	}
	s, ok := u.entry.take(ctx, match)
	return s, ok, nil
}

// note writes down how far the upload has come. To send a small blob again
// costs less than that.
func (u *upload) note(ctx context.Context) {
	if u.done && u.desc.Size < telling {
		return
	}
	u.entry.save(ctx, func(s *Session) {
		s.Location, s.Offset, s.MinChunk = u.s.location.String(), u.s.offset, u.s.minChunk
		if u.done {
			s.Digest = u.desc.Digest
		} else if u.scout.sum.Bytes == u.s.offset {
			s.Sum = u.scout.sum
		}
	})
}

// An entry is the record that an upload has in a journal. A nil entry is none.
type entry struct {
	journal Journal

	// The blob may be completed while a chunk is sent. Each change is written
	// whole before the next: the lock is held meanwhile.
	mu   sync.Mutex
	open bool // the journal has it
	s    Session
}

func newEntry(j Journal, target string) *entry {
	if j == nil {
		return nil
	}
	return &entry{journal: j, s: Session{ID: rand.Text(), Target: target}}
}

// head sets what a blob that is being made is known by.
func (e *entry) head(sum Sum) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.s.Head, e.s.Sum = sum, sum
}

// take looks for a session and makes it this entry.
func (e *entry) take(ctx context.Context, match func(Session) bool) (Session, bool) {
	s, ok := e.journal.Take(ctx, e.s.Target, match)
	if !ok {
		return Session{}, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.s, e.open = s, true
	return s, true
}

func (e *entry) save(ctx context.Context, change func(*Session)) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	known := e.s.Digest
	change(&e.s)
	if e.s.Digest == "" {
		e.s.Digest = known
	}
	e.open = true
	e.journal.Save(ctx, e.s)
}

// learn adds the digest once it is known.
func (e *entry) learn(ctx context.Context, d digest.Digest) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.s.Digest = d
	if e.open {
		e.journal.Save(ctx, e.s)
	}
}

// drop forgets the session; the entry can take another.
func (e *entry) drop(ctx context.Context) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open {
		e.open = false
		e.journal.Drop(context.WithoutCancel(ctx), e.s.ID)
		e.s.ID = rand.Text()
	}
}

// leave gives the session to whom it may concern.
func (e *entry) leave(ctx context.Context) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open {
		e.open = false
		e.journal.Leave(context.WithoutCancel(ctx), e.s.ID)
	}
}
