package step

import (
	"context"
	"time"

	resources "github.com/moby/buildkit/executor/resources/types"

	"proa/internal/isolation"
)

// recorder tells what a step has taken. The engine read it once, at the end, so
// there is one sample and nothing to wait for.
type recorder struct{ usage isolation.Usage }

var _ resources.Recorder = (*recorder)(nil)

// Start has nothing to start.
func (r *recorder) Start() {}

// Close has nothing to stop.
func (r *recorder) Close() {}

// CloseAsync calls next at once.
func (r *recorder) CloseAsync(next func(context.Context) error) error {
	return next(context.Background())
}

// Wait does not have to.
func (r *recorder) Wait() error { return nil }

// Samples are the reading at the step's end.
func (r *recorder) Samples() (*resources.Samples, error) {
	u := &r.usage
	s := &resources.Sample{
		Timestamp_: u.Ended,
		CPUStat:    &resources.CPUStat{UsageNanos: &u.CPUNanos, UserNanos: &u.CPUUser, SystemNanos: &u.CPUSystem},
		MemoryStat: &resources.MemoryStat{},
	}
	if s.Timestamp_.IsZero() {
		s.Timestamp_ = time.Now()
	}
	if u.MemoryPeak > 0 {
		s.MemoryStat.Peak = &u.MemoryPeak
	}
	if u.BlockCounted {
		s.IOStat = &resources.IOStat{ReadBytes: &u.ReadBytes, WriteBytes: &u.WriteBytes}
	}
	return &resources.Samples{Samples: []*resources.Sample{s}}, nil
}
