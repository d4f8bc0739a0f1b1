package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// WritableDisk is the name of a container's writable disk in its directory.
const WritableDisk = "rw.ext4"

// minDisk is the smallest writable disk: a journal and some room.
const minDisk = 64 << 20

// openWritable opens the disk at path, made from an empty template if missing.
// A new one of 16 GiB takes some 300 KiB of the host's disk: it is sparse, its
// journal is small, and its inode tables are marked as zeroed, so that no guest
// ever writes zeros into them.
func openWritable(ctx context.Context, cache, path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot open the writable disk: %w", err)
	}
	if size == 0 {
		size = DefaultDisk
	}
	size = size / (1 << 20) * (1 << 20)
	if size < minDisk {
		return nil, fmt.Errorf("cannot make a writable disk of %d bytes: %w: %d MiB is the least", size, errdefs.ErrInvalidArgument, minDisk>>20)
	}
	template, err := emptyDisk(ctx, cache, size)
	if err != nil {
		return nil, err
	}
	if err := copySparse(path, template); err != nil {
		return nil, fmt.Errorf("cannot make the writable disk: %w", err)
	}
	if f, err = os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0); err != nil {
		return nil, fmt.Errorf("cannot open the writable disk: %w", err)
	}
	return f, nil
}

// emptyDisk makes, once for each size, an empty ext4 file system.
func emptyDisk(ctx context.Context, cache string, size int64) (string, error) {
	path := filepath.Join(cache, fmt.Sprintf("empty-%s-%dm.ext4", recipe, size>>20))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", fmt.Errorf("cannot make %q: %w", cache, err)
	}
	program, err := lookSbin("mkfs.ext4")
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(cache, ".new-*.ext4")
	if err != nil {
		return "", fmt.Errorf("cannot make an empty disk: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return "", fmt.Errorf("cannot make an empty disk of %d bytes: %w", size, err)
	}
	// The file is sparse and so already zero: mkfs punches holes instead of
	// writing inode tables, and marks them as zeroed. No reserved blocks: all of
	// it is the container's. Every feature is named, so that the host's
	// mke2fs.conf does not matter; a guest kernel of 5.x knows all of them.
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-I", "256", "-J", "size=4",
		"-O", "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-E", "lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0", f.Name())
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MKE2FS_CONFIG=/dev/null", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot make an empty disk: mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := f.Sync(); err != nil {
		return "", fmt.Errorf("cannot make an empty disk: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", fmt.Errorf("cannot make an empty disk: %w", err)
	}
	return path, nil
}

// lookSbin finds an administrator's program: a user's PATH may lack sbin.
func lookSbin(name string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("cannot find %s: %w: on Debian: apt-get install e2fsprogs", name, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// Values of lseek(2), Linux 3.1.
const (
	seekData = 3
	seekHole = 4
)

// copySparse copies the parts of source that have data to path, as a whole or
// not at all. path must not exist.
func copySparse(path, source string) (err error) {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(path), ".new-*.ext4")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		start, err := in.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) { // no data behind at
			break
		}
		if err != nil {
			return err
		}
		end, err := in.Seek(start, seekHole)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, end-start)); err != nil {
			return err
		}
		at = end
	}
	// Not synced: what is lost with the power before a guest wrote anything is
	// an empty disk, and whatever a guest wants to last it syncs itself.
	return os.Rename(out.Name(), path)
}
