package daemon

import (
	"net"
	"syscall"

	"google.golang.org/grpc"

	"proa/internal/builder"
	"proa/internal/builder/steps"
	"proa/internal/builder/store"
	"proa/internal/isolation"
)

// openBuilders makes the room that starts builders, and what they are shown of
// the engine.
func (h *house) openBuilders() (err error) {
	var st syscall.Statfs_t
	var disk int64
	if err := syscall.Statfs(h.cfg.DataRoot, &st); err == nil {
		disk = int64(st.Blocks) * st.Bsize
	}
	limit, err := h.cfg.cacheLimit(disk)
	if err != nil {
		return err
	}
	most, err := h.cfg.maxLayer()
	if err != nil {
		return err
	}
	h.builders, err = builder.Open(builder.Config{
		Binary: h.cfg.Builder, DataRoot: h.cfg.DataRoot, ExecRoot: h.cfg.ExecRoot, CgroupParent: h.cfg.CgroupParent,
		Default: isolation.Kind(h.cfg.BuildIsolation), Idle: h.cfg.BuildIdle, Certs: h.cfg.CertsDir,
		BootID: h.bootID, Gateway: h.gateway, Log: h.log,
		MaxFile: most, MaxCache: limit, Reserved: limit / 10, MinFree: disk / 20,
		Busy: h.heap.Begin, Serve: h.serveBuilder,
	})
	if err != nil {
		return err
	}
	h.closing(h.builders.Close)
	return nil
}

// serveBuilder shows a builder the store and the steps.
func (h *house) serveBuilder(kind isolation.Kind, l net.Listener) error {
	s := grpc.NewServer(store.Options(func(err error) { h.log.Error("the builder's store", "err", err) })...)
	store.Register(s, h.images)
	steps.Register(s, h.engine, kind)
	return s.Serve(l)
}
