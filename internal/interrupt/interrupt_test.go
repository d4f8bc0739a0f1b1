package interrupt

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	b, err := io.ReadAll(Reader(t.Context(), strings.NewReader("all of it")))
	if err != nil || string(b) != "all of it" {
		t.Fatalf("%q, %v", b, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	src := strings.NewReader("begun")
	r := Reader(ctx, src)
	if n, err := r.Read(make([]byte, 2)); n != 2 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	cancel()
	if n, err := r.Read(make([]byte, 2)); n != 0 || err != context.Canceled {
		t.Errorf("%d, %v", n, err)
	}
	if src.Len() != 3 {
		t.Errorf("%d bytes are left, want 3", src.Len())
	}

	// A reason is told, and who asks whether it was cancelled hears yes.
	why := errors.New("the layer is here already")
	caused, stop := context.WithCancelCause(t.Context())
	stop(why)
	_, err = Reader(caused, src).Read(make([]byte, 2))
	if !errors.Is(err, context.Canceled) || !errors.Is(err, why) || err.Error() != "context canceled: the layer is here already" {
		t.Errorf("%v", err)
	}
}
