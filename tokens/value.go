package tokens

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// ErrMalformed means that a value cannot be a token: mistyped, cut short, or
// something else altogether.
var ErrMalformed = errors.New("malformed token")

// A value is a prefix, 32 random characters (190 bits) and 6 characters of
// CRC-32 over all that precedes them, so that scanners find leaked tokens and
// a mistyped one is refused without a look-up.
const (
	randomLen   = 32
	checksumLen = 6
	alphabet    = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// New returns a fresh value with the prefix of a type, as [Prefix] has it.
// With another prefix, Check refuses the value.
func New(prefix string) string {
	body := prefix + random(randomLen)
	return body + checksum(body)
}

// random returns n characters of the alphabet, each as likely as any other.
func random(n int) string {
	const fair = 256 - 256%len(alphabet)
	out := make([]byte, 0, n)
	for len(out) < n {
		var buf [2 * randomLen]byte
		rand.Read(buf[:]) // never fails
		for _, b := range buf {
			if int(b) < fair && len(out) < n {
				out = append(out, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return string(out)
}

func checksum(body string) string {
	sum := crc32.ChecksumIEEE([]byte(body))
	var out [checksumLen]byte
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = alphabet[sum%uint32(len(alphabet))]
		sum /= uint32(len(alphabet))
	}
	return string(out[:])
}

// Check returns the type of token that a value claims to be. The error wraps
// [ErrMalformed] if it is no value that New made; it never shows the value. A
// value that passes may still be one that nobody issued.
func Check(value string) (typ string, err error) {
	cut := strings.IndexByte(value, '_') + 1
	typ, ok := typeOf(value[:cut])
	if !ok {
		return "", fmt.Errorf("%w: it does not begin like one of Slipway's", ErrMalformed)
	}
	rest := value[cut:]
	if len(rest) != randomLen+checksumLen {
		return "", fmt.Errorf("%w: %d characters after the prefix, want %d", ErrMalformed, len(rest), randomLen+checksumLen)
	}
	if strings.Trim(rest, alphabet) != "" {
		return "", fmt.Errorf("%w: it has characters that no token has", ErrMalformed)
	}
	body := value[:cut+randomLen]
	if value[len(body):] != checksum(body) {
		return "", fmt.Errorf("%w: the checksum does not match", ErrMalformed)
	}
	return typ, nil
}

// Hash returns the SHA-256 of a value, which is all that is kept of it. Values
// are long and random, so a fast hash is enough.
func Hash(value string) [sha256.Size]byte { return sha256.Sum256([]byte(value)) }
