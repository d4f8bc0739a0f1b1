// Package logs owns the bytes of a container's log: the json-file format,
// rotation, and reading it while it grows and rotates. The shim writes, the
// engine reads; the two share nothing but the files, so either may die and be
// replaced at any byte. It never knows whose log it is and never removes one.
//
// A log is a file of records and its rotated predecessors, Path.1 the youngest:
//
//	{"log":"one line\n","stream":"stdout","time":"2026-11-23T11:00:00.123456789Z"}
//
// as Docker's json-file driver writes them, escapes included; attributes that
// the log options ask for stand before the time ("attrs":{"k":"v"}). A line
// longer than 16 KiB is several records, of which only the last ends with a
// newline, all with the time of the first, split between characters; output
// that ends without a newline is a record without one. With compression a
// rotated file is Path.1.gz.
package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// maxLine is the longest piece of a line in one record, as in Docker's copier.
const maxLine = 16 << 10

// Writer writes one log. Its streams may be written from different goroutines.
type Writer struct {
	attrs string // encoded, with what stands before and behind it in a record
	queue *queue // of a log that never blocks; nil: records are written at once

	mu     sync.Mutex // guards the rest; without a queue held across writes to the log: records do not mix
	closed bool       // after Close, and for the driver "none"
	buf    []byte     // records of one Write, encoded
	writes []*Stream

	files // with a queue its goroutine's alone, else guarded by mu
}

// Create opens the log that l describes; it continues a log that is there. A
// record that a crash cut short is closed with a newline, so that it spoils no
// other. The driver "none" gives a Writer that discards.
func Create(l isolation.Log) (*Writer, error) {
	w := &Writer{files: files{path: l.Path, maxBytes: l.MaxBytes, maxFiles: max(l.MaxFiles, 1), compress: l.Compress}}
	switch l.Driver {
	case "none":
		w.closed = true
		return w, nil
	case "json-file":
	default:
		return nil, fmt.Errorf("cannot write a log with driver %q: use json-file or none: %w", l.Driver, errdefs.ErrInvalidArgument)
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	if len(l.Attrs) > 0 {
		b, err := json.Marshal(l.Attrs) // with sorted keys
		if err != nil {
			return nil, fmt.Errorf("cannot encode the attributes of a log: %w", err)
		}
		w.attrs = `,"attrs":` + string(b)
	}
	if l.Buffer > 0 {
		w.queue = newQueue(l.Buffer, w.put)
	}
	return w, nil
}

// Stream gives a writer for "stdout" or "stderr". It never fails: output must
// go on when a disk is full (Lost counts what was not written).
func (w *Writer) Stream(name string) *Stream {
	s := &Stream{w: w, tail: []byte(`","stream":"` + name + `"` + w.attrs + `,"time":"`)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes = append(w.writes, s)
	return s
}

// Lost is the number of bytes of records that could not be written.
func (w *Writer) Lost() int64 {
	if w.queue != nil {
		return w.lost.Load() + w.queue.dropped()
	}
	return w.lost.Load()
}

// Close writes what the streams hold of unfinished lines, and what a queue
// still holds, and closes the log.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	for _, s := range w.writes {
		s.end()
	}
	if w.queue != nil {
		w.queue.close()
	}
	return w.close()
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
	if w.closed {
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
			p = s.split(p, now, stamp)
		default:
			if s.held == nil {
				s.held = make([]byte, 0, 512)
			}
			s.held = append(s.held, p...)
			p = nil
		}
		if w.queue == nil && w.full(len(w.buf)) || len(w.buf) >= 128<<10 {
			w.flush()
		}
	}
	w.flush()
	return n, nil
}

// split makes a record of maxLine bytes of what is held and p, or of a few less
// so that no character is cut in two, and gives what is left of p.
func (s *Stream) split(p []byte, now time.Time, stamp []byte) []byte {
	k := maxLine - len(s.held)
	if len(s.held) == 0 {
		k -= incomplete(p[:k])
		s.record(p[:k], false, now, stamp)
		return p[k:]
	}
	s.held = append(s.held, p[:k]...)
	whole := len(s.held) - incomplete(s.held)
	var rest [utf8.UTFMax]byte
	n := copy(rest[:], s.held[whole:])
	s.held = s.held[:whole]
	s.record(nil, false, now, stamp)
	s.held = append(s.held, rest[:n]...)
	return p[k:]
}

// incomplete is how many bytes at the end of b are the beginning of a UTF-8
// character whose rest has not come.
func incomplete(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if utf8.RuneStart(b[len(b)-n]) {
			if utf8.FullRune(b[len(b)-n:]) {
				return 0
			}
			return n
		}
	}
	return 0
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

// flush writes the encoded records, or queues them.
func (w *Writer) flush() {
	if w.queue != nil {
		w.queue.add(w.buf)
	} else {
		w.put(w.buf)
	}
	if cap(w.buf) > 256<<10 {
		w.buf = nil
	}
	w.buf = w.buf[:0]
}

// appendTime appends t as Docker writes it.
func appendTime(b []byte, t time.Time) []byte { return t.UTC().AppendFormat(b, time.RFC3339Nano) }
