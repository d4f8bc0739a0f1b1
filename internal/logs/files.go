package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// open opens a log file; nil if it does not exist.
func open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open log: %w", err)
	}
	return f, nil
}

// name of the i-th file, 0 being the one that is written.
func name(path string, i int) string {
	if i == 0 {
		return path
	}
	return numbered(path, i)
}

// maxGap is how many numbers may be free between two files of a log: a
// rotation frees one at a time, and one that a crash interrupted leaves it free.
const maxGap = 2

// is says whether the i-th file is f.
func is(path string, i int, f os.FileInfo) bool {
	st, err := os.Lstat(name(path, i))
	return err == nil && os.SameFile(st, f)
}

// snapshot opens all files of a log, oldest first, at one moment between two
// steps of a rotation.
func snapshot(path string) ([]*os.File, error) {
	var err error
	for range 200 {
		var files []*os.File
		var at []int
		for i, gap := 0, 0; gap < maxGap && err == nil; i++ {
			var f *os.File
			if f, err = open(name(path, i)); f == nil {
				gap++
				continue
			}
			gap = 0
			files, at = append([]*os.File{f}, files...), append([]int{i}, at...)
		}
		same := err == nil
		for k, f := range files {
			st, serr := f.Stat()
			same = same && serr == nil && is(path, at[k], st)
		}
		if same {
			return files, nil
		}
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("cannot read log %q: it rotates faster than it can be opened", path)
}

// successor opens the file that was begun after f was rotated; nil if f is
// still the youngest or the next one is not there yet.
//
// A file only ever moves to the next higher number, and the older one moves
// out of the way first. So if f has number k before and after the file below k
// was opened, and every number between is still free, that file is the next.
func successor(path string, f *os.File) (*os.File, error) {
	for range 200 {
		st, err := f.Stat()
		if err != nil {
			return nil, fmt.Errorf("cannot follow log %q: %w", path, err)
		}
		k := -1
		for i, gap := 0, 0; gap <= maxGap; i++ { // upward, the way that f may move meanwhile
			cur, err := os.Lstat(name(path, i))
			if err != nil {
				gap++
				continue
			}
			gap = 0
			if os.SameFile(cur, st) {
				k = i
				break
			}
		}
		if k == 0 {
			return nil, nil
		}
		if k < 0 {
			if !unlinked(f) {
				continue // moved while it was looked for
			}
			// Rotated away altogether: what is oldest now came later.
			files, err := snapshot(path)
			if err != nil || len(files) == 0 {
				return nil, err
			}
			for _, other := range files[1:] {
				other.Close()
			}
			return files[0], nil
		}
		j := k - 1
		var next *os.File
		for ; j >= 0; j-- {
			if next, err = open(name(path, j)); next != nil || err != nil {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		stable := is(path, k, st)
		for i := k - 1; i > j && i >= 0; i-- {
			_, err := os.Lstat(name(path, i))
			stable = stable && errors.Is(err, os.ErrNotExist)
		}
		if stable {
			return next, nil
		}
		if next != nil {
			next.Close()
		}
	}
	return nil, nil // asked again at the next event
}

// tail finds where the last n records of all files begin: the index of a file
// and the offset in it. Negative n: at the beginning.
func tail(files []*os.File, n int) (int, int64, error) {
	if n < 0 {
		return 0, 0, nil
	}
	block := make([]byte, 32<<10)
	left := n
	for i := len(files) - 1; i >= 0; i-- {
		end, err := files[i].Seek(0, io.SeekEnd)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read log: %w", err)
		}
		seen := false // the newline that ends the last record begins no other
		for at := end; at > 0; {
			size := min(at, int64(len(block)))
			at -= size
			if _, err := files[i].ReadAt(block[:size], at); err != nil {
				return 0, 0, fmt.Errorf("cannot read log: %w", err)
			}
			for b := block[:size]; ; {
				k := bytes.LastIndexByte(b, '\n')
				if k < 0 {
					break
				}
				if seen {
					left--
				}
				if left <= 0 {
					return i, at + int64(k) + 1, nil
				}
				seen, b = true, b[:k]
			}
		}
		if seen {
			left--
		}
		if left <= 0 {
			return i, 0, nil
		}
	}
	return 0, 0, nil
}

// unlinked says whether a file has lost its last name.
func unlinked(f *os.File) bool {
	st, err := f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}
