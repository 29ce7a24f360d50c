package layercache

import (
	"crypto/rand"

	bolt "go.etcd.io/bbolt"
)

// generationKey is where the generation is in Slipway's bucket.
var generationKey = []byte("generation")

// Generation names the time for which the store has kept what it was given. It
// is another one when [Open] found nothing, or nothing that reads back, or
// dropped the snapshots because the machine went down: then all that a [Lodger]
// has recorded before is void, and its leases are gone. Who keeps databases
// beside the store keeps this name with them, and throws them away, and calls
// [Containerd.Forget], when it is another one. Unlike a flag that is true once
// it cannot be missed by a process that is killed in between.
func (s *Store) Generation() string { return s.generation }

// readGeneration reads the name, or begins a generation if there is none.
func (s *Store) readGeneration() error {
	err := s.meta.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(slipwayBucket); b != nil {
			s.generation = string(b.Get(generationKey))
		}
		return nil
	})
	if err != nil || s.generation != "" {
		return err
	}
	s.generation = rand.Text()
	return s.meta.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(slipwayBucket)
		if err != nil {
			return err
		}
		return b.Put(generationKey, []byte(s.generation))
	})
}

// endGeneration has the next Open begin another one.
func endGeneration(tx *bolt.Tx) error {
	b := tx.Bucket(slipwayBucket)
	if b == nil {
		return nil
	}
	return b.Delete(generationKey)
}
