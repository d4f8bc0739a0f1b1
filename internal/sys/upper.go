package sys

import (
	"golang.org/x/sys/unix"
)

// makeUpper makes the directory "upper" below dir, unless it is there, and
// says whether it did. In an overlay it is the upper root that counts, so a new
// one gets owner, mode, extended attributes and times of lower's root. It gets
// its name last, so that it is never found half made.
func makeUpper(dir, lower int) (made bool, err error) {
	const name, unnamed = "upper", "upper.new"
	var want, st unix.Stat_t
	err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.ENOENT {
		return false, err
	}
	if err := unix.Mkdirat(dir, unnamed, 0o755); err != nil && err != unix.EEXIST {
		return false, err
	}
	from, err := unix.Openat(lower, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(from)
	to, err := unix.Openat(dir, unnamed, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(to)
	if err := unix.Fstat(from, &want); err != nil {
		return false, err
	}
	if err := likeFile(from, to, &want); err != nil {
		return false, err
	}
	return true, unix.Renameat(dir, unnamed, dir, name)
}
