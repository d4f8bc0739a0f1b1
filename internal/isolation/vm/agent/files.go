package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"proa/internal/isolation/userdb"
	"proa/internal/isolation/vm/wire"
	"proa/internal/rootfs"
	"proa/internal/sys"
)

// files are what Files requests work on: descriptors of the agent's own, taken
// before anything of the user's runs. The user's processes have other mounts.
type files struct {
	tree rootfs.Tree
	// slots bounds how many requests are carried out at once: each has buffers.
	slots chan struct{}
}

// stubs are what the agent makes in a root to mount on.
var stubs = []string{"/proc", "/sys", "/dev", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}

// openFiles takes the descriptors of a root on which nothing is mounted yet.
func (a *Agent) openFiles(root *os.File) error {
	f := &files{slots: make(chan struct{}, 4)}
	f.tree.Exclude = stubs
	f.tree.User = func(name string) (uid, gid uint32, err error) {
		uid, gid, _, _, err = userdb.Lookup(f.tree.Root, name, nil)
		return uid, gid, err
	}
	view, err := sys.CloneTree(root, "", false)
	if err != nil {
		return err
	}
	defer view.Close()
	if err := sys.Attach(view, viewDir); err != nil {
		return err
	}
	if f.tree.Bare, err = sys.CloneTree(root, "", false); err != nil {
		return err
	}
	for _, o := range []struct {
		to   **os.File
		path string
	}{{&f.tree.Root, viewDir}, {&f.tree.Upper, diskDir + "/upper"}, {&f.tree.Lower, lowerDir}} {
		if *o.to, err = sys.OpenPath(o.path); err != nil {
			return err
		}
	}
	// What the host was told is there is there after a cut of the power, too.
	f.tree.Sync = func() error {
		disk, err := os.Open(diskDir)
		if err != nil {
			return err
		}
		defer disk.Close()
		return sys.SyncFS(disk)
	}
	a.files = f
	return nil
}

// serveFiles answers a Files request; its streams begin after the answer.
func (a *Agent) serveFiles(h wire.Header, r *rootfs.Request) (reply any, after func(), err error) {
	ctx, stop := context.WithCancel(context.Background())
	p := &process{agent: a, head: wire.Header{Epoch: h.Epoch, ID: h.ID}, stop: stop}
	p.stdin = wire.NewInbox(a.conn, h.Epoch, h.ID, wire.Stdin)
	p.out[wire.Stdout] = wire.NewOutbox(a.conn, h.Epoch, h.ID, wire.Stdout)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == fresh || a.state == down {
		stop()
		return nil, nil, &wire.Failure{Kind: wire.FailInvalid, Step: string(r.Op) + " files", Why: "the guest is " + stateNames[a.state]}
	}
	if a.epoch != h.Epoch {
		stop()
		return nil, nil, wire.ErrStale
	}
	a.procs[h.ID] = p
	return wire.Started{}, func() { a.background(func() { p.serveFiles(ctx, r) }) }, nil
}

// serveFiles carries the request out and tells how it ended.
func (p *process) serveFiles(ctx context.Context, r *rootfs.Request) {
	a := p.agent
	in, feed := io.Pipe()
	drain, out := io.Pipe()
	a.background(func() { feed.CloseWithError(p.stdin.Deliver(feed)) })
	sent := make(chan struct{})
	a.background(func() {
		defer close(sent)
		drain.CloseWithError(p.out[wire.Stdout].SendFrom(drain, make([]byte, wire.HeaderLen+wire.MaxData), false))
	})
	undo := context.AfterFunc(ctx, func() {
		in.CloseWithError(context.Canceled)
		p.out[wire.Stdout].End(context.Canceled)
	})
	err := p.carryOut(ctx, r, in, out)
	in.CloseWithError(io.ErrClosedPipe) // the rest of the input is of no use
	p.stdin.Refuse()
	p.stdin.End(io.EOF)
	out.Close()
	<-sent
	undo()
	p.stop()
	a.mu.Lock()
	if a.procs[p.head.ID] == p {
		delete(a.procs, p.head.ID)
	}
	a.mu.Unlock()
	x := wire.Exited{At: time.Now().UnixNano()}
	if err != nil {
		x.Failure = wire.FilesFailure(r.Op, err)
	}
	head := p.head
	head.Type = wire.TypeExited
	_ = a.conn.SendMessage(head, x) // an error of the connection is the reader's to notice
}

// carryOut is the work itself; a panic in it is that request's error.
func (p *process) carryOut(ctx context.Context, r *rootfs.Request, in io.Reader, out io.Writer) (err error) {
	a := p.agent
	select {
	case a.files.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-a.files.slots }()
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("cannot %s files: panic: %v", r.Op, v)
		}
	}()
	if r.Mount > 0 {
		t, err := a.mountTree(r.Mount)
		defer closeTree(&t)
		if err != nil {
			return err
		}
		return t.Serve(ctx, r, in, out)
	}
	if r.Op == rootfs.OpLayer && a.hasEnded() {
		if err := a.room.stubs.remove(); err != nil {
			return err
		}
	}
	if r.Still && a.room != nil {
		defer a.room.group.hold()()
	}
	return a.files.tree.Serve(ctx, r, in, out)
}

// hasEnded says whether the main process ran and is gone.
func (a *Agent) hasEnded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state == ended
}
