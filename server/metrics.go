package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Metrics counts what the daemon does. It implements builder.Observer. A nil
// *Metrics counts nothing.
type Metrics struct {
	builds     *prometheus.CounterVec
	running    prometheus.Gauge
	phases     *prometheus.HistogramVec
	received   *prometheus.CounterVec
	compressed prometheus.Counter
	pushed     *prometheus.CounterVec
	blobs      *prometheus.CounterVec
	steps      *prometheus.CounterVec
	evictions  prometheus.Counter
	evicted    prometheus.Counter
}

// NewMetrics registers the metrics that docs/metrics.md lists.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "slipway", Name: name, Help: help}
	}
	m := &Metrics{
		builds:     prometheus.NewCounterVec(counter("builds_total", "Builds that ended."), []string{"pipeline", "status"}),
		running:    prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "slipway", Name: "builds_running", Help: "Builds under way."}),
		received:   prometheus.NewCounterVec(counter("context_received_bytes_total", "Bytes of build contexts that arrived."), []string{"kind"}),
		compressed: prometheus.NewCounter(counter("layers_compressed_bytes_total", "Compressed bytes of layers made.")),
		pushed:     prometheus.NewCounterVec(counter("push_bytes_total", "Bytes of blobs pushed, by how they came to be in the registry."), []string{"outcome"}),
		blobs:      prometheus.NewCounterVec(counter("push_blobs_total", "Blobs pushed, by how they came to be in the registry."), []string{"outcome"}),
		steps:      prometheus.NewCounterVec(counter("steps_total", "Steps, by whether the cache had them."), []string{"cache"}),
		evictions:  prometheus.NewCounter(counter("cache_evictions_total", "Records that the cache evicted.")),
		evicted:    prometheus.NewCounter(counter("cache_evicted_bytes_total", "Bytes that the cache evicted.")),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "slipway", Name: "phase_seconds", Help: "How long the phases of builds took.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 13),
		}, []string{"phase"}),
	}
	r.MustRegister(m.builds, m.running, m.phases, m.received, m.compressed, m.pushed, m.blobs, m.steps, m.evictions, m.evicted)
	return m
}

// WatchCache registers the cache's size. It is read at each scrape.
func (m *Metrics) WatchCache(r prometheus.Registerer, size func() float64) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "slipway", Name: "cache_bytes", Help: "Size of the cache."}, size))
}

// Evicted counts an eviction.
func (m *Metrics) Evicted(e layercache.Eviction) {
	if m == nil {
		return
	}
	m.evictions.Inc()
	m.evicted.Add(float64(e.Bytes))
}

// BuildEnded implements builder.Observer.
func (m *Metrics) BuildEnded(pipeline, status string, t *slipwayv1.Timings) {
	if m == nil {
		return
	}
	m.builds.WithLabelValues(pipeline, status).Inc()
	for phase, ms := range map[string]int64{
		"queue": t.Queue, "preflight": t.Preflight, "build": t.Build, "push": t.Push, "total": t.Total,
	} {
		m.phases.WithLabelValues(phase).Observe((time.Duration(ms) * time.Millisecond).Seconds())
	}
}

// Received counts the context of a build.
func (m *Metrics) Received(p *slipwayv1.ContextProgress) {
	if m == nil || p == nil {
		return
	}
	m.received.WithLabelValues("content").Add(float64(p.SentBytes))
	m.received.WithLabelValues("wire").Add(float64(p.WireBytes))
}

// Pushed implements builder.Observer.
func (m *Metrics) Pushed(outcome string, bytes int64) {
	if m == nil {
		return
	}
	m.blobs.WithLabelValues(outcome).Inc()
	m.pushed.WithLabelValues(outcome).Add(float64(bytes))
}

// Compressed implements builder.Observer.
func (m *Metrics) Compressed(bytes int64) {
	if m != nil {
		m.compressed.Add(float64(bytes))
	}
}

// StepCached implements builder.Observer.
func (m *Metrics) StepCached(hit bool) {
	if m == nil {
		return
	}
	label := "miss"
	if hit {
		label = "hit"
	}
	m.steps.WithLabelValues(label).Inc()
}

func (m *Metrics) begin() {
	if m != nil {
		m.running.Inc()
	}
}

func (m *Metrics) end() {
	if m != nil {
		m.running.Dec()
	}
}
