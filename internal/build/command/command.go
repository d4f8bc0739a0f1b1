// Package command is the program proa-build: `serve` is the builder that proad
// starts, `build` is the client that `proa build` becomes. It owns flags,
// progress on the terminal and the words of errors; what is built, and how, is
// package build's.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	// BuildKit's codec carries names that are not UTF-8, as docker's clients send them; gRPC's own refuses those.
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"

	"proa/internal/failure"
	"proa/internal/version"
)

// app is what the commands share.
type app struct {
	in       *os.File
	out, err io.Writer
}

// Main runs one command line and returns the exit code.
func Main(args []string) int {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second ctrl-C ends it at once
	return failure.Report(a.err, "proa", a.run(ctx, args))
}

func (a *app) run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return failure.Hint(errors.New("a command is missing"), "proad runs `proa-build serve`; people run `proa build`")
	}
	switch args[0] {
	case "serve":
		return serve(ctx)
	case "build":
		return a.build(ctx, args[1:])
	case "version", "--version":
		fmt.Fprintln(a.out, "proa-build version", version.Version)
		return nil
	}
	return failure.Hint(fmt.Errorf("unknown command %q", args[0]), "proad runs `proa-build serve`; people run `proa build`")
}
