package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"time"

	"proa/internal/sys"
)

// ReadOptions says which part of a log is wanted.
type ReadOptions struct {
	Tail   int       // so many records from the end, before any other choice; negative: all
	Since  time.Time // not older than this; zero: from the beginning
	Until  time.Time // not younger; zero: no end
	Stdout bool
	Stderr bool
	Follow bool // go on with what is written later
	// Done ends following once everything is delivered that was written before
	// it was closed: close it after the writer has ended. Nil: until ctx ends.
	Done <-chan struct{}
}

// maxRecord is the longest record that is read; a longer one is not ours.
const maxRecord = 1 << 20

// Read iterates over the log at path, oldest record first, each exactly once
// however often the log rotates meanwhile; only records whose file was rotated
// away before its turn came are missing. Records that cannot be decoded are
// skipped: a crash of the host may have torn one. A log that does not exist
// yet is empty. The iteration ends with an error only if ctx ended while
// following (ctx.Err) or a file could not be read.
func Read(ctx context.Context, path string, o ReadOptions) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		r := &reader{path: path, o: o, yield: yield}
		defer r.close()
		if err := r.run(ctx); err != nil && !errors.Is(err, errStop) {
			yield(Line{}, err)
		}
	}
}

// errStop says that no more lines are wanted.
var errStop = errors.New("stop")

// reader is one iteration.
type reader struct {
	path  string
	o     ReadOptions
	yield func(Line, error) bool

	file  *segment // being read
	at    int64    // offset of what is read next
	buf   []byte   // read and not yet consumed: the beginning of a record
	chunk []byte
	skip  bool // inside a record that is too long
}

func (r *reader) close() {
	if r.file != nil {
		r.file.close()
		r.file = nil
	}
}

// enter goes on with another file.
func (r *reader) enter(f *segment, at int64) {
	r.close()
	r.file, r.at, r.buf, r.skip = f, at, r.buf[:0], false
}

func (r *reader) run(ctx context.Context) error {
	var wake <-chan struct{}
	if r.o.Follow {
		w, stop := watch(filepath.Dir(r.path)) // before the first read: what is written later wakes
		defer stop()
		wake = w
	}
	files, err := snapshot(r.path)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.close()
		}
	}()
	first, offset, err := tail(files, r.o.Tail)
	if err != nil {
		return err
	}
	for i := 0; len(files) > 0; i++ {
		f := files[0]
		files = files[1:]
		if i < first || len(files) > 0 && r.tooOld(f) {
			f.close()
			continue
		}
		at := int64(0)
		if i == first {
			at = offset
		}
		r.enter(f, at)
		if err := r.drain(ctx); err != nil {
			return err
		}
	}
	if !r.o.Follow {
		return nil
	}
	return r.follow(ctx, wake)
}

// tooOld says that nothing in a rotated file can be young enough.
func (r *reader) tooOld(g *segment) bool {
	if r.o.Since.IsZero() {
		return false
	}
	return g.id.ModTime().Add(time.Second).Before(r.o.Since) // file times lag behind by a tick
}

// follow delivers what comes.
func (r *reader) follow(ctx context.Context, wake <-chan struct{}) error {
	// Events are lost when a queue overflows or no watch could be had, so there is a pulse as well.
	pulse := time.Second
	if wake == nil {
		pulse = 100 * time.Millisecond
	}
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	var until <-chan time.Time
	if !r.o.Until.IsZero() {
		t := time.NewTimer(time.Until(r.o.Until))
		defer t.Stop()
		until = t.C
	}
	done := r.o.Done
	last := false
	for {
		if err := r.catchUp(ctx); err != nil {
			return err
		}
		if last {
			return nil
		}
		select {
		case <-wake:
		case <-tick.C:
		case <-done:
			done, last = nil, true // once more, for what was written before
		case <-until:
			until, last = nil, true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// catchUp reads to the end of the youngest file.
func (r *reader) catchUp(ctx context.Context) error {
	for {
		if r.file == nil {
			f, err := open(r.path, 0)
			if f == nil || err != nil {
				return err
			}
			r.enter(f, 0)
		}
		// Looked for first, drained second: a file that has a successor takes
		// no more bytes, so after this drain it is complete.
		next, err := successor(r.path, r.file)
		if err != nil {
			return err
		}
		if err := r.drain(ctx); err != nil {
			if next != nil {
				next.close()
			}
			return err
		}
		if next == nil {
			return nil
		}
		r.enter(next, 0)
	}
}

// drain delivers all whole records of the file from where it stands.
func (r *reader) drain(ctx context.Context) error {
	if r.chunk == nil {
		r.chunk = make([]byte, 64<<10)
	}
	file, err := r.file.records()
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := file.ReadAt(r.chunk, r.at)
		if n == 0 {
			if err != nil && err != io.EOF {
				return fmt.Errorf("cannot read log: %w", err)
			}
			if st, err := file.Stat(); err == nil && st.Size() < r.at {
				r.at, r.buf, r.skip = 0, r.buf[:0], false // somebody cut the file to nothing
				if st.Size() > 0 {
					continue
				}
			}
			return nil
		}
		r.at += int64(n)
		if err := r.consume(r.chunk[:n]); err != nil {
			return err
		}
	}
}

// consume splits bytes into records.
func (r *reader) consume(b []byte) error {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if len(r.buf)+len(b) > maxRecord {
				r.buf, r.skip = r.buf[:0], true
			}
			if !r.skip {
				r.buf = append(r.buf, b...)
			}
			return nil
		}
		rec := b[:i]
		if len(r.buf) > 0 {
			r.buf = append(r.buf, rec...)
			rec = r.buf
		}
		b = b[i+1:]
		if !r.skip {
			if err := r.deliver(rec); err != nil {
				return err
			}
		}
		r.buf, r.skip = r.buf[:0], false
	}
	return nil
}

// deliver yields one record if it is wanted.
func (r *reader) deliver(rec []byte) error {
	var l Line
	if len(rec) == 0 || decode(rec, &l) != nil {
		return nil
	}
	if !r.o.Until.IsZero() && l.Time.After(r.o.Until) {
		return errStop
	}
	if l.Time.Before(r.o.Since) || l.Stream == "stdout" && !r.o.Stdout || l.Stream == "stderr" && !r.o.Stderr {
		return nil
	}
	if !r.yield(l, nil) {
		return errStop
	}
	return nil
}

// watch gives a channel that gets a value when something happens in dir; nil
// where the host has no watch left.
func watch(dir string) (<-chan struct{}, func()) {
	f, err := sys.WatchDir(dir)
	if err != nil {
		return nil, func() {}
	}
	wake := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 4096)
		for {
			if _, err := f.Read(b); err != nil {
				return
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	return wake, func() {
		f.Close()
		<-ended
	}
}
