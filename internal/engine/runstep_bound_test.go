package engine

import (
	"bytes"
	"testing"

	"github.com/containerd/errdefs"
)

// A guest that sends without end fills no disk of the host (CWE-770).
func TestGuestCannotSendWithoutEnd(t *testing.T) {
	var got bytes.Buffer
	b := &bounded{w: &got, left: 5}
	if n, err := b.Write([]byte("abcde")); n != 5 || err != nil {
		t.Fatalf("what has room: %d %v", n, err)
	}
	for range 2 {
		if n, err := b.Write([]byte("f")); n != 0 || !errdefs.IsResourceExhausted(err) {
			t.Fatalf("one byte more: %d %v", n, err)
		}
	}
	if got.String() != "abcde" || b.err == nil {
		t.Fatalf("%q %v", got.String(), b.err)
	}
}
