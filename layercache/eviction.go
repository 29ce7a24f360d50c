package layercache

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// An Eviction says what was removed from the cache, and why.
type Eviction struct {
	Time   time.Time `json:"time"`
	Org    string    `json:"org"`
	App    string    `json:"app,omitempty"` // if it was one app's alone
	What   string    `json:"what"`
	Bytes  int64     `json:"bytes"`
	Reason string    `json:"reason"`
}

// keepEvictions is how many evictions are remembered.
const keepEvictions = 1000

// recordEvictions remembers evictions, within tx.
func (s *Store) recordEvictions(tx *bolt.Tx, evs ...Eviction) error {
	root, err := tx.CreateBucketIfNotExists(slipwayBucket)
	if err != nil {
		return err
	}
	b, err := root.CreateBucketIfNotExists(evictionsBucket)
	if err != nil {
		return err
	}
	b.FillPercent = 1 // sequences only grow
	for _, ev := range evs {
		seq, err := b.NextSequence()
		if err != nil {
			return err
		}
		if err := putRecord(b, sequenceKey(seq), ev); err != nil {
			return err
		}
	}
	if b.Sequence() <= keepEvictions {
		return nil
	}
	oldest := sequenceKey(b.Sequence() - keepEvictions)
	var drop [][]byte
	c := b.Cursor()
	for k, _ := c.First(); k != nil && string(k) <= string(oldest); k, _ = c.Next() {
		drop = append(drop, k)
	}
	for _, k := range drop {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

func sequenceKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// evictions returns what is remembered of an org, newest first; "" is all.
func evictions(tx *bolt.Tx, org string) []Eviction {
	b := tx.Bucket(slipwayBucket)
	if b != nil {
		b = b.Bucket(evictionsBucket)
	}
	if b == nil {
		return nil
	}
	var evs []Eviction
	c := b.Cursor()
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		var ev Eviction
		data, err := unseal(v)
		if errors.Join(err, json.Unmarshal(data, &ev)) != nil || org != "" && ev.Org != org {
			continue
		}
		evs = append(evs, ev)
	}
	return evs
}

// tell logs evictions and passes them on. The caller has no lock.
func (s *Store) tell(evs ...Eviction) {
	for _, ev := range evs {
		s.log.Info("evicted from the cache", "org", ev.Org, "app", ev.App, "what", ev.What, "bytes", ev.Bytes, "reason", ev.Reason)
		if s.opts.OnEvict != nil {
			s.telling.Lock()
			s.opts.OnEvict(ev)
			s.telling.Unlock()
		}
	}
}

// String names a record for people.
func (id recordID) String() string {
	switch id.kind {
	case stepKind:
		return fmt.Sprintf("step %x", id.key)
	case layerKind:
		return "layer " + id.key
	case snapshotKind:
		return "snapshot " + id.key
	case mountKind:
		_, name := mountParts(id.key)
		return "cache mount " + strings.Trim(strconv.Quote(name), `"`)
	case trailKind:
		return "explanation " + id.key[:12]
	default:
		return fmt.Sprintf("context pack %d", binary.BigEndian.Uint64([]byte(id.key)))
	}
}
