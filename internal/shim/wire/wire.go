// Package wire owns the bytes between the engine and a shim: frames, requests,
// replies and how an error keeps its kind on the way. It never opens, accepts
// or interprets; package shim asks and package shim/server answers.
//
// A connection to a shim's unix socket is one conversation. Everything on it,
// both ways, is a frame with the header of Docker's multiplexed streams, so
// that the output of a process can be passed on to a Docker client as it is:
//
//	+------+---+---+---+--------------------+-----------------
//	| kind | 0 | 0 | 0 | length, big endian | length bytes ...
//	+------+---+---+---+--------------------+-----------------
//
// An ordinary conversation:
//
//	engine                                   shim
//	  | Request{v, op, ...}                   |   within 15 s, or the shim hangs up
//	  |-------------------------------------->|
//	  |<------- Reply{v, error or results} ---|   then the next Request, or close
//
// op "attach" (before the start too: then from the first byte) and op "exec"
// turn the conversation into a carrier of streams after a Reply without error:
//
//	| Stdin{bytes} ...                      |   Stdin{} of no length: end of input
//	|-------------------------------------->|
//	|<------- Stdout{bytes}, Stderr{bytes} -|   a reader that is slow slows the process down
//	|<------- Exit{isolation.Exit} ---------|   after the last byte and, for the main
//	|<------- close ------------------------|   process, after the exit record was written
//
// op "files" does the same for an operation on the files of an instance: its
// input comes as Stdin, its output goes as Stdout, and a second Reply ends it.
//
//	| Request{files: rootfs.Request}        |
//	|-------------------------------------->|
//	|<---------------- Reply{} -------------|   it has begun, or Error
//	| Stdin{bytes} ... Stdin{}              |
//	|-------------------------------------->|
//	|<------- Stdout{bytes} ... ------------|
//	|<---------------- Reply{} -------------|   it is done, or Error
//
// A close by the engine's side, at any time, cancels "files". Any other stream
// it detaches: it ends neither the process nor its input. A close by the shim without Exit means that the shim
// was killed.
//
// Versions: each Request and Reply carries the version of its sender. A shim
// answers an op that it does not know with kind "not-implemented"; fields that
// it does not know it ignores. An engine is never older than the shims it
// meets, so it speaks down: what a version lacks is listed at Version.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"proa/internal/isolation"
	"proa/internal/rootfs"
)

// Version of this protocol. 1: the first, which lacks the op "usage" and Usage
// in exits. 2: has them. 3: has "files".
const Version = 3

// Kind of a frame. The first three are Docker's.
type Kind byte

// All kinds.
const (
	Stdin  Kind = 0
	Stdout Kind = 1
	Stderr Kind = 2
	Asks   Kind = 16 // a Request in JSON
	Tells  Kind = 17 // a Reply in JSON
	Ended  Kind = 18 // an isolation.Exit in JSON
)

// Greatest payloads in bytes. A control message holds a Process at most, whose
// arguments and environment the kernel limits to 2 MiB on common systems.
const (
	MaxData    = 32 << 10
	MaxControl = 8 << 20
)

// Op names what is asked for.
type Op string

// All operations, and the fields of Request that they read.
const (
	Hello  Op = "hello"  // Reply: Shim, Pid, Phase
	Create Op = "create" // waits until the instance is created; Reply: Pid
	Start  Op = "start"
	Signal Op = "signal" // Exec, Signal
	Resize Op = "resize" // Exec, Rows, Cols
	Pause  Op = "pause"
	Resume Op = "resume"
	Stats  Op = "stats"  // Reply: Stats
	Usage  Op = "usage"  // Reply: Usage
	Top    Op = "top"    // Reply: Top
	Update Op = "update" // Resources
	Attach Op = "attach" // Streams
	Exec   Op = "exec"   // Exec, Process, Streams; Reply: Pid
	Wait   Op = "wait"   // Exec; Reply: Exit
	Files  Op = "files"  // Files, Streams; of a VM only
	Delete Op = "delete" // kill what runs, remove everything, end; answered when all is gone
)

// Phase is where an instance is in its life.
type Phase string

// The phases, in order; Paused goes back to Running.
const (
	Creating Phase = "creating"
	Created  Phase = "created"
	Starting Phase = "starting"
	Running  Phase = "running"
	Paused   Phase = "paused"
	Exited   Phase = "exited"   // the exit record is written, what is left is being removed
	Failed   Phase = "failed"   // Driver.Create did not succeed
	Deleting Phase = "deleting" // removed without having been started
)

// Streams says which ends of a process a conversation carries.
type Streams struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Request is what the engine sends.
type Request struct {
	Version   int                  `json:"v"`
	Op        Op                   `json:"op"`
	Exec      string               `json:"exec,omitempty"` // empty: the main process
	Signal    int                  `json:"signal,omitempty"`
	Rows      uint16               `json:"rows,omitempty"`
	Cols      uint16               `json:"cols,omitempty"`
	Streams   Streams              `json:"streams,omitzero"`
	Process   *isolation.Process   `json:"process,omitempty"`
	Resources *isolation.Resources `json:"resources,omitempty"`
	Files     *rootfs.Request      `json:"files,omitempty"`
}

// Reply is what the shim answers.
type Reply struct {
	Version int                     `json:"v"`
	Error   *Error                  `json:"error,omitempty"`
	Phase   Phase                   `json:"phase,omitempty"`
	Shim    int                     `json:"shim,omitempty"` // pid of the shim
	Pid     int                     `json:"pid,omitempty"`  // of the instance or the exec'd process
	Exit    *isolation.Exit         `json:"exit,omitempty"`
	Stats   *isolation.Stats        `json:"stats,omitempty"`
	Usage   *isolation.Usage        `json:"usage,omitempty"`
	Top     []isolation.ProcessInfo `json:"top,omitempty"`
}

// Conn is one conversation. One goroutine reads at a time; writing is safe from several.
type Conn struct {
	f  *os.File
	r  *bufio.Reader
	in []byte

	mu  sync.Mutex // guards out, held while a frame is written: frames do not interleave
	out []byte
}

// NewConn wraps a connected socket.
func NewConn(f *os.File) *Conn { return &Conn{f: f, r: bufio.NewReaderSize(f, 4<<10)} }

// File is the socket, for deadlines.
func (c *Conn) File() *os.File { return c.f }

// Close ends the conversation and wakes who waits on it.
func (c *Conn) Close() error { return c.f.Close() }

// Send writes a control message.
func (c *Conn) Send(kind Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode a message: %w", err)
	}
	if len(b) > MaxControl {
		return fmt.Errorf("cannot send a message of %d bytes: more than %d", len(b), MaxControl)
	}
	return c.frame(kind, b)
}

// Data writes bytes of a stream, in frames of at most MaxData. No bytes make
// one empty frame.
func (c *Conn) Data(kind Kind, b []byte) error {
	for {
		n := min(len(b), MaxData)
		if err := c.frame(kind, b[:n]); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

func (c *Conn) frame(kind Kind, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out[:0], byte(kind), 0, 0, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(b)))
	c.out = append(c.out, b...)
	_, err := c.f.Write(c.out)
	if cap(c.out) > 2*MaxData {
		c.out = nil // one large message must not stay for the life of the shim
	}
	return err
}

// Next reads one frame. The payload is valid until the next call. io.EOF is a
// close between frames, io.ErrUnexpectedEOF one inside a frame.
func (c *Conn) Next() (Kind, []byte, error) {
	var h [8]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return 0, nil, err
	}
	kind, n := Kind(h[0]), binary.BigEndian.Uint32(h[4:])
	limit := uint32(MaxControl)
	switch kind {
	case Stdin, Stdout, Stderr:
		limit = MaxData
	case Asks, Tells, Ended:
	default:
		return 0, nil, fmt.Errorf("cannot read a frame: kind %d is not known", kind)
	}
	if n > limit || h[1]|h[2]|h[3] != 0 {
		return 0, nil, fmt.Errorf("cannot read a frame of kind %d and %d bytes: more than %d, or not a frame", kind, n, limit)
	}
	// Memory is taken as bytes arrive: a header alone is only a claim.
	c.in = c.in[:0]
	for left := int(n); left > 0; {
		step := min(left, MaxData)
		at := len(c.in)
		if cap(c.in)-at < step {
			c.in = append(c.in[:cap(c.in)], make([]byte, step-(cap(c.in)-at))...)
		}
		c.in = c.in[:at+step]
		if _, err := io.ReadFull(c.r, c.in[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, nil, err
		}
		left -= step
	}
	in := c.in
	if cap(c.in) > 2*MaxData {
		c.in = nil
	}
	return kind, in, nil
}

// Receive reads a control message of one kind.
func (c *Conn) Receive(want Kind, v any) error {
	kind, b, err := c.Next()
	if err != nil {
		return err
	}
	if kind != want {
		return fmt.Errorf("cannot read a message: frame of kind %d instead of %d", kind, want)
	}
	return Decode(b, v)
}

// Decode decodes a control message.
func Decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("cannot decode a message: %w", err)
	}
	return nil
}
