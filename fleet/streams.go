package fleet

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Names in NATS. Everything of ours begins alike, so that a cluster can be shared.
const (
	queueStream  = "SLIPWAY_QUEUE"
	logStream    = "SLIPWAY_LOGS"
	recordBucket = "SLIPWAY_JOBS"

	queuePrefix  = "slipway.queue."
	logPrefix    = "slipway.log."
	signalPrefix = "slipway.signal."
	lanePrefix   = "lane-"
)

// queue holds a message for each job until it is done. The server counts those of
// an app and refuses one too many.
func (o *Options) queue() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:                 queueStream,
		Subjects:             []string{queuePrefix + "*.*"},
		Retention:            jetstream.WorkQueuePolicy,
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		MaxMsgsPerSubject:    int64(o.backlog()),
		Replicas:             o.replicas(),
	}
}

// logs holds the batches of all logs.
func (o *Options) logs() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:     logStream,
		Subjects: []string{logPrefix + "*"},
		MaxAge:   o.keep(),
		MaxBytes: o.logBytes(),
		Replicas: o.replicas(),
	}
}

// records holds the record of each job.
func (o *Options) records() jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{
		Bucket:   recordBucket,
		TTL:      o.keep(),
		Replicas: o.replicas(),
	}
}

// lane gives out the jobs of an org, in order.
func (o *Options) lane(org string, solo bool) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:           lanePrefix + token(org),
		FilterSubject:     laneSubject(org),
		AckPolicy:         jetstream.AckExplicitPolicy,
		AckWait:           o.lease(),
		MaxDeliver:        -1, // attempts are counted in the record
		MaxAckPending:     -1,
		InactiveThreshold: time.Hour,
		MemoryStorage:     solo, // what was handed out is forgotten with the process, and so were its workers
	}
}
