package engine

import (
	"time"

	"github.com/moby/moby/api/types/container"
)

// Docker's figures: the first pause, doubled after each quick end, up to the
// longest; a container that was up for steady starts again with the first.
const (
	firstBackoff   = 100 * time.Millisecond
	longestBackoff = time.Minute
	steady         = 10 * time.Second
)

// backoff is the pause before the next restart.
type backoff struct{ last time.Duration }

// after tells how long to wait when it was up for so long.
func (b *backoff) after(up time.Duration) time.Duration {
	switch {
	case b.last == 0 || up >= steady:
		b.last = firstBackoff
	default:
		b.last = min(2*b.last, longestBackoff)
	}
	return b.last
}

// wantsRestart decides at the end of a run. count is how often the policy has
// restarted it already.
func wantsRestart(p container.RestartPolicy, exitCode, count int, stoppedByUser bool) bool {
	if stoppedByUser {
		return false
	}
	switch p.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return true
	case container.RestartPolicyOnFailure:
		return exitCode != 0 && (p.MaximumRetryCount == 0 || count < p.MaximumRetryCount)
	}
	return false
}

// wantsBoot decides when an engine starts and finds that a container, which
// had been started once, does not run. wasAlive: it ran when the last engine or
// the host went down.
func wantsBoot(p container.RestartPolicy, exitCode, count int, stoppedByUser, wasAlive bool) bool {
	switch p.Name {
	case container.RestartPolicyAlways:
		return true // also one that was stopped by hand, as Docker does
	case container.RestartPolicyUnlessStopped:
		return !stoppedByUser
	case container.RestartPolicyOnFailure:
		return wasAlive && wantsRestart(p, exitCode, count, stoppedByUser)
	}
	return false
}
