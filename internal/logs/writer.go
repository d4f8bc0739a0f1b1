// Package logs owns the bytes of a container's log: the json-file format,
// rotation, and reading it while it grows and rotates. The shim writes, the
// engine reads; the two share nothing but the files, so either may die and be
// replaced at any byte. It never knows whose log it is and never removes one.
//
// A log is a file of records and its rotated predecessors, Path.1 the youngest:
//
//	{"log":"one line\n","stream":"stdout","time":"2026-11-23T11:00:00.123456789Z"}
//
// as Docker's json-file driver writes them, escapes included. A line longer
// than 16 KiB is several records, of which only the last ends with a newline,
// all with the time of the first; output that ends without a newline is a
// record without one.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// maxLine is the longest piece of a line in one record, as in Docker's copier.
const maxLine = 16 << 10

// Writer writes one log. Its streams may be written from different goroutines.
type Writer struct {
	path     string
	maxBytes int64
	maxFiles int

	mu     sync.Mutex // guards the rest, held across writes to the log: records do not mix
	file   *os.File   // nil after Close, and for the driver "none"
	size   int64
	buf    []byte // records of one Write, encoded
	lost   int64  // bytes of records that the disk did not take
	writes []*Stream
}

// Create opens the log that l describes; it continues a log that is there. A
// record that a crash cut short is closed with a newline, so that it spoils no
// other. The driver "none" gives a Writer that discards.
func Create(l isolation.Log) (*Writer, error) {
	w := &Writer{path: l.Path, maxBytes: l.MaxBytes, maxFiles: max(l.MaxFiles, 1)}
	switch l.Driver {
	case "none":
		return w, nil
	case "json-file":
	default:
		return nil, fmt.Errorf("cannot write a log with driver %q: use json-file or none: %w", l.Driver, errdefs.ErrInvalidArgument)
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

// open opens the current file for appending.
func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("cannot open log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 {
		var last [1]byte
		if _, err = f.ReadAt(last[:], st.Size()-1); err == nil && last[0] != '\n' {
			if _, err = f.Write([]byte{'\n'}); err == nil {
				st, err = f.Stat()
			}
		}
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("cannot continue log %q: %w", w.path, err)
	}
	w.file, w.size = f, st.Size()
	return nil
}

// Stream gives a writer for "stdout" or "stderr". It never fails: output must
// go on when a disk is full (Lost counts what was not written).
func (w *Writer) Stream(name string) *Stream {
	s := &Stream{w: w, tail: []byte(`","stream":"` + name + `","time":"`)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes = append(w.writes, s)
	return s
}

// Lost is the number of bytes of records that could not be written.
func (w *Writer) Lost() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// Close writes what the streams hold of unfinished lines and closes the log.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	for _, s := range w.writes {
		s.end()
	}
	err := w.file.Close()
	w.file = nil
	if err != nil {
		return fmt.Errorf("cannot close log %q: %w", w.path, err)
	}
	return nil
}

// Stream is one stream of a log.
type Stream struct {
	w    *Writer
	tail []byte // what stands between line and time in a record

	// Guarded by w.mu.
	held    []byte    // the beginning of a line whose rest has not come
	since   time.Time // when the first record of a split line was made; zero: no split line
	encoded [40]byte  // the time of a Write in text
}

// Write takes output as it comes. All records that it completes go to the file
// in one write(2) per log file.
func (s *Stream) Write(p []byte) (int, error) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return len(p), nil
	}
	n := len(p)
	now := time.Now()
	stamp := appendTime(s.encoded[:0], now)
	w.buf = w.buf[:0]
	for len(p) > 0 {
		i := bytes.IndexByte(p[:min(len(p), maxLine-len(s.held))], '\n')
		switch {
		case i >= 0:
			s.record(p[:i], true, now, stamp)
			p = p[i+1:]
		case len(s.held)+len(p) >= maxLine:
			k := maxLine - len(s.held)
			s.record(p[:k], false, now, stamp)
			p = p[k:]
		default:
			if s.held == nil {
				s.held = make([]byte, 0, 512)
			}
			s.held = append(s.held, p...)
			p = nil
		}
		if w.maxBytes > 0 && w.size+int64(len(w.buf)) >= w.maxBytes || len(w.buf) >= 128<<10 {
			w.flush()
		}
	}
	w.flush()
	return n, nil
}

// record encodes one record of what is held and b.
func (s *Stream) record(b []byte, newline bool, now time.Time, stamp []byte) {
	buf := append(s.w.buf, `{"log":"`...)
	if len(s.held) > 0 {
		// Together, because a character may lie across the two.
		s.held = append(s.held, b...)
		buf = appendEscaped(buf, s.held)
		s.held = s.held[:0]
	} else {
		buf = appendEscaped(buf, b)
	}
	if newline {
		buf = append(buf, '\\', 'n')
	}
	buf = append(buf, s.tail...)
	switch {
	case !s.since.IsZero():
		buf = appendTime(buf, s.since)
		if newline {
			s.since = time.Time{}
		}
	case !newline:
		s.since = now
		fallthrough
	default:
		buf = append(buf, stamp...)
	}
	s.w.buf = append(buf, "\"}\n"...)
}

// end writes an unfinished line.
func (s *Stream) end() {
	if len(s.held) == 0 {
		return
	}
	now := time.Now()
	s.w.buf = s.w.buf[:0]
	s.record(nil, false, now, appendTime(nil, now))
	s.w.flush()
}

// flush writes the encoded records and rotates when the file has reached its
// size. Only whole records are ever left in a file: one that does not fit on
// the disk is taken back.
func (w *Writer) flush() {
	if len(w.buf) == 0 {
		return
	}
	if w.maxBytes > 0 && w.size >= w.maxBytes {
		_ = w.rotate() // what cannot be rotated is continued: a log too long is better than none
	}
	n, err := w.file.Write(w.buf)
	if err != nil {
		// ENOSPC or EIO. Whole records stay, a torn one goes.
		whole := bytes.LastIndexByte(w.buf[:n], '\n') + 1
		if whole < n {
			if w.file.Truncate(w.size+int64(whole)) == nil {
				n = whole
			}
		}
		w.lost += int64(len(w.buf) - n)
	}
	w.size += int64(n)
	if cap(w.buf) > 256<<10 {
		w.buf = nil
	}
	w.buf = w.buf[:0]
}

// rotate moves Path to Path.1, Path.1 to Path.2 and so on, oldest first, so
// that a name never holds a younger file than a reader expects: a file only
// ever moves to the next higher number. With one file it is replaced.
func (w *Writer) rotate() error {
	// Up to the first free number, which an interrupted rotation may have left.
	free := 1
	for free < w.maxFiles-1 {
		if _, err := os.Lstat(numbered(w.path, free)); err != nil {
			break
		}
		free++
	}
	for i := min(free, w.maxFiles-1); i > 0; i-- {
		from := w.path
		if i > 1 {
			from = numbered(w.path, i-1)
		}
		if err := os.Rename(from, numbered(w.path, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot rotate log: %w", err) // goes on in the same file
		}
	}
	if w.maxFiles == 1 {
		if err := os.Remove(w.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot rotate log: %w", err)
		}
	}
	old := w.file
	w.file = nil
	if err := w.open(); err != nil {
		w.file = old // has another name now, and still takes what comes
		return err
	}
	_ = old.Close()
	return nil
}

// numbered is the name of a rotated file.
func numbered(path string, i int) string { return path + "." + strconv.Itoa(i) }

// appendTime appends t as Docker writes it.
func appendTime(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, time.RFC3339Nano) }
