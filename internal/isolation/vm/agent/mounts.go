package agent

import (
	"errors"
	"os"
	"path"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// defaultShm is Docker's size of /dev/shm.
const defaultShm = 64 << 20

// standardMounts mounts below the root what a container finds mounted; ready
// are the mounts that only a process of the room could make.
func (r *room) standardMounts(root *os.File, s *wire.Setup, ready map[string]*os.File) (err error) {
	const strict = sys.MountNosuid | sys.MountNodev | sys.MountNoexec
	if r.dev, err = makeDev(); err != nil {
		return failed("make /dev", err)
	}
	if r.pts, err = sys.NewFS("devpts", sys.MountNosuid|sys.MountNoexec, sys.FSConfig{Key: "source", Value: "devpts"},
		sys.FSConfig{Key: "newinstance", Flag: true}, sys.FSConfig{Key: "mode", Value: "0620"}, sys.FSConfig{Key: "gid", Value: "5"}, sys.FSConfig{Key: "ptmxmode", Value: "0666"}); err != nil {
		return failed("make /dev/pts", err)
	}
	sysAttr := strict
	if !s.Privileged {
		sysAttr |= sys.MountReadonly
	}
	sysfs, err := sys.NewFS("sysfs", sysAttr, sys.FSConfig{Key: "source", Value: "sysfs"})
	if err != nil {
		return failed("make /sys", err)
	}
	defer sysfs.Close()
	mqueue, err := sys.NewFS("mqueue", strict, sys.FSConfig{Key: "source", Value: "mqueue"})
	if err != nil {
		return failed("make /dev/mqueue", err)
	}
	defer mqueue.Close()
	// Plain directories of the root, no links of the image's (CVE-2019-19921).
	for _, m := range []struct {
		below *os.File
		name  string
		mount *os.File
	}{{root, "proc", ready["/proc"]}, {root, "sys", sysfs}, {root, "dev", r.dev}, {r.dev, "pts", r.pts}, {r.dev, "mqueue", mqueue}} {
		at, err := sys.OpenPlainDir(m.below, m.name)
		if err == nil {
			err = sys.AttachTo(m.mount, at)
			at.Close()
		}
		if err != nil {
			return failed("mount "+m.name, err)
		}
	}
	if m := ready["/sys/fs/cgroup"]; m != nil {
		at, err := sys.OpenPathInRoot(sysfs, "fs/cgroup")
		if err == nil {
			err = sys.AttachTo(m, at)
			at.Close()
		}
		if err != nil {
			return failed("mount /sys/fs/cgroup", err)
		}
	}
	for _, m := range s.Mounts {
		if path.Clean(m.Target) == "/dev/shm" {
			return nil
		}
	}
	shm := s.ShmBytes
	if shm == 0 {
		shm = defaultShm
	}
	return r.tmpfs(&isolation.Mount{Type: isolation.MountTmpfs, Origin: "shm", Target: "/dev/shm", Size: shm})
}

// makeDev makes the room's /dev. The kernel's own, with the machine's disks and
// the agent's port, stays outside.
func makeDev() (dev *os.File, err error) {
	dev, err = sys.NewFS("tmpfs", sys.MountNosuid, sys.FSConfig{Key: "source", Value: "tmpfs"},
		sys.FSConfig{Key: "mode", Value: "755"}, sys.FSConfig{Key: "size", Value: "65536k"})
	if err != nil {
		return nil, err
	}
	for _, n := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		err = errors.Join(err, sys.MakeNode(dev, n.name, false, n.major, n.minor, 0o666))
	}
	for _, l := range [][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
		{"ptmx", "pts/ptmx"}, {"core", "/proc/kcore"},
	} {
		err = errors.Join(err, sys.MakeLink(dev, l[0], l[1]))
	}
	for name, mode := range map[string]uint32{"pts": 0o755, "mqueue": 0o755, "shm": 0o1777} {
		err = errors.Join(err, sys.MakeDir(dev, name, mode))
	}
	return dev, err
}

// placeFiles mounts the engine's small files. They lie in memory, so they can be
// written below a read-only root, and none of them stays in the writable layer.
func (r *room) placeFiles(s *wire.Setup) error {
	// Attached: Linux before 6.15 does not clone from a detached mount.
	err := mount("tmpfs", sys.MountNosuid|sys.MountNodev|sys.MountNoexec, filesDir, sys.FSConfig{Key: "source", Value: "tmpfs"},
		sys.FSConfig{Key: "mode", Value: "755"}, sys.FSConfig{Key: "size", Value: "4m"})
	if err != nil {
		return failed("make a place for /etc/hosts", err)
	}
	files, err := sys.OpenPath(filesDir)
	if err != nil {
		return failed("make a place for /etc/hosts", err)
	}
	defer files.Close()
	for _, f := range []struct{ path, text string }{
		{"/etc/resolv.conf", s.ResolvConf}, {"/etc/hosts", s.Hosts}, {"/etc/hostname", s.HostnameFile},
	} {
		if f.text == "" {
			continue
		}
		if err := r.placeFile(files, f.path, f.text); err != nil {
			return failed("write "+f.path, err)
		}
	}
	return nil
}

func (r *room) placeFile(files *os.File, at, text string) error {
	name := path.Base(at)
	if err := sys.MakeFile(files, name, 0o644); err != nil {
		return err
	}
	f, err := sys.OpenInRoot(files, name, syscall.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	clone, err := r.cloneFile(files, name)
	if err != nil {
		return err
	}
	r.files = append(r.files, placedFile{at, clone})
	shown, err := r.cloneFile(files, name)
	if err != nil {
		return err
	}
	defer shown.Close()
	return r.showFile(r.view, placedFile{at, shown})
}

// placedFile is one of the engine's small files, not attached yet.
type placedFile struct {
	at    string
	mount *os.File
}

// cloneFile makes a mount of one file, read-only where they all are.
func (r *room) cloneFile(files *os.File, name string) (*os.File, error) {
	mount, err := sys.CloneTree(files, name, false)
	if err == nil && r.fixed {
		err = sys.SetMountAttr(mount, sys.MountReadonly, 0, false)
	}
	return mount, err
}

// showFile attaches a file below root.
func (r *room) showFile(root *os.File, f placedFile) error {
	target, made, err := sys.MakeTarget(root, f.at, false)
	r.stubs.note(made)
	if err != nil {
		return err
	}
	defer target.Close()
	return sys.AttachTo(f.mount, target)
}

// showFiles attaches the engine's small files below the root, once.
func (r *room) showFiles() error {
	files := r.files
	r.files = nil
	for _, f := range files {
		err := r.showFile(r.root, f)
		f.mount.Close()
		if err != nil {
			return failed("mount "+f.at, err)
		}
	}
	return nil
}

// hide applies masked and read-only paths; one that does not exist is no error.
func (r *room) hide(s *wire.Setup) error {
	for _, path := range s.ReadonlyPaths {
		if err := cover(r.root, path, func(at *os.File) (*os.File, error) {
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
		if err := cover(r.root, path, func(at *os.File) (*os.File, error) {
			if fi, err := at.Stat(); err != nil || fi.IsDir() {
				m, merr := sys.NewFS("tmpfs", sys.MountReadonly|sys.MountNosuid|sys.MountNodev|sys.MountNoexec,
					sys.FSConfig{Key: "size", Value: "0"}, sys.FSConfig{Key: "nr_inodes", Value: "1"})
				return m, errors.Join(err, merr)
			}
			return sys.CloneTree(r.dev, "null", false) // ours, not something that the image brought (CVE-2025-31133)
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
