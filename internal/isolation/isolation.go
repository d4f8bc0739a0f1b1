// Package isolation is the contract between the engine and whatever an
// instance's processes sit behind. It owns the words: Spec (what is wanted),
// Driver and Instance (who makes it so), Exit (how it ended). It owns no code
// that touches Linux; the drivers below it do.
//
// A Spec is complete: whoever holds one, and the open files it names, needs to
// ask nobody anything. The engine writes it, the shim reads it, the driver
// carries it out. Nothing in it is a Docker shape; nothing in it has a default
// that is filled in later.
//
//	engine                         shim                        driver
//	  | Spec + files (fork/exec)    |                            |
//	  |---------------------------->| Create(spec, files) ------>| namespaces or VMM exist,
//	  |<-- created {pid} -----------|<----------- Instance ------| nothing of the user's runs
//	  | plug the network            |                            |
//	  | start --------------------->| Instance.Start ----------->| exec of the user's process
//	  |<-- started or Error{Kind} --|                            |
//	  |        exec, signal, resize, stats ...                   |
//	  |                             | Instance.Wait <------------| Exit
//	  |<-- exit record (file) ------| Instance.Delete ---------->| nothing is left
package isolation

import (
	"context"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Kind names what a container's processes sit behind.
type Kind string

// The two walls.
const (
	Container Kind = "container" // namespaces, cgroups and seccomp on the host's kernel
	VM        Kind = "vm"        // a guest kernel of its own under QEMU
)

// Spec is everything a driver must know to make one instance. Paths are
// absolute; paths of the host are resolved by the engine's mount namespace,
// paths inside are resolved below the instance's root and never as strings.
type Spec struct {
	ID       string `json:"id"` // 64 hex digits, as Docker's container ids
	Kind     Kind   `json:"kind"`
	Hostname string `json:"hostname"`
	Domain   string `json:"domain,omitempty"`

	Process   Process           `json:"process"`
	Init      bool              `json:"init,omitempty"` // run a reaper as PID 1 (--init)
	Root      Root              `json:"root"`
	Mounts    []Mount           `json:"mounts,omitempty"`
	Devices   []Device          `json:"devices,omitempty"` // besides the standard ones
	Resources Resources         `json:"resources"`
	Network   Network           `json:"network"`
	Sysctls   map[string]string `json:"sysctls,omitempty"`

	// What only the container driver reads.
	Namespaces Namespaces `json:"namespaces"`
	// MaskedPaths and ReadonlyPaths apply where they exist; an absent one is no error.
	MaskedPaths   []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string `json:"readonlyPaths,omitempty"`

	// What only the VM driver reads; nil for a container.
	Machine *Machine `json:"machine,omitempty"`
	// Hold keeps the instance after its main process has ended, so that its
	// files can still be read, until it is deleted.
	Hold bool `json:"hold,omitempty"`

	// Dir is a directory of the host that belongs to this instance alone while
	// it runs (0700, below the engine's exec root). A driver may put sockets
	// there and removes what it put.
	Dir string `json:"dir"`
	// Log says where the output of the main process is written.
	Log Log `json:"log"`
}

// Process is one process to start inside, the main one or an exec'd one. Its
// user is already resolved to numbers except where NamedUser says otherwise.
type Process struct {
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Cwd      string   `json:"cwd"` // created if missing for the main process, as Docker does
	Terminal bool     `json:"terminal,omitempty"`
	Rows     uint16   `json:"rows,omitempty"` // first size of the terminal; 0 means the kernel's default
	Cols     uint16   `json:"cols,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"` // false: /dev/null

	// User is Docker's USER string ("", "1000", "app", "1000:1000", "app:grp").
	// It is looked up in the root's own /etc/passwd and /etc/group at start
	// time, by the driver, after the root exists; Groups are added to it by
	// name or number (--group-add).
	User   string   `json:"user,omitempty"`
	Groups []string `json:"groups,omitempty"`

	Capabilities    uint64   `json:"capabilities"` // bounding, permitted and effective set, one bit per capability
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	Seccomp         []byte   `json:"seccomp,omitempty"` // compiled classic BPF, 8 bytes an instruction, little endian; empty: unconfined
	Rlimits         []Rlimit `json:"rlimits,omitempty"`
	OOMScoreAdj     int      `json:"oomScoreAdj,omitempty"`
	Umask           *uint32  `json:"umask,omitempty"`
}

// Rlimit is one resource limit; Type is the RLIMIT_ number of Linux.
type Rlimit struct {
	Type int    `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Root says what the root file system is made of. Image is read-only and
// shared; what the instance writes goes to Upper (container) or to the
// machine's disk (VM).
type Root struct {
	Image    File   `json:"image"`            // container: a detached mount of the merged image (O_PATH); unused by a VM
	Places   File   `json:"places,omitempty"` // container: a detached mount of rootfs.MakePlaces, the lowest layer; 0: none
	Upper    string `json:"upper"`            // container: directory of the host that holds "upper" and "work"
	Readonly bool   `json:"readonly"`         // --read-only
	Volatile bool   `json:"volatile"`         // skip syncing the writable layer (only when it will not outlive the instance)

	// Tree is a detached mount that is the root as it is and is written in
	// place, instead of Image and Upper (container only).
	Tree File `json:"tree,omitempty"`
	// Unstub asks that mount points which the root did not have are taken away
	// again by Delete, if they are still empty: what is mounted is none of the
	// root's files. With UnstubParents so are the directories on the way to them.
	Unstub        bool `json:"unstub,omitempty"`
	UnstubParents bool `json:"unstubParents,omitempty"`
}

// MountType is the kind of one mount.
type MountType string

// What can be mounted into an instance.
const (
	MountBind  MountType = "bind"  // Source is a file or directory of the host; volumes are binds as well
	MountTmpfs MountType = "tmpfs" // memory; Size and Mode count
	// MountCopy is a place of the machine's own, which Files requests fill before
	// the start: what they put there under the name "data" appears at Target,
	// with a writable layer of its own unless it is read-only. InMemory keeps it
	// off the disk (VM only).
	MountCopy MountType = "copy"
)

// Mount is one mount into an instance, in the order in which it is made.
// Source is already open, so that what was checked is what is mounted.
type Mount struct {
	Type     MountType `json:"type"`
	Source   File      `json:"source,omitempty"` // bind: O_PATH descriptor of the source
	Origin   string    `json:"origin,omitempty"` // bind: path of the source, for messages only; tmpfs: what the mount table shows as its source
	Target   string    `json:"target"`           // absolute path inside; created if missing
	Readonly bool      `json:"readonly,omitempty"`
	// Detached says that a bind's Source is a mount that is attached nowhere and
	// was made for this one use (before Linux 6.15 it cannot be copied).
	Detached bool `json:"detached,omitempty"`
	// ReadonlyTop leaves mounts below Source writable where Readonly is set.
	ReadonlyTop bool `json:"readonlyTop,omitempty"`
	// NonRecursive leaves out mounts below Source.
	NonRecursive bool `json:"nonRecursive,omitempty"`
	// Propagation is one of "private" (default), "slave", "shared" and their r-forms.
	Propagation string `json:"propagation,omitempty"`
	// Idmap shifts owners so that uid 0 inside is uid 0 of the file (DESIGN 4.6).
	// False where the container runs in the host's user namespace.
	Idmap    bool   `json:"idmap,omitempty"`
	InMemory bool   `json:"inMemory,omitempty"` // copy
	Size     int64  `json:"size,omitempty"`     // tmpfs: bytes; 0 is the kernel's default of half the memory
	Mode     uint32 `json:"mode,omitempty"`     // tmpfs: permission bits; 0 means those of the directory at Target, 01777 where there is none
	Options  string `json:"options,omitempty"`  // tmpfs: further options, comma separated ("noexec,nosuid,uid=1000")
}

// Device is one device node to make inside.
type Device struct {
	Path  string `json:"path"` // inside
	Type  string `json:"type"` // "c" or "b"
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Mode  uint32 `json:"mode"`  // permission bits
	Allow string `json:"allow"` // "rwm" or fewer
}

// Resources are limits of the whole instance. Zero means unlimited.
type Resources struct {
	CgroupParent string `json:"cgroupParent"` // path below each hierarchy's root; the instance's own cgroup is CgroupParent/ID
	MemoryBytes  int64  `json:"memoryBytes,omitempty"`
	SwapBytes    int64  `json:"swapBytes,omitempty"` // memory+swap as Docker means it; -1 unlimited
	MemoryLow    int64  `json:"memoryLow,omitempty"` // --memory-reservation
	CPUQuota     int64  `json:"cpuQuota,omitempty"`  // microseconds per CPUPeriod
	CPUPeriod    int64  `json:"cpuPeriod,omitempty"` // microseconds
	CPUShares    int64  `json:"cpuShares,omitempty"` // 2..262144, 1024 is the norm
	CpusetCpus   string `json:"cpusetCpus,omitempty"`
	CpusetMems   string `json:"cpusetMems,omitempty"`
	Pids         int64  `json:"pids,omitempty"` // -1 and 0: unlimited
	// Privileged lifts the device list.
	Privileged bool `json:"privileged,omitempty"`
}

// NetworkMode says what the instance's network is.
type NetworkMode string

// The three networks that there are.
const (
	NetworkNone   NetworkMode = "none"   // loopback only
	NetworkHost   NetworkMode = "host"   // the host's own; a VM refuses it
	NetworkBridge NetworkMode = "bridge" // one NIC on a bridge
)

// InsertMount adds m to mounts that are in the order of their attachment: behind
// the last one that lies above its target, which would hide it, and before all
// others.
func InsertMount[M any](mounts []M, m M, target func(M) string) []M {
	place, to := 0, path.Clean(target(m))
	for i, o := range mounts {
		if strings.HasPrefix(to, strings.TrimSuffix(path.Clean(target(o)), "/")+"/") {
			place = i + 1
		}
	}
	return slices.Insert(slices.Clone(mounts), place, m)
}

// Network is what the instance sees of it. For a container the engine plugs
// the NIC into the created network namespace between Create and Start; a VM
// gets Tap as an open descriptor and its agent sets the addresses.
type Network struct {
	Mode NetworkMode `json:"mode"`
	NICs []NIC       `json:"nics,omitempty"`
	// Files that the driver puts at /etc/resolv.conf, /etc/hosts, /etc/hostname.
	// Paths of the host for a container (bind mounted, writable); the VM driver sends their contents.
	ResolvConf string `json:"resolvConf,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
	HostsName  string `json:"hostnameFile,omitempty"`
	// FixedFiles makes these files read-only inside.
	FixedFiles bool `json:"fixedFiles,omitempty"`
	// Held are descriptors the shim only keeps open: bound sockets of published ports.
	Held []File `json:"held,omitempty"`
}

// NIC is one network card as seen from inside.
type NIC struct {
	Name    string   `json:"name"`          // "eth0"
	MAC     string   `json:"mac"`           // "02:42:..."
	MTU     int      `json:"mtu"`           // bytes
	Address []string `json:"address"`       // CIDR, IPv4 first
	Gateway []string `json:"gateway"`       // one per family of Address
	Tap     File     `json:"tap,omitempty"` // VM only
}

// Namespaces of a container. A false field means the host's own.
type Namespaces struct {
	User bool  `json:"user"` // false: the host's user namespace (fallback, DESIGN 4.6)
	UIDs IDMap `json:"uids"`
	GIDs IDMap `json:"gids"`
	PID  bool  `json:"pid"`
	IPC  bool  `json:"ipc"`
	UTS  bool  `json:"uts"`
	Net  bool  `json:"net"`
	// Join names, for "pid", "ipc", "net" and "user", the open namespace of
	// another container to enter instead of making one.
	Join   map[string]File `json:"join,omitempty"`
	Cgroup bool            `json:"cgroup"`
}

// Machine is what the VM driver needs and the engine prepared.
type Machine struct {
	Binary    string   `json:"binary"` // qemu-system-*
	Args      []string `json:"args"`   // command line without the program; descriptors by number as in Files order
	Env       []string `json:"env,omitempty"`
	Files     []File   `json:"files"` // passed to QEMU, in order, from descriptor 3 on; behind them the driver adds the agent's socket
	UID       uint32   `json:"uid"`   // of the jailed VMM, never 0
	GID       uint32   `json:"gid"`
	Emulated  bool     `json:"emulated"`  // no KVM
	BootLimit Duration `json:"bootLimit"` // how long the agent may take to answer
	MemoryMiB int64    `json:"memoryMiB"` // of the guest
	// OverheadMiB is what the VMM may take besides: the cgroup's limit is both together.
	OverheadMiB int64 `json:"overheadMiB"`
	CPUs        int   `json:"cpus"`
	// JailPaths are the only paths of the host visible to the VMM, read-only.
	JailPaths []string `json:"jailPaths"`
	// Guest is what the agent is told about disks: see vm/wire.Setup.
	RootDevice  string   `json:"rootDevice"`  // EROFS index, such as /dev/vda1
	DataDevices []string `json:"dataDevices"` // one per flat layer, in index order
	RWDevice    string   `json:"rwDevice"`    // ext4 of the writable layer
}

// Log says how the shim writes the main process's output.
type Log struct {
	Driver   string `json:"driver"`   // "json-file" or "none"
	Path     string `json:"path"`     // first file; rotated ones are Path.1, Path.2, ...
	MaxBytes int64  `json:"maxBytes"` // per file; 0: no rotation
	MaxFiles int    `json:"maxFiles"`
	Compress bool   `json:"compress,omitempty"` // rotated files become Path.N.gz
	Buffer   int64  `json:"buffer,omitempty"`   // bytes of records that wait for the disk before they are dropped; 0: output waits
	// Attrs stand in each record.
	Attrs map[string]string `json:"attrs,omitempty"`
}

// File is the number of an open descriptor in the shim's process, handed over
// at its start. The zero value means none.
type File int

// Duration is a time.Duration that travels as nanoseconds.
type Duration = time.Duration

// Exit is how a process ended.
type Exit struct {
	Code      int       `json:"code"`             // 0..255; 128+n after signal n
	Signal    int       `json:"signal,omitempty"` // the signal that ended it
	OOMKilled bool      `json:"oomKilled,omitempty"`
	At        time.Time `json:"at"`
	Error     string    `json:"error,omitempty"` // why there is no true code: the VMM died, the shim was killed
	// Usage is the last reading before the instance was removed; of the main process only.
	Usage *Usage `json:"usage,omitempty"`
}

// Usage is what an instance has taken of the host since its start: the bill,
// where Stats is a reading for rates. An instance counts with everything of it
// that is in its control group, which is the whole VMM of a VM, guest included;
// the shim stands outside of the group and is told apart.
type Usage struct {
	Started time.Time `json:"started,omitzero"` // when the main process was executed
	Ended   time.Time `json:"ended,omitzero"`   // when it had ended, by the host's clock; zero while it runs
	Kernel  string    `json:"kernel"`           // release of the kernel that its processes see
	// Emulated says that the VM's processors are made by software.
	Emulated bool `json:"emulated,omitempty"`

	CPUNanos  uint64 `json:"cpuNanos"`
	CPUUser   uint64 `json:"cpuUser"`   // nanoseconds
	CPUSystem uint64 `json:"cpuSystem"` // nanoseconds
	// MemoryPeak is the most bytes that were charged to the group at one time:
	// memory of its processes, page cache that they were first to fill, kernel
	// memory. 0: this kernel keeps no peak (version 2 before Linux 5.19).
	MemoryPeak uint64 `json:"memoryPeak"`
	// BlockCounted says that the group's controller counts what block devices
	// carry. Version 1 on Linux 6.10 and later counts only where somebody set a
	// limit, and never what the kernel writes back later.
	BlockCounted bool   `json:"blockCounted,omitempty"`
	ReadBytes    uint64 `json:"readBytes"`
	WriteBytes   uint64 `json:"writeBytes"`
	// StoredBytes are all bytes that its processes, the shim among them, sent
	// towards storage, written back or not: write_bytes of /proc/PID/io.
	StoredBytes uint64 `json:"storedBytes"`
	Processes   int    `json:"processes"` // that are in the group now

	ShimCPUNanos   uint64 `json:"shimCPUNanos"`
	ShimMemoryPeak uint64 `json:"shimMemoryPeak"` // most resident bytes, shared program text included
}

// Stats is one reading of an instance's use of the host.
type Stats struct {
	Read        time.Time `json:"read"`
	CPUNanos    uint64    `json:"cpuNanos"`
	CPUUser     uint64    `json:"cpuUser"`          // nanoseconds
	CPUSystem   uint64    `json:"cpuSystem"`        // nanoseconds
	PerCPU      []uint64  `json:"perCPU,omitempty"` // nanoseconds of each CPU; only version 1 control groups count it
	Throttled   uint64    `json:"throttled"`        // periods
	ThrottledNs uint64    `json:"throttledNs"`
	Periods     uint64    `json:"periods"`
	MemoryBytes uint64    `json:"memoryBytes"` // with page cache
	MemoryCache uint64    `json:"memoryCache"` // inactive file pages, which docker stats subtracts
	MemoryLimit uint64    `json:"memoryLimit"`
	MemoryMax   uint64    `json:"memoryMax"`
	OOMKills    uint64    `json:"oomKills"`
	Pids        uint64    `json:"pids"`
	PidsLimit   uint64    `json:"pidsLimit"`
	ReadBytes   uint64    `json:"readBytes"`  // block devices
	WriteBytes  uint64    `json:"writeBytes"` // block devices
	RxBytes     uint64    `json:"rxBytes"`
	RxPackets   uint64    `json:"rxPackets"`
	RxErrors    uint64    `json:"rxErrors"`
	RxDropped   uint64    `json:"rxDropped"`
	TxBytes     uint64    `json:"txBytes"`
	TxPackets   uint64    `json:"txPackets"`
	TxErrors    uint64    `json:"txErrors"`
	TxDropped   uint64    `json:"txDropped"`
}

// Stdio are the ends that a process writes to and reads from. With a terminal
// only Stdin and Stdout count. A nil Stdin is /dev/null, a nil writer discards.
type Stdio struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Driver makes instances of one Kind. It runs inside the shim.
type Driver interface {
	// Create makes everything that an instance needs except running the
	// user's process: after it the namespaces (or the VMM) exist and the
	// network can be plugged. On error nothing is left.
	Create(ctx context.Context, spec *Spec) (Instance, error)
}

// Instance is one created container or VM.
type Instance interface {
	// Pid is the host process id: of the container's first process, or of the VMM.
	Pid() int
	// Start runs the main process with the given ends. It returns once the
	// exec has happened, or a *StartError that says why it did not.
	Start(ctx context.Context, stdio Stdio) (Running, error)
	// Exec runs one more process. Same errors as Start.
	Exec(ctx context.Context, p *Process, stdio Stdio) (Running, error)
	// Pause and Resume stop and continue every process inside.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Stats reads the use of the host. Network figures are zero where the
	// engine reads them itself.
	Stats(ctx context.Context) (*Stats, error)
	// Usage reads what it has taken since its creation, also after its last
	// process has ended, until Delete. It asks nothing of a guest. Times and what
	// concerns the shim are left to the caller.
	Usage(ctx context.Context) (*Usage, error)
	// Processes lists host pids (container) or guest pids (VM) with their command lines.
	Processes(ctx context.Context) ([]ProcessInfo, error)
	// Update changes limits while it runs.
	Update(ctx context.Context, r *Resources) error
	// Delete kills what still runs and removes all that Create made. It can be called twice.
	Delete(ctx context.Context) error
}

// Running is one running process of an instance, the main one or an exec'd one.
type Running interface {
	// Pid is the process id on the host (container) or in the guest (VM).
	Pid() int
	// Signal sends a signal by Linux number. A process that has ended is not found (errdefs.ErrNotFound).
	Signal(ctx context.Context, sig int) error
	Resize(ctx context.Context, rows, cols uint16) error
	// Wait returns after the process has ended AND its output was delivered
	// to Stdio (for an exec'd process: or one second passed since the end, since
	// a grandchild may hold the pipe, as Docker does).
	Wait(ctx context.Context) (Exit, error)
}

// ProcessInfo is one line of top.
type ProcessInfo struct {
	PID     int           `json:"pid"`
	PPID    int           `json:"ppid"`
	UID     uint32        `json:"uid"` // as seen inside
	Started time.Time     `json:"started"`
	CPU     time.Duration `json:"cpu"`
	TTY     string        `json:"tty"`
	Command string        `json:"command"`
	// What ps(1) knows besides.
	Name     string `json:"name,omitempty"`  // of the executable
	State    string `json:"state,omitempty"` // one letter of proc(5)
	Nice     int    `json:"nice,omitempty"`
	Threads  int    `json:"threads,omitempty"`
	Virtual  uint64 `json:"virtual,omitempty"`  // bytes
	Resident uint64 `json:"resident,omitempty"` // bytes
}

// StartKind sorts the reasons why a process could not be started, so that a
// client gets the exit code that Docker gives.
type StartKind string

// Docker's exit codes for them stand behind.
const (
	StartNotFound   StartKind = "not-found"   // 127: no such executable, or no such cwd
	StartNotAllowed StartKind = "not-allowed" // 126: not executable, a directory, exec format error
	StartFailed     StartKind = "failed"      // 125: everything else
)

// StartError says which step of a start failed and why.
type StartError struct {
	Kind StartKind `json:"kind"`
	Step string    `json:"step"` // "exec \"/bin/foo\"", "mount proc", ...
	Why  string    `json:"why"`
}

// Error gives the step and the reason.
func (e *StartError) Error() string { return "cannot " + e.Step + ": " + e.Why }

// Open turns a File number into an *os.File; nil for none.
func (f File) Open(name string) *os.File {
	if f == 0 {
		return nil
	}
	return os.NewFile(uintptr(f), name)
}
