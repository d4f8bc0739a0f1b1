package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// topDir is FS_TOPDIR_FL of linux/fs.h.
const topDir = 0x00020000

// SpreadDirs asks the file system of dir to put each directory that is made in
// dir, and what is in it, far from the others (FS_TOPDIR_FL, `chattr +T`;
// fs/ext4/ialloc.c, find_group_orlov). It is for directories of trees that are
// made and removed all the time: ext4 without a journal gives no inode out
// again for one to five minutes (recently_deleted), and steps over those one by
// one, so that making 1,000 files where some thousand were removed takes seven
// times as long. A file system that knows no such thing is left as it is.
func SpreadDirs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
	for _, none := range []error{unix.ENOTTY, unix.EOPNOTSUPP, unix.EINVAL, unix.EPERM} {
		if errors.Is(err, none) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("cannot set the flags of %q: %w", dir, err)
	}
	return nil
}
