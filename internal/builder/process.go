package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/build/wire"
	"proa/internal/isolation"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
	"proa/internal/version"
)

const (
	// startLimit is how long a builder may take until it answers.
	startLimit = 30 * time.Second
	// stopLimit is how long one that was asked to end may take.
	stopLimit = 5 * time.Second
	// tailBytes is how much of its log is told to clients when it died.
	tailBytes = 1500
)

// process is one running builder.
type process struct {
	b      *Builders
	kind   isolation.Kind
	pidfd  *os.File
	pid    int
	plain  *http.Transport // HTTP/1.1
	grpc   *http.Transport // HTTP/2
	engine net.Listener
	life   *os.File // the engine's end of the lifeline
	logged int64    // size of the log when it began

	gone  chan struct{} // closed when the process has ended
	swept chan struct{} // closed when nothing of it is left
	// Set before gone and swept are closed.
	status   string
	sweepErr error

	mu     sync.Mutex // guards what follows
	users  int
	ending bool
	idle   *time.Timer
}

// launch starts a builder and waits until it answers.
func (b *Builders) launch(ctx context.Context, kind isolation.Kind) (_ *process, err error) {
	run := b.run(kind)
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the builder's directory: %w", err)
	}
	p := &process{b: b, kind: kind, gone: make(chan struct{}), swept: make(chan struct{})}
	socket, err := sys.ListenUnix(filepath.Join(run, wire.BuildSocket))
	if err != nil {
		return nil, err
	}
	defer socket.Close() // the builder has it; a dead builder must not keep clients waiting
	if p.engine, err = net.Listen("unix", filepath.Join(run, wire.EngineSocket)); err != nil {
		return nil, fmt.Errorf("cannot serve the builder: %w", err)
	}
	started := false
	defer func() {
		if !started {
			p.engine.Close()
		}
	}()
	log, err := os.OpenFile(filepath.Join(run, wire.LogFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the builder's log: %w", err)
	}
	defer log.Close()
	if p.logged, err = rotate(log); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the null device: %w", err)
	}
	defer null.Close()
	life, theirs, err := sys.Pipe(true)
	if err != nil {
		return nil, err
	}
	p.life = life
	defer theirs.Close()
	gateway := ""
	if b.cfg.Gateway != nil {
		gateway = b.cfg.Gateway()
	}
	text, err := json.Marshal(wire.Config{
		Kind: string(kind), Root: b.data(kind), Run: run, Certs: b.cfg.Certs, Version: version.Version, BootID: b.cfg.BootID, Gateway: gateway,
		MaxFile: b.cfg.MaxFile, MaxCache: b.cfg.MaxCache, Reserved: b.cfg.Reserved, MinFree: b.cfg.MinFree,
	})
	if err != nil {
		return nil, err
	}
	setup, err := sys.MemFile("setup", text)
	if err != nil {
		return nil, err
	}
	defer setup.Close()
	if err := os.MkdirAll(b.data(kind), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the builder's directory: %w", err)
	}
	group, _, err := cgroup.Create(b.group(kind), &isolation.Resources{})
	if err != nil {
		return nil, fmt.Errorf("cannot make the builder's control group: %w", err)
	}
	defer group.Close()
	pidfd := -1
	p.pid, err = syscall.ForkExec(b.cfg.Binary, []string{"proa-build", "serve"}, &syscall.ProcAttr{
		Dir:   "/",
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), socket.Fd(), setup.Fd(), theirs.Fd()},
		Env:   environment(),
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		p.life.Close()
		return nil, errors.Join(fmt.Errorf("cannot start the builder %q: %w", b.cfg.Binary, err), group.Delete())
	}
	if p.pidfd, err = sys.PidFile(pidfd); err == nil {
		err = group.Add(p.pid)
	}
	if err != nil {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(p.pid, nil, 0, nil)
		p.life.Close()
		return nil, errors.Join(err, b.sweep(kind))
	}
	started = true
	p.connect(filepath.Join(run, wire.BuildSocket))
	go func() {
		if err := b.cfg.Serve(kind, p.engine); err != nil && !errors.Is(err, net.ErrClosed) {
			b.cfg.Log.Warn("store of the builder", "kind", kind, "err", err)
		}
	}()
	go p.watch()
	if err := p.ready(ctx); err != nil {
		p.end()
		return nil, err
	}
	b.cfg.Log.Debug("builder started", "kind", kind, "pid", p.pid)
	return p, nil
}

// environment is the builder's: ways out to registries, and nothing that is
// meant for the engine alone.
func environment() []string {
	env := []string{"GOTRACEBACK=all", "PATH=" + os.Getenv("PATH"), "HOME=/root", "SSL_CERT_FILE=" + os.Getenv("SSL_CERT_FILE"), "SSL_CERT_DIR=" + os.Getenv("SSL_CERT_DIR")}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// rotate keeps a log from growing for ever, and tells where it stands.
func rotate(log *os.File) (int64, error) {
	const most = 4 << 20
	st, err := log.Stat()
	if err == nil && st.Size() > most {
		if err = log.Truncate(0); err == nil {
			return 0, nil
		}
	}
	if err != nil {
		return 0, fmt.Errorf("cannot open the builder's log: %w", err)
	}
	return st.Size(), nil
}

// connect makes the ways to the builder's socket.
func (p *process) connect(socket string) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	p.plain = &http.Transport{DialContext: dial, DisableCompression: true}
	p.grpc = &http.Transport{DialContext: dial, DisableCompression: true, Protocols: &two}
}

// ready waits until the builder answers.
func (p *process) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-p.gone:
			stop()
		case <-ctx.Done():
		}
	}()
	// Its socket exists already: the first request waits in its backlog.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://builder/ready", nil)
	if err != nil {
		return err
	}
	resp, err := p.plain.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusNoContent {
			return nil
		}
		err = fmt.Errorf("it answers %s", resp.Status)
	}
	select {
	case <-p.gone:
		return p.died("cannot start the builder: it ended")
	default:
	}
	return fmt.Errorf("cannot start the builder: %w", err)
}

// watch waits for the end of the process and removes what it leaves.
func (p *process) watch() {
	_ = sys.PidfdWait(p.pidfd)
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(p.pid, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	p.status = "exit code " + fmt.Sprint(ws.ExitStatus())
	if ws.Signaled() {
		p.status = "signal: " + ws.Signal().String()
	}
	p.mu.Lock()
	expected := p.ending
	p.ending = true
	if p.idle != nil {
		p.idle.Stop()
	}
	p.mu.Unlock()
	close(p.gone)
	if !expected {
		p.b.cfg.Log.Error("the builder ended unexpectedly", "kind", p.kind, "status", p.status, "log", p.tail())
	}
	p.life.Close()
	p.engine.Close()
	p.plain.CloseIdleConnections()
	p.grpc.CloseIdleConnections()
	p.pidfd.Close()
	if p.sweepErr = p.b.sweep(p.kind); p.sweepErr != nil {
		p.b.cfg.Log.Error("cannot remove what the builder left", "kind", p.kind, "err", p.sweepErr)
	}
	close(p.swept)
}

// enter counts one more user; false when the builder is ending.
func (p *process) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ending {
		return false
	}
	p.users++
	if p.idle != nil {
		p.idle.Stop()
		p.idle = nil
	}
	return true
}

// leave counts one user less; after the last one the builder has its idle time.
func (p *process) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users > 0 || p.ending {
		return
	}
	p.idle = time.AfterFunc(p.b.cfg.Idle, func() {
		p.mu.Lock()
		idle := p.users == 0 && !p.ending
		p.mu.Unlock()
		if idle {
			p.end()
		}
	})
}

// end asks the builder to end, makes it end, and waits until nothing is left.
func (p *process) end() {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	_ = sys.PidfdSignal(p.pidfd, syscall.SIGTERM)
	select {
	case <-p.gone:
	case <-time.After(stopLimit):
		_ = sys.PidfdSignal(p.pidfd, syscall.SIGKILL)
	}
	<-p.swept
}

// died is the error for clients of a builder that has ended.
func (p *process) died(what string) error {
	text := fmt.Sprintf("%s (%s); its log is %s", what, p.status, filepath.Join(p.b.run(p.kind), wire.LogFile))
	if tail := p.tail(); tail != "" {
		text += " and ends with:\n" + tail
	}
	return fmt.Errorf("%s: %w", text, errdefs.ErrUnavailable)
}

// lost is the error of a request that the builder did not finish: that it has
// ended, if it does so at once, else err.
func (p *process) lost(err error) error {
	select {
	case <-p.gone:
		return p.died("the builder ended unexpectedly")
	case <-time.After(2 * time.Second):
		return fmt.Errorf("cannot reach the builder: %w", err)
	}
}

// tail is the beginning of the last thing that it wrote: of a panic the reason
// and the first goroutine, not the last of hundreds.
func (p *process) tail() string {
	f, err := os.Open(filepath.Join(p.b.run(p.kind), wire.LogFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.NewSectionReader(f, p.logged, 8<<20))
	for _, mark := range []string{"\npanic: ", "\nfatal error: ", "\nSIG", "\nunexpected fault"} {
		if at := bytes.Index(append([]byte("\n"), b...), []byte(mark)); at >= 0 {
			b = b[at:]
			return strings.TrimSpace(string(b[:min(len(b), tailBytes)]))
		}
	}
	return strings.TrimSpace(string(b[max(0, len(b)-tailBytes):]))
}

// group is the path of a kind's control group.
func (b *Builders) group(kind isolation.Kind) string {
	return path.Join("/", b.cfg.CgroupParent, "build-"+string(kind))
}
