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

// segment is one file of a log, held open. A compressed segment is unpacked
// when its records are first asked for, because most readers want the end of a
// log alone.
type segment struct {
	disk *os.File    // the file that has, or had, a name
	id   os.FileInfo // of disk
	data *os.File    // its records; nil: compressed and not yet unpacked
}

func newSegment(f *os.File, packed bool) (*segment, error) {
	id, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot open log: %w", err)
	}
	g := &segment{disk: f, id: id}
	if !packed {
		g.data = f
	}
	return g, nil
}

// records gives the file with the segment's records.
func (g *segment) records() (*os.File, error) {
	if g.data == nil {
		f, err := unpack(g.disk)
		if err != nil {
			return nil, err
		}
		g.data = f
	}
	return g.data, nil
}

func (g *segment) close() {
	if g.data != nil && g.data != g.disk {
		g.data.Close()
	}
	g.disk.Close()
}

// open opens the i-th file of a log; nil if it does not exist. While a file is
// being compressed it has both forms for a moment, and the plain one counts.
func open(path string, i int) (*segment, error) {
	forms := []string{name(path, i)}
	if i > 0 {
		forms = append(forms, name(path, i)+packedSuffix)
	}
	for k, form := range forms {
		f, err := os.Open(form)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot open log: %w", err)
		}
		return newSegment(f, k == 1)
	}
	return nil, nil
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

// at reports whether the i-th file of a log is g, or g compressed, and whether
// there is an i-th file at all.
func (g *segment) at(path string, i int) (same, exists bool) {
	if st, err := os.Lstat(name(path, i)); err == nil {
		return os.SameFile(st, g.id), true
	}
	if i == 0 {
		return false, false
	}
	st, err := os.Lstat(name(path, i) + packedSuffix)
	if err != nil {
		return false, false
	}
	// A number of an inode is not used again while the inode is held open, and
	// the youngest file that names it comes first.
	return os.SameFile(st, g.id) || g.data == g.disk && packedFrom(name(path, i)+packedSuffix) == inode(g.id), true
}

// snapshot opens all files of a log, oldest first, at one moment between two
// steps of a rotation.
func snapshot(path string) ([]*segment, error) {
	for range 200 {
		var err error
		var files []*segment
		var numbers []int
		for i, gap := 0, 0; gap < maxGap && err == nil; i++ {
			var g *segment
			if g, err = open(path, i); g == nil {
				gap++
				continue
			}
			gap = 0
			files, numbers = append([]*segment{g}, files...), append([]int{i}, numbers...)
		}
		stable := err == nil
		for k, g := range files {
			same, _ := g.at(path, numbers[k])
			stable = stable && same
		}
		if stable {
			return files, nil
		}
		for _, g := range files {
			g.close()
		}
		if err != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("cannot read log %q: it rotates faster than it can be opened", path)
}

// successor opens the file that was begun after g was rotated; nil if g is
// still the youngest or the next one is not there yet.
//
// A file only ever moves to the next higher number, and the older one moves
// out of the way first. So if g has number k before and after the file below k
// was opened, and every number between is still free, that file is the next.
func successor(path string, g *segment) (*segment, error) {
	for range 200 {
		k := -1
		for i, gap := 0, 0; gap <= maxGap; i++ { // upward, the way that g may move meanwhile
			same, exists := g.at(path, i)
			if !exists {
				gap++
				continue
			}
			gap = 0
			if same {
				k = i
				break
			}
		}
		if k == 0 {
			return nil, nil
		}
		if k < 0 {
			if !unlinked(g.disk) {
				continue // moved while it was looked for
			}
			// Rotated away altogether: what is oldest now came later.
			files, err := snapshot(path)
			if err != nil || len(files) == 0 {
				return nil, err
			}
			for _, other := range files[1:] {
				other.close()
			}
			return files[0], nil
		}
		j := k - 1
		var next *segment
		var err error
		for ; j >= 0; j-- {
			if next, err = open(path, j); next != nil || err != nil {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		stable, _ := g.at(path, k)
		for i := k - 1; i > j && i >= 0; i-- {
			_, exists := g.at(path, i)
			stable = stable && !exists
		}
		if stable {
			return next, nil
		}
		if next != nil {
			next.close()
		}
	}
	return nil, nil // asked again at the next event
}

// tail finds where the last n records of all files begin: the index of a file
// and the offset in it. Negative n: at the beginning.
func tail(files []*segment, n int) (int, int64, error) {
	if n < 0 {
		return 0, 0, nil
	}
	block := make([]byte, 32<<10)
	left := n
	for i := len(files) - 1; i >= 0; i-- {
		f, err := files[i].records()
		if err != nil {
			return 0, 0, err
		}
		end, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read log: %w", err)
		}
		seen := false // the newline that ends the last record begins no other
		for at := end; at > 0; {
			size := min(at, int64(len(block)))
			at -= size
			if _, err := f.ReadAt(block[:size], at); err != nil {
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

// unlinked reports whether a file has lost its last name.
func unlinked(f *os.File) bool {
	st, err := f.Stat()
	if err != nil {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}

// inode is the number of a file's inode.
func inode(st os.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}
