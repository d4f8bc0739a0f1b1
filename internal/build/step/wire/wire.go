// Package wire owns what the builder says to the engine to have a step run: the
// messages of two gRPC methods, and how they lie in bytes. It opens no
// connection and runs nothing: package build/step asks, package builder/steps
// answers.
//
// Both methods are streams both ways, on the connection that carries the
// engine's store. A message is one byte that says what it is, and its payload:
// JSON where it has fields, the bytes themselves where it is data.
//
//	/proa.Steps/Run, /proa.Steps/Exec
//
//	builder                                   engine
//	  | Ask{Run or Exec}                        |
//	  |---------------------------------------->|
//	  |<------------ Begun{warnings} -----------|   the process runs
//	  |<------------ Stdout{}, Stderr{} --------|   in the order in which they were read
//	  | Stdin{bytes}                            |   no bytes: its end
//	  |---------------------------------------->|
//	  |<------------ Took{} --------------------|   and only now the next Stdin
//	  | Signal{n}, Resize{rows, cols}, Kill{}   |   at any time after Ask
//	  |---------------------------------------->|
//	  |<------------ Ended{exit or error} ------|   the last one: nothing of the step is
//	  |<------------ end of the stream ---------|   left but the files that it wrote
//
// A builder that reads slowly holds the process back, by the flow control of
// HTTP/2. That Stdin waits for Took keeps the way free for what follows it, even
// while the process does not read.
//
// A stream that breaks is a builder that died, or gave up: the engine kills the
// step. An error that is Ended's is the step's; one of the stream is the
// engine's.
package wire

import (
	"encoding/json"
	"fmt"
	"sync"

	"google.golang.org/grpc/encoding"

	"proa/internal/isolation"
	shimwire "proa/internal/shim/wire"
)

// Names of the service and its methods.
const (
	Service  = "proa.Steps"
	RunName  = "Run"
	ExecName = "Exec"
)

// Kind says what a message is.
type Kind byte

// All kinds and their payloads.
const (
	Ask    Kind = 1 // Run or Exec
	Begun  Kind = 2
	Stdin  Kind = 3 // bytes
	Took   Kind = 4 // nothing
	Stdout Kind = 5 // bytes
	Stderr Kind = 6 // bytes
	Signal Kind = 7 // Order
	Resize Kind = 8 // Order
	Kill   Kind = 9 // nothing
	Ended  Kind = 10
)

// MaxData is the most bytes of a stream in one message.
const MaxData = 32 << 10

// Run asks for a step.
type Run struct {
	ID       string   `json:"id"` // the builder's name for it, unique while it runs
	Process  Process  `json:"process"`
	Hostname string   `json:"hostname"`
	Root     Mount    `json:"root"` // Target and Selector are not used
	Mounts   []Mount  `json:"mounts,omitempty"`
	Network  string   `json:"network"`         // bridge, none or host
	Hosts    []string `json:"hosts,omitempty"` // "name:address"
	Insecure bool     `json:"insecure,omitempty"`
	// UnstubParents: directories that were made only to mount something below
	// them go after the end, as mount points do in any case.
	UnstubParents bool   `json:"unstubParents,omitempty"`
	Limits        Limits `json:"limits,omitzero"`
}

// Process is what runs. In an Exec, empty fields are the step's own.
type Process struct {
	Args     []string `json:"args"`
	Env      []string `json:"env,omitempty"`
	Cwd      string   `json:"cwd,omitempty"`
	User     string   `json:"user,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
}

// Mount is files and the place where they are to appear. Type, Source and
// Options are those of mount(8), as containerd's snapshotters give them.
type Mount struct {
	Type     string   `json:"type"`
	Source   string   `json:"source,omitempty"`
	Options  []string `json:"options,omitempty"`
	Selector string   `json:"selector,omitempty"` // the part of the files that appears
	Target   string   `json:"target,omitempty"`
	Readonly bool     `json:"readonly,omitempty"`
}

// Limits bound what a step takes. Zero is unlimited; swap is memory and swap
// together, as Docker means it.
type Limits struct {
	CgroupParent string   `json:"cgroupParent,omitempty"`
	Memory       int64    `json:"memory,omitempty"` // bytes
	Swap         int64    `json:"swap,omitempty"`   // bytes
	CPUShares    int64    `json:"cpuShares,omitempty"`
	CPUPeriod    int64    `json:"cpuPeriod,omitempty"` // microseconds
	CPUQuota     int64    `json:"cpuQuota,omitempty"`  // microseconds
	CPUs         string   `json:"cpus,omitempty"`
	Mems         string   `json:"mems,omitempty"`
	Ulimits      []Ulimit `json:"ulimits,omitempty"`
}

// Ulimit is one resource limit by Docker's name ("nofile"); -1 is unlimited.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Exec asks for one more process in a step that runs.
type Exec struct {
	ID      string  `json:"id"` // of the step
	Process Process `json:"process"`
}

// Start is the payload of Begun.
type Start struct {
	// Warnings say what is not as it should be although it runs.
	Warnings []string `json:"warnings,omitempty"`
}

// Order is the payload of Signal and Resize.
type Order struct {
	Signal int    `json:"signal,omitempty"`
	Rows   uint16 `json:"rows,omitempty"`
	Cols   uint16 `json:"cols,omitempty"`
}

// End is the payload of Ended: how the process ended, or why it never ran.
type End struct {
	Exit  *isolation.Exit `json:"exit,omitempty"`
	Error *shimwire.Error `json:"error,omitempty"`
}

// Message is one message of a stream.
type Message struct {
	Kind Kind
	Data []byte
}

// CodecName is the content subtype of the streams.
const CodecName = "proa-step"

func init() { encoding.RegisterCodec(codec{}) }

// codec puts a Message into bytes: its kind, then its payload.
type codec struct{}

func (codec) Name() string { return CodecName }

func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(*Message)
	if !ok {
		return nil, fmt.Errorf("cannot encode a %T: only messages of steps travel here", v)
	}
	return append(append(make([]byte, 0, 1+len(m.Data)), byte(m.Kind)), m.Data...), nil
}

func (codec) Unmarshal(b []byte, v any) error {
	m, ok := v.(*Message)
	if !ok || len(b) == 0 || b[0] < byte(Ask) || b[0] > byte(Ended) {
		return fmt.Errorf("cannot decode a message of a step: %d bytes, not one of them known", len(b))
	}
	m.Kind, m.Data = Kind(b[0]), b[1:]
	return nil
}

// Stream is either end of a gRPC stream.
type Stream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// Conn is one end of a conversation. One goroutine reads at a time; writing is
// safe from several.
type Conn struct {
	s  Stream
	mu sync.Mutex // held while a message is sent, which one goroutine may do at a time
}

// NewConn wraps a stream.
func NewConn(s Stream) *Conn { return &Conn{s: s} }

// Send sends a message with fields; nil has none.
func (c *Conn) Send(kind Kind, v any) error {
	m := &Message{Kind: kind}
	if v != nil {
		var err error
		if m.Data, err = json.Marshal(v); err != nil {
			return fmt.Errorf("cannot encode a message of a step: %w", err)
		}
	}
	return c.send(m)
}

// Data sends bytes of a stream; no bytes make one empty message.
func (c *Conn) Data(kind Kind, b []byte) error {
	for {
		n := min(len(b), MaxData)
		if err := c.send(&Message{Kind: kind, Data: b[:n]}); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

func (c *Conn) send(m *Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.s.SendMsg(m)
}

// Next reads one message; its payload belongs to the caller.
func (c *Conn) Next() (Kind, []byte, error) {
	var m Message
	if err := c.s.RecvMsg(&m); err != nil {
		return 0, nil, err
	}
	return m.Kind, m.Data, nil
}

// Receive reads a message that must be of one kind.
func (c *Conn) Receive(want Kind, v any) error {
	kind, b, err := c.Next()
	if err != nil {
		return err
	}
	if kind != want {
		return fmt.Errorf("cannot read a message of a step: kind %d instead of %d", kind, want)
	}
	return Decode(b, v)
}

// Decode decodes a payload with fields.
func Decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("cannot decode a message of a step: %w", err)
	}
	return nil
}
