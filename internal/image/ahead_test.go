package image

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"
)

func TestReadAhead(t *testing.T) {
	boom := errors.New("boom")
	for _, size := range []int{0, 1, aheadSize - 1, aheadSize, aheadSize + 1, 7*aheadSize + 3} {
		want := []byte(noise(1, size))
		for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, boom} {
			for name, wrap := range map[string]func(io.Reader) io.Reader{"plain": func(r io.Reader) io.Reader { return r }, "half": iotest.HalfReader, "with error": iotest.DataErrReader} {
				r := io.Reader(bytes.NewReader(want))
				if end != io.EOF {
					r = io.MultiReader(r, iotest.ErrReader(end))
				}
				a := readAhead(wrap(r))
				got, err := io.ReadAll(a)
				if !bytes.Equal(got, want) || err != end && !(err == nil && end == io.EOF) {
					t.Errorf("%d bytes, %s, ending with %v: got %d bytes, %v", size, name, end, len(got), err)
				}
				if _, again := a.Read(make([]byte, 1)); again != end {
					t.Errorf("a second read at the end: %v", again)
				}
				_ = a.Close()
			}
		}
	}
}

// Close ends the goroutine although nobody reads.
func TestReadAheadClosedEarly(t *testing.T) {
	a := readAhead(zeros{})
	if _, err := io.ReadFull(a, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = a.Close(); _ = a.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Close hangs")
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
