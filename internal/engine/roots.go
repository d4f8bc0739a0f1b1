package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"proa/internal/sys"
)

// NoRootsError says that the data root lies where no container can have its
// files: its file system cannot be what an overlay writes to, or its owners
// cannot be shifted.
type NoRootsError struct {
	DataRoot string
	On       string // kernel's name of the file system
	Err      error
	HostIDs  bool // containers in the host's user namespace would work
}

func (e *NoRootsError) Error() string {
	return fmt.Sprintf("cannot make roots of containers in %q, which lies on %s: %v", e.DataRoot, e.On, e.Err)
}

func (e *NoRootsError) Unwrap() error { return e.Err }

// Hint is what to do about it.
func (e *NoRootsError) Hint() string {
	hint := "name a data root on ext4, xfs or btrfs (proad --data-root DIR); inside a container that is a volume of it"
	if e.HostIDs {
		hint += "; or start proad with --userns host, without the protection of user namespaces"
	}
	return hint
}

// TryRoots finds out whether containers can have their files here, by making a
// root as a container has it, writing to it and removing from it. The error is
// a *NoRootsError, or says why it could not be tried.
func (e *Engine) TryRoots() error {
	err := e.tryRoots(e.userns != nil)
	var no *NoRootsError
	if errors.As(err, &no) && e.userns != nil && e.cfg.UserNS != "strict" {
		no.HostIDs = e.tryRoots(false) == nil
	}
	return err
}

func (e *Engine) tryRoots(shifted bool) error {
	// What a kill leaves there goes with all that belongs to no container.
	dir, err := os.MkdirTemp(e.containersDir(), "try-")
	if err != nil {
		return fmt.Errorf("cannot try a container's root: %w", err)
	}
	defer sys.RemoveTree(dir)
	on, err := sys.FileSystemType(dir)
	if err != nil {
		return err
	}
	lower := filepath.Join(dir, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return fmt.Errorf("cannot try a container's root: %w", err)
	}
	if err := os.WriteFile(filepath.Join(lower, "old"), []byte("old"), 0o644); err != nil {
		return fmt.Errorf("cannot try a container's root: %w", err)
	}
	err = e.useRoot(StepFiles{Source: lower, Upper: filepath.Join(dir, "rw")}, shifted)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("cannot try a container's root: %w", err) // a full disk is no property of a file system
	}
	return &NoRootsError{DataRoot: e.cfg.DataRoot, On: on, Err: err}
}

// useRoot makes a root and does in it what needs more of the file system below
// than a plain file: a copy upward, a whiteout.
func (e *Engine) useRoot(f StepFiles, shifted bool) error {
	root, err := e.joinOverlay(f, shifted, false)
	if err != nil {
		return err
	}
	defer root.Close()
	return sys.OnThread(func(t *sys.Thread) error {
		if shifted {
			if err := t.FileIDs(e.ids.Root(), e.ids.Root()); err != nil {
				return err
			}
		}
		old, err := sys.OpenInRoot(root, "old", os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = old.Write([]byte(" and new"))
		if err := errors.Join(err, old.Close()); err != nil {
			return err
		}
		return sys.RemoveTreeAt(root, "old")
	})
}
