package pushd

import (
	"sync"
	"time"
)

const (
	maxHosts = 1000

	// hostAge is after how long what was learned of a registry is learned
	// again: it may have been replaced.
	hostAge = time.Hour
)

// Hosts remembers how registries behave, so that each upload need not find it
// out anew. Targets of one process should share one. It is safe for concurrent
// use, and what it says is advice: an upload that finds it wrong goes on.
type Hosts struct {
	mu sync.Mutex
	m  map[string]*hostFacts
}

// hostFacts is what is known of one registry.
type hostFacts struct {
	learned  time.Time
	noChunks bool    // it refuses PATCH
	keeps    bool    // it keeps what came of a request that broke
	loses    bool    // it does not
	rate     float64 // bytes a second of one request, of late
}

// NewHosts returns a memory without any registry.
func NewHosts() *Hosts { return &Hosts{m: make(map[string]*hostFacts)} }

// of returns what is known of a host.
func (h *Hosts) of(host string) hostFacts {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.m[host]; f != nil && time.Since(f.learned) < hostAge {
		return *f
	}
	return hostFacts{}
}

// learn changes what is known of a host.
func (h *Hosts) learn(host string, change func(*hostFacts)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.m[host]
	if f == nil || time.Since(f.learned) >= hostAge {
		if len(h.m) >= maxHosts {
			clear(h.m)
		}
		f = &hostFacts{learned: time.Now()}
		h.m[host] = f
	}
	change(f)
}

// timed learns from a request that carried n bytes.
func (h *Hosts) timed(host string, n int64, took time.Duration) {
	now := float64(n) / max(took, time.Millisecond).Seconds()
	h.learn(host, func(f *hostFacts) {
		if f.rate == 0 {
			f.rate = now
		}
		f.rate = (f.rate + now) / 2
	})
}
