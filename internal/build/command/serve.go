package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/moby/buildkit/util/bklog"
	"github.com/sirupsen/logrus"

	"proa/internal/build"
	"proa/internal/build/wire"
	"proa/internal/failure"
	"proa/internal/pace"
)

const (
	// heapRate trades CPU for memory: between builds the builder is idle.
	heapRate = 60
)

// serve is the builder. It ends with ctx, or when the engine has gone.
func serve(ctx context.Context) error {
	tellVersion()
	heap := pace.New(heapRate)
	syscall.Umask(0o022)
	setup := os.NewFile(wire.Setup, "setup")
	cfg, err := wire.Read(setup)
	if err != nil {
		return failure.Hint(err, "`proa-build serve` is started by proad; it has no use by hand")
	}
	setup.Close()
	for _, fd := range []int{wire.Listener, wire.Lifeline} {
		syscall.CloseOnExec(fd)
	}
	l, err := net.FileListener(os.NewFile(wire.Listener, "listener"))
	if err != nil {
		return fmt.Errorf("cannot use the builder's socket: %w", err)
	}
	// Lives as long as the engine does; nothing is saved, since nothing would
	// answer: the engine's store is the engine's.
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(wire.Lifeline, "lifeline"))
		fmt.Fprintln(os.Stderr, "the engine has gone; the builder ends")
		os.Exit(0)
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	level := logrus.ErrorLevel
	if cfg.Debug {
		level = logrus.InfoLevel
	}
	bklog.L.Logger.SetLevel(level)
	logrus.SetLevel(level)
	scratch := filepath.Join(cfg.Run, wire.Scratch)
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return fmt.Errorf("cannot make the builder's directory: %w", err)
	}
	// Everything temporary, mounts included, lies where the engine looks for
	// it after this process has gone.
	if err := os.Setenv("TMPDIR", scratch); err != nil {
		return err
	}
	parts, closeParts, err := build.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	parts.Busy = heap.Begin
	b, err := build.New(ctx, cfg, parts)
	if err != nil {
		return errors.Join(err, closeParts())
	}
	log.Info("builder is ready", "kind", cfg.Kind)
	err = b.Serve(ctx, l)
	return errors.Join(err, b.Close(), closeParts())
}
