package sys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// DiskUsage adds up the blocks, in bytes, of everything below root on root's
// file system, root itself included. Instances may write there meanwhile: what
// vanishes counts nothing, and a file with several links counts once. A root
// that does not exist takes nothing.
func DiskUsage(ctx context.Context, root string) (int64, error) {
	var sum int64
	var dev uint64
	seen := map[uint64]bool{} // inodes with several links
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		var fi fs.FileInfo
		if err == nil {
			fi, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no stat of %q: %w", path, os.ErrInvalid)
		}
		if path == root {
			dev = uint64(st.Dev)
		}
		if uint64(st.Dev) != dev {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.IsDir() && st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		sum += st.Blocks * 512
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("cannot measure %q: %w", root, err)
	}
	return sum, nil
}
