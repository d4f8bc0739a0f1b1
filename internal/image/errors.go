package image

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"proa/internal/image/remote/pick"
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

// PlatformError says that an image is for other machines than this one.
type PlatformError = pick.PlatformError

// TagError says that a repository has no such tag, and what it has.
type TagError = pick.TagError

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
