package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
)

// files are the files of one log: the one that is written, and the rotated ones.
type files struct {
	path     string
	maxBytes int64
	maxFiles int
	compress bool

	file    *os.File
	size    int64
	lost    atomic.Int64   // bytes of records that the disk did not take
	packing sync.WaitGroup // a rotated file that is being compressed
}

// full reports whether n more bytes fill the current file.
func (w *files) full(n int) bool { return w.maxBytes > 0 && w.size+int64(n) >= w.maxBytes }

// close closes the log, after a file that is being compressed.
func (w *files) close() error {
	w.packing.Wait()
	if err := w.file.Close(); err != nil {
		return fmt.Errorf("cannot close log %q: %w", w.path, err)
	}
	return nil
}

// open opens the current file for appending.
func (w *files) open() error {
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

// put writes encoded records and rotates when the file has reached its size.
// Only whole records are ever left in a file: one that does not fit on the
// disk is taken back.
func (w *files) put(b []byte) {
	if len(b) == 0 {
		return
	}
	if w.full(0) {
		_ = w.rotate() // what cannot be rotated is continued: a log too long is better than none
	}
	n, err := w.file.Write(b)
	if err != nil {
		// ENOSPC or EIO. Whole records stay, a torn one goes.
		whole := bytes.LastIndexByte(b[:n], '\n') + 1
		if whole < n {
			if w.file.Truncate(w.size+int64(whole)) == nil {
				n = whole
			}
		}
		w.lost.Add(int64(len(b) - n))
	}
	w.size += int64(n)
}

// rotate moves Path to Path.1, Path.1 to Path.2 and so on, oldest first, so
// that a name never holds a younger file than a reader expects: a file only
// ever moves to the next higher number. With one file it is replaced.
func (w *files) rotate() error {
	w.packing.Wait()
	// Up to the first free number, which an interrupted rotation may have left.
	free := 1
	for free < w.maxFiles-1 && exists(numbered(w.path, free)) {
		free++
	}
	for i := min(free, w.maxFiles-1); i > 0; i-- {
		if err := w.shift(i); err != nil {
			return fmt.Errorf("cannot rotate log: %w", err) // goes on in the same file
		}
	}
	if w.maxFiles == 1 {
		if err := remove(w.path); err != nil {
			return fmt.Errorf("cannot rotate log: %w", err)
		}
	}
	old := w.file
	if err := w.open(); err != nil {
		w.file = old // has another name now, and still takes what comes
		return err
	}
	_ = old.Close()
	if w.compress && w.maxFiles > 1 {
		w.packing.Go(func() { _ = pack(numbered(w.path, 1)) }) // a file that stays plain is read as well
	}
	return nil
}

// shift moves the file before the i-th to number i, in the form that it has.
// The i-th one goes first, in both forms: it is the oldest that is kept.
func (w *files) shift(i int) error {
	to := numbered(w.path, i)
	if i == 1 {
		if err := remove(to + packedSuffix); err != nil {
			return err
		}
		return rename(w.path, to)
	}
	from := numbered(w.path, i-1)
	if _, err := os.Lstat(from); err == nil {
		if err := errors.Join(remove(from+packedSuffix), remove(to+packedSuffix)); err != nil {
			return err
		}
		return rename(from, to)
	}
	if _, err := os.Lstat(from + packedSuffix); err != nil {
		return nil
	}
	if err := remove(to); err != nil {
		return err
	}
	return rename(from+packedSuffix, to+packedSuffix)
}

// exists reports whether a rotated file is there in one of its forms.
func exists(name string) bool {
	_, plain := os.Lstat(name)
	_, packed := os.Lstat(name + packedSuffix)
	return plain == nil || packed == nil
}

func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
