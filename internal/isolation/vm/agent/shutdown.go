package agent

import (
	"syscall"
	"time"

	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// killWait is how long killed processes may take to be gone: one that hangs in
// the kernel must not keep the disk from being written.
const killWait = 5 * time.Second

// shutdown kills everything, writes the disk and makes it read-only.
func (a *Agent) shutdown() error {
	a.mu.Lock()
	was, disk := a.state, a.disk
	a.state = down
	for _, p := range a.procs {
		if p.stop != nil {
			p.stop() // it may be writing to the disk
		}
	}
	a.mu.Unlock()
	if was == down && disk == nil {
		return &wire.Failure{Kind: wire.FailInvalid, Step: "shut down", Why: "the guest is " + stateNames[was] + " already"}
	}
	a.killAll()
	if disk == nil {
		return nil
	}
	// Files that a killed process had open for writing keep the disk busy until it is reaped.
	begin := time.Now()
	err := sys.MakeReadonly(disk)
	for pause := time.Millisecond; err != nil && a.options.KillAll && time.Since(begin) < killWait; pause *= 2 {
		time.Sleep(pause)
		_ = syscall.Kill(-1, syscall.SIGKILL)
		err = sys.MakeReadonly(disk)
	}
	if err != nil {
		// The journal mends it at the next mount; nothing is lost.
		sys.Sync()
		a.options.Warn(err.Error())
	}
	return nil
}
