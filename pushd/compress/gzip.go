//go:build !isal || !cgo

package compress

// GzipMaker names what makes gzip members.
const GzipMaker = "klauspost"

func newGzip(level int) encoder { return newKlauspost(level) }
