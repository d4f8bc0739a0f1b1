package api

import (
	"net/http"
	"time"
)

// usage is the answer of GET /proa/containers/{id}/usage. Docker's stats end
// with the container and round to what fits into a second; this is the whole
// bill of the latest run, of a VM with its VMM, and stays until the removal.
type usage struct {
	ID        string
	Name      string
	Isolation string
	// Emulated: the VM's processors are made by software.
	Emulated bool
	// Kernel is the release that processes inside see.
	Kernel     string
	Running    bool
	StartedAt  time.Time // the main process was executed
	FinishedAt time.Time // it has ended; the year 1 while it runs
	CPU        usageCPU
	Memory     usageMemory
	Disk       usageDisk
	IO         usageIO
	Processes  int // of the host that belong to the instance now, its shim included
}

// usageCPU is in nanoseconds.
type usageCPU struct {
	Total, User, System uint64 // of the control group: the container's processes, or the whole VMM
	Shim                uint64 // of the shim, which is not in the group
}

// usageMemory is in bytes.
type usageMemory struct {
	Peak     uint64 // most that was charged to the control group, page cache included; 0: not known
	ShimPeak uint64 // most that the shim had resident
}

// usageDisk is in bytes of blocks.
type usageDisk struct{ Used int64 }

// usageIO is in bytes.
type usageIO struct {
	Stored uint64 // sent towards storage by its processes and its shim (write_bytes of /proc/PID/io)
	// As the control group counts them; absent where it does not.
	BlockReads, BlockWrites *uint64 `json:",omitempty"`
}

func (s *Server) containerUsage(c *call) error {
	u, err := s.Engine.Usage(c.Context(), c.PathValue("id"))
	if err != nil {
		return err
	}
	out := usage{
		ID: u.ID, Name: "/" + u.Name, Isolation: string(u.Kind), Emulated: u.Emulated, Kernel: u.Kernel, Running: u.Running,
		StartedAt: u.Started.UTC(), FinishedAt: u.Ended.UTC(),
		CPU:       usageCPU{u.CPUNanos, u.CPUUser, u.CPUSystem, u.ShimCPUNanos},
		Memory:    usageMemory{u.MemoryPeak, u.ShimMemoryPeak},
		Disk:      usageDisk{u.Disk},
		IO:        usageIO{Stored: u.StoredBytes},
		Processes: u.Processes,
	}
	if u.BlockCounted {
		out.IO.BlockReads, out.IO.BlockWrites = &u.ReadBytes, &u.WriteBytes
	}
	if u.Running {
		out.Processes++ // the shim
	}
	return c.reply(http.StatusOK, out)
}
