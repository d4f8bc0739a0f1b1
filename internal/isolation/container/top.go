package container

import (
	"context"
	"errors"
	"os"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// Processes lists the container's processes by the host's numbers; user ids are
// those inside.
func (c *instance) Processes(context.Context) ([]isolation.ProcessInfo, error) {
	pids, err := c.group.Procs()
	if err != nil {
		return nil, err
	}
	var out []isolation.ProcessInfo
	for _, pid := range pids {
		p, err := sys.ReadProcess(pid)
		if errors.Is(err, os.ErrNotExist) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		uid := p.UID
		if c.shifted() {
			var ok bool
			if uid, ok = c.spec.Namespaces.UIDs.Inside(uid); !ok {
				uid = 65534 // what the container calls nobody of its own
			}
		}
		out = append(out, isolation.ProcessInfo{
			PID: p.PID, PPID: p.PPID, UID: uid, Started: p.Started, CPU: p.CPU, TTY: p.TTY, Command: p.Command,
			Name: p.Name, State: p.State, Nice: p.Nice, Threads: p.Threads, Virtual: p.Virtual, Resident: p.Resident,
		})
	}
	return out, nil
}
