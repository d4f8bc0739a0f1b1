package engine

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"proa/internal/isolation"
)

// Engine holds all containers of one data root.
type Engine struct{}

// Create makes a container of an image, not running. Errors:
// errdefs.ErrNotFound (image; the text begins "No such image: "),
// ErrAlreadyExists/ErrConflict (name), ErrInvalidArgument (a knob that is wrong
// or cannot be honoured), ErrNotImplemented.
func (e *Engine) Create(ctx context.Context, r CreateRequest) (CreateResult, error) {
	return CreateResult{}, errdefs.ErrNotImplemented
}

// Start starts a container that does not run. One that runs already gives
// errdefs.ErrNotModified. An executable that is missing or not allowed gives an
// error that wraps *isolation.StartError and is errdefs.ErrInvalidArgument.
func (e *Engine) Start(ctx context.Context, ref string) error { return errdefs.ErrNotImplemented }

// Stop signals, waits, kills. One that does not run gives errdefs.ErrNotModified.
func (e *Engine) Stop(ctx context.Context, ref string, o StopOptions) error {
	return errdefs.ErrNotImplemented
}

// Kill sends one signal ("KILL", "SIGTERM", "9"; "" is SIGKILL). One that does
// not run gives errdefs.ErrConflict.
func (e *Engine) Kill(ctx context.Context, ref, signal string) error {
	return errdefs.ErrNotImplemented
}

// Restart stops it if it runs and starts it.
func (e *Engine) Restart(ctx context.Context, ref string, o StopOptions) error {
	return errdefs.ErrNotImplemented
}

// Pause stops every process of a running container.
func (e *Engine) Pause(ctx context.Context, ref string) error { return errdefs.ErrNotImplemented }

// Unpause lets a paused container go on.
func (e *Engine) Unpause(ctx context.Context, ref string) error { return errdefs.ErrNotImplemented }

// Remove deletes a container and all that it left. One that runs gives
// errdefs.ErrConflict unless forced.
func (e *Engine) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	return errdefs.ErrNotImplemented
}

// Rename gives a container another name; a taken one is errdefs.ErrConflict.
func (e *Engine) Rename(ctx context.Context, ref, name string) error {
	return errdefs.ErrNotImplemented
}

// Wait registers at once and returns a channel that gets exactly one value
// when the condition is met ("" means not-running); it is closed without one
// when ctx ends.
func (e *Engine) Wait(ctx context.Context, ref string, c container.WaitCondition) (<-chan WaitResult, error) {
	return nil, errdefs.ErrNotImplemented
}

// Attach prepares to carry the main process's streams, before or after its
// start; nothing is lost between Attach and Run. The caller must end it with
// Run or Close.
func (e *Engine) Attach(ctx context.Context, ref string, o AttachOptions) (*Attachment, error) {
	return nil, errdefs.ErrNotImplemented
}

// Attachment carries streams between a client and one process.
type Attachment struct{}

// TTY says whether the process has a terminal: then there is one raw stream.
func (a *Attachment) TTY() bool { return false }

// Run copies until the process has ended and its output is delivered, the
// detach keys were typed (nil as well), a writer failed, or ctx ended. A nil
// stdin sends nothing; the end of stdin reaches the process where Docker lets it.
func (a *Attachment) Run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	return errdefs.ErrNotImplemented
}

// Close gives up an attachment that will not be run.
func (a *Attachment) Close() error { return nil }

// Resize sets the size of the main process's terminal.
func (e *Engine) Resize(ctx context.Context, ref string, rows, cols uint16) error {
	return errdefs.ErrNotImplemented
}

// LogLine is one line of a log, without its line end where Partial.
type LogLine struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Text   []byte // with its line end if it had one
}

// Logs reads a container's log. The iteration ends at the log's end, or with
// Follow when the container's output has ended or ctx ends.
func (e *Engine) Logs(ctx context.Context, ref string, o LogsOptions) (iter.Seq2[LogLine, error], error) {
	return nil, errdefs.ErrNotImplemented
}

// Get finds a container by id, name or unique id prefix. errdefs.ErrNotFound
// ("No such container: x"); an ambiguous prefix is ErrInvalidArgument.
func (e *Engine) Get(ctx context.Context, ref string) (*Container, error) {
	return nil, errdefs.ErrNotImplemented
}

// List gives containers, newest first.
func (e *Engine) List(ctx context.Context, o ListOptions) ([]*Container, error) {
	return nil, errdefs.ErrNotImplemented
}

// Count counts containers by state.
func (e *Engine) Count() Counts { return Counts{} }

// Size measures the disk use of a container.
func (e *Engine) Size(ctx context.Context, ref string) (Size, error) {
	return Size{}, errdefs.ErrNotImplemented
}

// Stats reads a container's use of the host once.
func (e *Engine) Stats(ctx context.Context, ref string) (*Sample, error) {
	return nil, errdefs.ErrNotImplemented
}

// Top lists the processes of a running container.
func (e *Engine) Top(ctx context.Context, ref string) ([]isolation.ProcessInfo, error) {
	return nil, errdefs.ErrNotImplemented
}

// Update changes limits and the restart policy, of a running one at once.
func (e *Engine) Update(ctx context.Context, ref string, u container.UpdateConfig) ([]string, error) {
	return nil, errdefs.ErrNotImplemented
}

// ExecCreate prepares one more process in a running container.
func (e *Engine) ExecCreate(ctx context.Context, ref string, r container.ExecCreateRequest) (string, error) {
	return "", errdefs.ErrNotImplemented
}

// ExecStart starts it. Detached: the Attachment is nil. A process that cannot
// be started gives an error that wraps *isolation.StartError, and its ExitCode
// is 126 or 127; Docker writes that message into the hijacked stream.
func (e *Engine) ExecStart(ctx context.Context, execID string, o ExecStartOptions) (*Attachment, error) {
	return nil, errdefs.ErrNotImplemented
}

// ExecResize sets the size of an exec'd process's terminal.
func (e *Engine) ExecResize(ctx context.Context, execID string, rows, cols uint16) error {
	return errdefs.ErrNotImplemented
}

// ExecGet finds an exec'd process by its id.
func (e *Engine) ExecGet(ctx context.Context, execID string) (*Exec, error) {
	return nil, errdefs.ErrNotImplemented
}

// Events gives what happened since (zero: from now on) and goes on until the
// time until (zero: until ctx ends). Filters as Docker's: container, event,
// image, label, type, volume, network, daemon, scope.
func (e *Engine) Events(ctx context.Context, since, until time.Time, filters map[string][]string) (<-chan events.Message, error) {
	return nil, errdefs.ErrNotImplemented
}

// Prune removes containers that do not run. Filters: until, label, label!.
func (e *Engine) Prune(ctx context.Context, filters map[string][]string) (*PruneResult, error) {
	return nil, errdefs.ErrNotImplemented
}
