package fleet

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

func queueSubject(org, app string) string { return queuePrefix + token(org) + "." + token(app) }
func laneSubject(org string) string       { return queuePrefix + token(org) + ".*" }
func logSubject(id string) string         { return logPrefix + id }
func signalSubject(id string) string      { return signalPrefix + id }

// token turns any name into a word of a subject: other bytes than letters, digits,
// "-" and "_" become "=" and two digits, and what gets too long becomes a hash.
func token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		if c := name[i]; plain(rune(c)) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02x", c)
		}
	}
	switch {
	case b.Len() == 0:
		return "="
	case b.Len() > 64:
		return fmt.Sprintf("==%x", sha256.Sum256([]byte(name)))
	}
	return b.String()
}
