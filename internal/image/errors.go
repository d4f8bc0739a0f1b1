package image

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// DigestError says that a blob is not what its name promises: a damaged or
// forged archive. Its kind is errdefs.ErrInvalidArgument.
type DigestError struct {
	Want, Got digest.Digest
}

// Error names both digests.
func (e *DigestError) Error() string {
	return fmt.Sprintf("a blob has digest %s but should have %s (the archive is damaged)", e.Got, e.Want)
}

// Unwrap gives the kind.
func (e *DigestError) Unwrap() error { return errdefs.ErrInvalidArgument }

// PlatformError says that an image is for other machines than this one. Its
// kind is errdefs.ErrNotFound, as a registry's answer would be.
type PlatformError struct {
	Want string   // "linux/amd64"
	Have []string // what the image offers
	// Asked is set when somebody named the platform, and it is not the host's.
	Asked bool
}

// Error names both platforms.
func (e *PlatformError) Error() string {
	if e.Asked {
		return fmt.Sprintf("the image is for %s and not for %s, which was asked for", list(e.Have), e.Want)
	}
	return fmt.Sprintf("the image is for %s and this host is %s", list(e.Have), e.Want)
}

// Unwrap gives the kind.
func (e *PlatformError) Unwrap() error { return errdefs.ErrNotFound }

func list(names []string) string {
	switch len(names) {
	case 0:
		return "no known platform"
	case 1:
		return names[0]
	}
	out := names[0]
	for _, n := range names[1 : len(names)-1] {
		out += ", " + n
	}
	return out + " and " + names[len(names)-1]
}

// explain gives errors that a person meets their kind and a hint: a full
// disk, an archive that ends early.
func (s *Store) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: the disk of the data root %q is full (\"image prune\" frees what no container needs): %w", err, s.cfg.Root, errdefs.ErrResourceExhausted)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: the stream ends too early (truncated?): %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
