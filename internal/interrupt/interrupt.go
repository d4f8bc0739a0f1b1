// Package interrupt ends with a context what would go on by itself: reading a
// stream that knows none, such as an entry of a tar, of which a hole is as long
// as its header says while nothing of it has to arrive. It owns that reader and
// the words of its end, and it never starts a goroutine: a read that waits for
// a peer is ended by whoever can close the peer's connection.
package interrupt

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Reader is r until ctx is done: the next Read then fails with an error that is
// ctx.Err() and context.Cause(ctx) for errors.Is, and reads nothing. A Read that
// has begun is not cut off.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (i *reader) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		cause := context.Cause(i.ctx)
		if errors.Is(cause, err) {
			return 0, cause
		}
		return 0, fmt.Errorf("%w: %w", err, cause)
	}
	return i.r.Read(p)
}
