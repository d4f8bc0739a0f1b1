package agent

import (
	"errors"
	"os"
	"strconv"
	"syscall"

	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// defaultShm is Docker's size of /dev/shm.
const defaultShm = 64 << 20

// standardMounts mounts below root what a container finds mounted. /dev is the
// kernel's own: what is in it is the machine's, and the machine is the user's.
func (a *Agent) standardMounts(root *os.File, s *wire.Setup) error {
	const strict = sys.MountNosuid | sys.MountNodev | sys.MountNoexec
	shm := s.ShmBytes
	if shm == 0 {
		shm = defaultShm
	}
	sysfs := strict
	if !s.Privileged {
		sysfs |= sys.MountReadonly
	}
	for _, m := range []struct {
		fstype, at string
		attr       int
		optional   bool // a kernel may have been built without
		params     []sys.FSConfig
	}{
		{fstype: "proc", at: "/proc", attr: strict},
		{fstype: "sysfs", at: "/sys", attr: sysfs},
		{fstype: "cgroup2", at: "/sys/fs/cgroup", attr: strict, optional: true, params: []sys.FSConfig{{Key: "source", Value: "cgroup"}}},
		{fstype: "devtmpfs", at: "/dev", attr: sys.MountNosuid | sys.MountNoexec},
		{fstype: "devpts", at: "/dev/pts", attr: sys.MountNosuid | sys.MountNoexec, params: []sys.FSConfig{
			{Key: "source", Value: "devpts"}, {Key: "mode", Value: "0620"}, {Key: "gid", Value: "5"}, {Key: "ptmxmode", Value: "0666"}}},
		{fstype: "tmpfs", at: "/dev/shm", attr: strict, params: []sys.FSConfig{
			{Key: "source", Value: "shm"}, {Key: "mode", Value: "1777"}, {Key: "size", Value: strconv.FormatInt(shm, 10)}}},
		{fstype: "mqueue", at: "/dev/mqueue", attr: strict, optional: true},
	} {
		make := func() (*os.File, error) { return sys.NewFS(m.fstype, m.attr, m.params...) }
		if m.fstype == "devtmpfs" && a.options.Dev != nil {
			make = a.options.Dev
		}
		if err := attach(root, m.at, make); err != nil {
			if m.optional {
				a.options.Warn(err.Error())
				continue
			}
			return failed("mount "+m.at, err)
		}
	}
	for _, l := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
		{"/proc/kcore", "/dev/core"},
	} {
		// /dev is a file system of the kernel's: no link of the image's lies on the way.
		if err := os.Symlink(l[0], rootDir+l[1]); err != nil && !errors.Is(err, syscall.EEXIST) {
			return failed("make "+l[1], err)
		}
	}
	return nil
}

func attach(root *os.File, at string, make func() (*os.File, error)) error {
	m, err := make()
	if err != nil {
		return err
	}
	defer m.Close()
	dir, err := sys.MkdirInRoot(root, at, 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	return sys.AttachTo(m, dir)
}

// hide applies masked and read-only paths; one that does not exist is no error.
func (a *Agent) hide(root *os.File, s *wire.Setup) error {
	for _, path := range s.ReadonlyPaths {
		if err := cover(root, path, func(at *os.File) (*os.File, error) {
			m, err := sys.CloneTree(at, "", true)
			if err != nil {
				return nil, err
			}
			return m, sys.SetMountAttr(m, sys.MountReadonly, 0, true)
		}); err != nil {
			return failed("make "+path+" read-only", err)
		}
	}
	for _, path := range s.MaskedPaths {
		if err := cover(root, path, func(at *os.File) (*os.File, error) {
			if fi, err := at.Stat(); err != nil || fi.IsDir() {
				m, merr := sys.NewFS("tmpfs", sys.MountReadonly, sys.FSConfig{Key: "size", Value: "0"})
				return m, errors.Join(err, merr)
			}
			null, err := sys.OpenPathInRoot(root, "/dev/null")
			if err != nil {
				return nil, err
			}
			defer null.Close()
			return sys.CloneTree(null, "", false)
		}); err != nil {
			return failed("mask "+path, err)
		}
	}
	return nil
}

// cover mounts what with makes over path.
func cover(root *os.File, path string, with func(at *os.File) (*os.File, error)) error {
	at, err := sys.OpenPathInRoot(root, path)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer at.Close()
	m, err := with(at)
	if m != nil {
		defer m.Close()
	}
	if err != nil {
		return err
	}
	return sys.AttachTo(m, at)
}
