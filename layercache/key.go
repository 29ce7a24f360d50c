package layercache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
)

// A Key names a step by everything that its result depends on.
type Key [sha256.Size]byte

// A Part is one thing that a step's result depends on, such as the parent's
// chain or a build argument. Parts are kept with the step, so that a miss can
// be explained: they must not hold secrets.
type Part struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// NewKey derives the key of a step from its parts, in their order.
func NewKey(parts ...Part) Key {
	h := sha256.New()
	io.WriteString(h, "step/v1") // bump to drop every old entry
	for _, p := range parts {
		// Length first: no two lists read alike.
		fmt.Fprintf(h, "%d:%s%d:%s", len(p.Name), p.Name, len(p.Value), p.Value)
	}
	return Key(h.Sum(nil))
}

// String returns the key in hex.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// MarshalText encodes the key as hex.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *Key) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(k) {
		return fmt.Errorf("key of %d characters, want %d", len(text), hex.EncodedLen(len(k)))
	}
	_, err := hex.Decode(k[:], text)
	return err
}
