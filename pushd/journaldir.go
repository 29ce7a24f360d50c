package pushd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// journalAge is how long a session is kept after its last chunk.
	// Registries commonly forget them after a week.
	journalAge = 7 * 24 * time.Hour

	// maxSessions bounds the sessions kept; the oldest go first.
	maxSessions = 1000

	maxRecord  = 64 << 10
	recordType = ".json"
	tempType   = ".tmp"
)

// A JournalDir is a [Journal] in a directory, with a file for each session.
// Upload addresses may let their bearer write to the registry, so only the
// owner may read the files; credentials are never in them.
//
// A file is replaced whole. One that is damaged, too old or not understood is
// removed when the journal is opened, and when it cannot be written there is
// no record: a journal never fails an upload.
type JournalDir struct {
	dir string

	mu       sync.Mutex
	sessions map[string]*record
}

var _ Journal = (*JournalDir)(nil)

// A record is a session in the journal.
type record struct {
	Session
	Saved time.Time `json:"saved"`

	busy bool
	file sync.Mutex // held while the record's file changes
	gone bool       // guarded by file
}

// OpenJournal opens the journal in dir, which it makes if need be. The
// directory belongs to one process at a time.
func OpenJournal(dir string) (*JournalDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal of uploads: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("journal of uploads: %w", err)
	}
	j := &JournalDir{dir: dir, sessions: make(map[string]*record)}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch filepath.Ext(path) {
		case recordType:
			if r, err := readRecord(path); err == nil {
				j.sessions[r.ID] = r
			} else {
				_ = os.Remove(path)
			}
		case tempType:
			_ = os.Remove(path)
		}
	}
	return j, nil
}

func readRecord(path string) (*record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err == nil && r.ID+recordType != filepath.Base(path) {
		err = errors.New("file of another session")
	}
	return r, err
}

func parseRecord(data []byte) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if age := time.Since(r.Saved); age > journalAge || age < -time.Hour {
		return nil, errors.New("too old")
	}
	return r, nil
}

// check reports what makes a session unfit to be kept.
func (s *Session) check() error {
	u, err := url.Parse(s.Location)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("bad location")
	case u.User != nil:
		return errors.New("location holds credentials")
	case s.ID == "" || len(s.ID) > 64 || strings.ContainsFunc(s.ID, notAlphanumeric):
		return errors.New("bad ID")
	case s.Target == "" || s.Offset < 0 || s.MinChunk < 0 || s.Head.Bytes < 0 || s.Sum.Bytes < s.Head.Bytes:
		return errors.New("bad numbers")
	case s.Digest == "" && s.Head.Bytes == 0:
		return errors.New("nothing to know the blob by")
	case s.Digest != "":
		return s.Digest.Validate()
	}
	return nil
}

func notAlphanumeric(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// Take implements [Journal]. Of several sessions it takes the furthest.
func (j *JournalDir) Take(_ context.Context, target string, match func(Session) bool) (Session, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var best *record
	for _, r := range j.sessions {
		if r.busy || r.Target != target || time.Since(r.Saved) > journalAge || !match(r.Session) {
			continue
		}
		if best == nil || r.Offset > best.Offset {
			best = r
		}
	}
	if best == nil {
		return Session{}, false
	}
	best.busy = true
	return best.Session, true
}

// Save implements [Journal].
func (j *JournalDir) Save(_ context.Context, s Session) {
	if s.check() != nil {
		return
	}
	r, stale := j.put(s)
	for _, old := range stale {
		j.remove(old)
	}
	r.file.Lock()
	defer r.file.Unlock()
	if !r.gone {
		_ = j.write(s)
	}
}

// put keeps s in memory and returns the records that it displaces.
func (j *JournalDir) put(s Session) (r *record, stale []*record) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r = j.sessions[s.ID]
	if r == nil {
		stale = j.makeRoom()
		r = &record{}
		j.sessions[s.ID] = r
	}
	r.Session, r.Saved, r.busy = s, time.Now(), true
	return r, stale
}

// makeRoom takes out what is too old and, if that is not enough, the oldest.
func (j *JournalDir) makeRoom() (stale []*record) {
	if len(j.sessions) < maxSessions {
		return nil
	}
	var oldest *record
	for id, r := range j.sessions {
		switch {
		case r.busy:
		case time.Since(r.Saved) > journalAge:
			stale = append(stale, r)
			delete(j.sessions, id)
		case oldest == nil || r.Saved.Before(oldest.Saved):
			oldest = r
		}
	}
	if len(stale) == 0 && oldest != nil {
		stale = append(stale, oldest)
		delete(j.sessions, oldest.ID)
	}
	return stale
}

// write replaces the session's file. It need not survive a loss of power: a
// file that is cut short is no record.
func (j *JournalDir) write(s Session) error {
	data, err := json.Marshal(&record{Session: s, Saved: time.Now()})
	if err != nil || len(data) >= maxRecord {
		return errors.Join(err, errors.New("too long"))
	}
	path := j.path(s.ID)
	if err := os.WriteFile(path+tempType, data, 0o600); err != nil {
		return errors.Join(err, os.Remove(path+tempType))
	}
	return os.Rename(path+tempType, path)
}

// Leave implements [Journal].
func (j *JournalDir) Leave(_ context.Context, id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r := j.sessions[id]; r != nil {
		r.busy = false
	}
}

// Drop implements [Journal].
func (j *JournalDir) Drop(_ context.Context, id string) {
	j.mu.Lock()
	r := j.sessions[id]
	delete(j.sessions, id)
	j.mu.Unlock()
	if r != nil {
		j.remove(r)
	}
}

func (j *JournalDir) remove(r *record) {
	r.file.Lock()
	defer r.file.Unlock()
	r.gone = true
	_ = os.Remove(j.path(r.ID))
}

func (j *JournalDir) path(id string) string { return filepath.Join(j.dir, id+recordType) }
