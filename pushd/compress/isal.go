//go:build isal && cgo

package compress

/*
#cgo LDFLAGS: -lisal
#include <isa-l/igzip_lib.h>

static uint32_t slipway_level_size(int level) {
	switch (level) {
	case 1: return ISAL_DEF_LVL1_DEFAULT;
	case 2: return ISAL_DEF_LVL2_DEFAULT;
	default: return ISAL_DEF_LVL3_DEFAULT;
	}
}

// slipway_gzip makes one gzip member of in and returns its length, 0 if out is
// too short.
static size_t slipway_gzip(void *in, size_t inlen, void *out, size_t outlen, void *buf, uint32_t buflen, int level) {
	struct isal_zstream s;
	isal_deflate_init(&s);
	s.end_of_stream = 1;
	s.flush = NO_FLUSH;
	s.gzip_flag = IGZIP_GZIP;
	s.level = level;
	s.level_buf = buf;
	s.level_buf_size = buflen;
	s.next_in = in;
	s.avail_in = inlen;
	s.next_out = out;
	s.avail_out = outlen;
	if (isal_deflate(&s) != COMP_OK || s.internal_state.state != ZSTATE_END) return 0;
	return s.total_out;
}
*/
import "C"

import "unsafe"

// GzipMaker names what makes gzip members. Built with the tag isal, the lower
// levels are those of Intel's ISA-L: about twice as fast on processors that
// have AVX.
const GzipMaker = "isal"

// mostISAL is the highest level that ISA-L takes over: its levels end at 3,
// and above that people ask for small layers, not for fast ones.
const mostISAL = 3

func newGzip(level int) encoder {
	if level > mostISAL {
		return newKlauspost(level)
	}
	return isalEncoder{level: C.int(level), tables: make([]byte, C.slipway_level_size(C.int(level)))}
}

type isalEncoder struct {
	level  C.int
	tables []byte
}

func (e isalEncoder) encode(dst, src []byte) []byte {
	if len(src) == 0 {
		return newKlauspost(1).encode(dst, src)
	}
	for room := len(src) + len(src)/8 + 1024; ; room *= 2 {
		start := len(dst)
		if cap(dst)-start < room {
			dst = append(make([]byte, 0, start+room), dst...)
		}
		out := dst[start:cap(dst)]
		n := C.slipway_gzip(unsafe.Pointer(&src[0]), C.size_t(len(src)), unsafe.Pointer(&out[0]), C.size_t(len(out)),
			unsafe.Pointer(&e.tables[0]), C.uint32_t(len(e.tables)), e.level)
		if n > 0 {
			return dst[:start+int(n)]
		}
	}
}
