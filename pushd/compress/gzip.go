//go:build !isal || !cgo

package compress

// gzipMaker names what makes gzip members.
const gzipMaker = "klauspost"

func newGzip(level int) encoder { return newKlauspost(level) }
