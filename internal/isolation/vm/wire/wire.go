// Package wire is the protocol between a VM's shim and the agent inside the
// guest, and the host's half of it (Client). It runs over any one byte stream:
// today a virtio-serial port named [PortName], tomorrow vsock. It owns frames,
// limits, flow control and the shapes of the messages; it never touches Linux,
// starts nothing and trusts nobody: whatever arrives from the other side is
// hostile until it is proved well-formed.
//
// # Frames
//
// All integers are little endian. A frame is a header of 16 bytes and a payload:
//
//	0       4      5      6       8        12        16
//	+-------+------+------+-------+--------+---------+-----------
//	| epoch | type | sub  | check |   id   | length  | payload ...
//	+-------+------+------+-------+--------+---------+-----------
//
// check is a sum of the other header bytes: it tells a reader that has lost its
// place before it believes a length. A frame of another epoch is skipped.
//
//	type     sub      id       direction  payload
//	Hello    -        0        both       Welcome or Greeting (JSON)
//	Request  op       request  to agent   the op's argument (JSON)
//	Reply    op       request  to host    the op's answer (JSON)
//	Error    op       request  to host    Failure (JSON)
//	Data     stream   process  both       raw bytes, at most MaxData
//	EOF      stream   process  both       no more Data on this stream; no payload
//	Credit   stream   process  both       u32: so many more bytes may be sent
//	Refuse   stream   process  both       nobody reads this stream any more; no payload
//	Exited   -        process  to host    Exited (JSON), after EOF of its output
//
// A request id is chosen by the host, never twice in one epoch. The id of a
// Start or Exec request is afterwards the id of its process; sub says which of
// the three streams of the process is meant: 0 stdin (to the agent), 1 stdout,
// 2 stderr (to the host). A Request or Reply longer than one frame goes on in
// further frames of the same id; all but the last have More set in sub.
//
// A Files request is carried out by the agent itself and travels like a process
// without stderr: what it reads comes as stdin, what it writes goes as stdout, a
// Signal to it, whichever, cancels it, and Failure in its Exited says what went
// wrong.
//
// # Flow control
//
// A sender may have at most Window unconsumed bytes of a stream under way. The
// receiver hands the bytes on and returns the room with Credit. So the side
// that reads never has to wait for a slow consumer, and one slow stream delays
// no other stream and no request. Sending beyond the window is a violation: the
// host drops the connection, the agent the frame.
//
// # Life
//
//	host                                       agent
//	  | Preamble, Hello{version, epoch} -------->|  (waits in the port until the agent is up)
//	  |<------- Preamble, Hello{version, kernel} |  streams of an older epoch are dropped
//	  | Request 1 Setup ------------------------>|  mounts, network, root
//	  |<------------------------------- Reply 1  |
//	  | Request 2 Start ------------------------>|
//	  |<------------------- Reply 2 {pid}        |  or Error 2 {kind, step, why}
//	  | Data 2/0 ... EOF 2/0 ------------------->|
//	  |<------------------- Data 2/1, Data 2/2   |
//	  | Credit 2/1 ----------------------------->|
//	  | Request 3 Exec, Request 4 Signal ... --->|
//	  |<------------- EOF 2/1, EOF 2/2, Exited 2 |
//	  | Request 5 Files{get, path} ------------->|  before Start and after its end, too
//	  |<------- Reply 5, Data 5/1, EOF, Exited 5 |
//	  | Request 9 Shutdown --------------------->|  kill, sync, read-only
//	  |<------------------------------- Reply 9  |  power off
//
// # Finding the place again
//
// A guest that was restored from memory may have been stopped in the middle of
// a frame, its own or one of the host's. Preamble is 16 bytes that are no valid
// header; a reader that is out of place looks for it and skips everything else.
// [Client.Resume] first sends one longest frame of zeros, which ends whatever
// the agent was reading and cannot be a frame, and then greets with a new epoch.
package wire

import (
	"time"

	"proa/internal/isolation"
)

// Version is the protocol's version. Both sides must have the same.
const Version = 3

// PortName is the name of the virtio-serial port that the agent looks for.
const PortName = "proa.agent"

// Limits of the protocol, in bytes unless said otherwise.
const (
	MaxData    = 32<<10 - HeaderLen // payload of one Data frame; with its header one buffer of the port driver
	MaxRequest = 4 << 20            // payload of one Request: arguments and environment may be long
	MaxReply   = 512 << 10          // payload of one Reply to Processes
	MaxNote    = 16 << 10           // payload of any other Reply, and of Error, Exited and Hello
	Window     = 128 << 10          // unconsumed bytes of one stream
	// MaxProcesses is how many processes with streams one connection carries.
	MaxProcesses = 1024
	// MaxPending is how many requests may wait for their reply.
	MaxPending = 256
)

// Op is what a request asks for.
type Op uint8

// The requests.
const (
	OpSetup     Op = 1 + iota // Setup -> nothing
	OpStart                   // isolation.Process -> Started
	OpExec                    // isolation.Process -> Started
	OpSignal                  // Signal -> nothing
	OpResize                  // Resize -> nothing
	OpStats                   // nothing -> GuestStats
	OpProcesses               // nothing -> []isolation.ProcessInfo
	OpSetTime                 // int64, Unix nanoseconds -> nothing
	OpPing                    // nothing -> nothing
	OpUpdate                  // Limits -> nothing
	OpShutdown                // nothing -> nothing; the guest powers off after the reply
	OpFiles                   // rootfs.Request -> Started, with no pid
	opEnd
)

// Greeting is the host's Hello.
type Greeting struct {
	Version int    `json:"version"`
	Epoch   uint32 `json:"epoch"`
}

// Welcome is the agent's Hello.
type Welcome struct {
	Version int    `json:"version"`
	Epoch   uint32 `json:"epoch"`
	Build   string `json:"build"`  // version of the agent program
	Kernel  string `json:"kernel"` // release of the guest's kernel
	// Where the boot's time went, counted from the kernel's start.
	KernelTime  time.Duration `json:"kernelTime"`  // until the agent's first instruction
	ModulesTime time.Duration `json:"modulesTime"` // loading modules
	ReadyTime   time.Duration `json:"readyTime"`   // until the port was open
	Warnings    []string      `json:"warnings,omitempty"`
}

// Setup says what the guest is made of. It is sent once, before Start.
type Setup struct {
	RootDevice  string   `json:"rootDevice"`         // EROFS index, such as /dev/vda1
	DataDevices []string `json:"dataDevices"`        // one per flat layer, in index order
	RWDevice    string   `json:"rwDevice,omitempty"` // ext4 of the writable layer; empty: memory, gone with the VM
	Readonly    bool     `json:"readonly,omitempty"` // --read-only
	// Privileged leaves /sys writable, as Docker does.
	Privileged bool `json:"privileged,omitempty"`

	Hostname string          `json:"hostname"`
	Domain   string          `json:"domain,omitempty"`
	NICs     []isolation.NIC `json:"nics,omitempty"` // found by MAC; Tap is not used
	// Contents of /etc/resolv.conf, /etc/hosts and /etc/hostname; an empty one leaves the image's file.
	ResolvConf string `json:"resolvConf,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
	// Workdir is made in the root where it is missing; one that cannot be made is left out.
	Workdir      string `json:"workdir,omitempty"`
	HostnameFile string `json:"hostnameFile,omitempty"`

	Mounts []isolation.Mount `json:"mounts,omitempty"` // tmpfs and copies
	// Unstub, UnstubParents and FixedFiles are those of isolation.Root and
	// isolation.Network.
	Unstub        bool              `json:"unstub,omitempty"`
	UnstubParents bool              `json:"unstubParents,omitempty"`
	FixedFiles    bool              `json:"fixedFiles,omitempty"`
	Sysctls       map[string]string `json:"sysctls,omitempty"`
	MaskedPaths   []string          `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string          `json:"readonlyPaths,omitempty"`
	ShmBytes      int64             `json:"shmBytes,omitempty"` // size of /dev/shm; 0: 64 MiB
	Time          int64             `json:"time,omitempty"`     // Unix nanoseconds to set the clock to; 0: leave it
	Init          bool              `json:"init,omitempty"`     // --init: a reaper is process 1 of the user's
	Limits        Limits            `json:"limits"`
}

// Limits are those that the guest's kernel keeps; what concerns the whole VM
// (memory, processors) is the host's.
type Limits struct {
	Pids int64 `json:"pids,omitempty"` // tasks of the user's; 0 and less: unlimited
}

// GuestStats is one reading of what the guest's kernel counts.
type GuestStats struct {
	MemoryTotal     uint64        `json:"memoryTotal"` // bytes, as are all below
	MemoryFree      uint64        `json:"memoryFree"`
	MemoryAvailable uint64        `json:"memoryAvailable"`
	MemoryCached    uint64        `json:"memoryCached"`   // page cache
	InactiveFile    uint64        `json:"inactiveFile"`   // what docker stats subtracts
	CPUUser         time.Duration `json:"cpuUser"`        // all CPUs together
	CPUSystem       time.Duration `json:"cpuSystem"`      // with interrupts
	Pids            uint64        `json:"pids"`           // without kernel threads and the agent
	OOMKills        uint64        `json:"oomKills"`       // since boot
	Uptime          time.Duration `json:"uptime"`         // since boot
	DiskRead        uint64        `json:"diskReadBytes"`  // all virtual disks
	DiskWritten     uint64        `json:"diskWriteBytes"` // all virtual disks
}

// Started answers Start and Exec.
type Started struct {
	PID int `json:"pid"` // in the guest
}

// Signal asks for a signal to be sent to a process.
type Signal struct {
	Process uint32 `json:"process"`
	Signal  int    `json:"signal"` // Linux number
}

// Resize asks for a new size of a process's terminal.
type Resize struct {
	Process uint32 `json:"process"`
	Rows    uint16 `json:"rows"`
	Cols    uint16 `json:"cols"`
}

// Exited tells how a process ended.
type Exited struct {
	Code      int   `json:"code"`             // 0..255; 128+n after signal n
	Signal    int   `json:"signal,omitempty"` // that ended it
	OOMKilled bool  `json:"oomKilled,omitempty"`
	At        int64 `json:"at"` // Unix nanoseconds by the guest's clock
	// Failure says why a Files request was not carried out; nil for success.
	Failure *Failure `json:"failure,omitempty"`
}

// FailureKind sorts failures of requests; the first three are those of isolation.StartKind.
type FailureKind string

// The kinds that travel.
const (
	FailNotFound   FailureKind = FailureKind(isolation.StartNotFound)
	FailNotAllowed FailureKind = FailureKind(isolation.StartNotAllowed)
	FailFailed     FailureKind = FailureKind(isolation.StartFailed)
	FailGone       FailureKind = "gone"  // no such process (any more)
	FailInvalid    FailureKind = "state" // not possible now: Start before Setup, a second Setup
	// Of Files alone.
	FailNoFile  FailureKind = "no-file"  // nothing has that path
	FailBad     FailureKind = "bad"      // the request or its stream makes no sense
	FailRefused FailureKind = "refused"  // the root does not allow it
	FailFull    FailureKind = "full"     // the disk is
	FailUnknown FailureKind = "not-here" // the agent does not know the operation
)

// Failure is the payload of Error.
type Failure struct {
	Kind FailureKind `json:"kind"`
	Step string      `json:"step"`
	Why  string      `json:"why"`
}

// Error gives the step and the reason.
func (f *Failure) Error() string { return "cannot " + f.Step + ": " + f.Why }
