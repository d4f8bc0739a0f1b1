package command

import (
	"fmt"
	"net"
	"sync"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"proa/internal/build/unchanged"
)

// burst is how many files are looked at before the builder is told of them.
const burst = 128

// mostHeld is how many files of a directory that may be as it was are held
// back: of a larger one the builder is told while it is walked.
const mostHeld = 100_000

// files lets the builder read dirs. It is BuildKit's provider, but what a walk
// finds goes out in bursts through c: a packet for each file, sent when it is
// found, would wake client, engine and builder once for every file.
func files(dirs map[string]fsutil.FS, c *cork) (session.Attachable, error) {
	owned := filesync.StaticDirSource{}
	for name, dir := range dirs {
		// As everywhere in Docker: files of a context belong to root.
		dir, err := fsutil.NewFilterFS(dir, &fsutil.FilterOpt{Map: func(_ string, st *types.Stat) fsutil.MapResult {
			st.Uid, st.Gid = 0, 0
			return fsutil.MapResultKeep
		}})
		if err != nil {
			return nil, fmt.Errorf("cannot use the context: %w", err)
		}
		owned[name] = dir
	}
	return provider{filesync.NewFSSyncProvider(owned).(filesync.FileSyncServer), c}, nil
}

type provider struct {
	filesync.FileSyncServer
	cork *cork
}

// Register adds the service to a session.
func (p provider) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, p) }

// DiffCopy tells of a directory's files and sends those that are asked for.
func (p provider) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	asked, _ := metadata.FromIncomingContext(stream.Context())
	return p.FileSyncServer.DiffCopy(&inBursts{FileSync_DiffCopyServer: stream, cork: p.cork, asked: unchanged.From(asked)})
}

// inBursts holds files back until there are enough, or something else is said.
// While the builder knows of earlier states of the directory, it holds all of
// them back, and drops them if the directory is in one of these states.
// fsutil sends one message at a time.
type inBursts struct {
	filesync.FileSync_DiffCopyServer
	cork   *cork
	held   []*types.Packet
	asked  unchanged.Asked // about the states that the builder knows of
	sum    unchanged.Sum
	walked bool
}

// SendMsg sends m and what was held back before it, or holds it back.
func (b *inBursts) SendMsg(m any) error {
	p, ok := m.(*types.Packet)
	if ok && p.Type == types.PACKET_STAT && !b.walked {
		if p.Stat != nil {
			if len(b.asked) > 0 {
				if err := b.sum.Add(p.Stat); err != nil {
					return err
				}
			}
			if len(b.held) < burst || len(b.asked) > 0 && len(b.held) < mostHeld {
				b.held = append(b.held, p)
				return nil
			}
			b.asked = nil
		} else {
			b.walked = true
			if header, ok := b.asked.Answer(b.sum.String()); ok {
				b.held = nil
				return b.SendHeader(header)
			}
		}
	}
	if len(b.held) > 0 {
		b.cork.put()
		defer b.cork.pull()
	}
	for _, h := range b.held {
		if err := b.FileSync_DiffCopyServer.SendMsg(h); err != nil {
			return err
		}
	}
	b.held = b.held[:0]
	return b.FileSync_DiffCopyServer.SendMsg(m)
}

// corked is how much a cork holds back, in bytes. It is less than the flow
// control of HTTP/2 lets a sender be ahead (64 KiB), so that a sender never
// waits for what its own cork keeps from going out.
const corked = 16 << 10

// cork makes few large writes to a connection of many small ones, while it is
// put on. HTTP/2's server in a session writes each message by itself.
type cork struct {
	mu   sync.Mutex
	on   int // how many bursts are under way
	conn net.Conn
	buf  []byte
}

// around gives conn with the cork, which is for one connection.
func (c *cork) around(conn net.Conn) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	return &corkedConn{conn, c}
}

// put puts the cork on.
func (c *cork) put() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on++
}

// pull takes it off and writes what was held back. That it cannot be written
// the next write says as well.
func (c *cork) pull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on--; c.on == 0 {
		_ = c.flush()
	}
}

func (c *cork) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

type corkedConn struct {
	net.Conn
	c *cork
}

// Write writes p, or holds it back.
func (w *corkedConn) Write(p []byte) (int, error) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.c.on == 0 || len(w.c.buf)+len(p) > corked {
		if err := w.c.flush(); err != nil {
			return 0, err
		}
	}
	if w.c.on == 0 || len(p) > corked {
		return w.Conn.Write(p)
	}
	w.c.buf = append(w.c.buf, p...)
	return len(p), nil
}
