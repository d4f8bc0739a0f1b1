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
	"strings"
	"syscall"

	"proa/internal/version"
)

// app is what the commands share.
type app struct {
	in       *os.File
	out, err io.Writer
}

// exitError ends the program with a code; a nil err prints nothing more.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// hinted adds what to try next to an error.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Main runs one command line and returns the exit code.
func Main(args []string) int {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := a.run(ctx, args)
	if err == nil {
		return 0
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		if exit.err == nil {
			return code
		}
	}
	fmt.Fprintf(a.err, "proa: %s\n", strings.TrimRight(err.Error(), "\n"))
	var h *hinted
	if errors.As(err, &h) && h.hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", h.hint)
	}
	return code
}

func (a *app) run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return &hinted{errors.New("a command is missing"), "proad runs `proa-build serve`; people run `proa build`"}
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
	return &hinted{fmt.Errorf("unknown command %q", args[0]), "proad runs `proa-build serve`; people run `proa build`"}
}
