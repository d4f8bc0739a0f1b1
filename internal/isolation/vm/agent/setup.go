package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// Where things are mounted before the image's root becomes the root.
const (
	lowerDir = "/.proa/image" // the merged image
	diskDir  = "/.proa/disk"  // the writable layer's file system, with upper and work
	rootDir  = "/newroot"
)

// setup makes the guest what the shim asked for and enters the image's root.
// It cannot be tried again: a guest that could not be set up is thrown away.
func (a *Agent) setup(s *wire.Setup) error {
	if err := a.enter(fresh, down, "set up the guest"); err != nil {
		return err
	}
	syscall.Umask(0)
	if s.Time != 0 {
		if err := sys.SetClock(time.Unix(0, s.Time)); err != nil {
			return failed("set the clock", err)
		}
	}
	// The network needs nothing of the root; under emulation every wait counts.
	network := make(chan error, 1)
	a.background(func() { network <- setupNetwork(s.NICs) })
	root, disk, err := a.assemble(s)
	if nerr := <-network; err == nil && nerr != nil {
		err = failed("bring up the network", nerr)
	}
	if err != nil {
		return err
	}
	defer root.Close()
	if err := sys.SetHostname(s.Hostname, s.Domain); err != nil {
		return failed("set the hostname", err)
	}
	if err := setSysctls(s.Sysctls); err != nil {
		return err
	}
	if err := a.hide(root, s); err != nil {
		return err
	}
	if s.Readonly {
		if err := sys.SetMountAttr(root, sys.MountReadonly, 0, false); err != nil {
			return failed("make the root read-only", err)
		}
	}
	for _, path := range a.options.Forget {
		_ = os.Remove(path) // nothing depends on it
	}
	if err := sys.SwitchRoot(rootDir); err != nil {
		return failed("enter the root", err)
	}
	a.mu.Lock()
	a.disk = disk
	a.mu.Unlock()
	return a.enter(down, ready, "")
}

// assemble mounts image, disk and overlay, fills in the files and mounts that
// every container has, and returns the root (O_PATH) and the disk's mount.
func (a *Agent) assemble(s *wire.Setup) (root, disk *os.File, err error) {
	for _, dir := range []string{lowerDir, diskDir, rootDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, nil, failed("make mount points", err)
		}
	}
	params := []sys.FSConfig{{Key: "source", Value: s.RootDevice}, {Key: "ro", Flag: true}} // the disk itself is read-only
	for _, d := range s.DataDevices {
		params = append(params, sys.FSConfig{Key: "device", Value: d})
	}
	if err := mount("erofs", sys.MountReadonly, lowerDir, params...); err != nil {
		return nil, nil, failed("mount the image "+s.RootDevice, err)
	}
	if s.RWDevice == "" {
		err = mount("tmpfs", 0, diskDir, sys.FSConfig{Key: "mode", Value: "0700"})
	} else {
		err = mount("ext4", 0, diskDir, sys.FSConfig{Key: "source", Value: s.RWDevice})
	}
	if err != nil {
		return nil, nil, failed("mount the writable disk "+s.RWDevice, err)
	}
	if err := layDisk(); err != nil {
		return nil, nil, failed("prepare the writable disk", err)
	}
	if disk, err = sys.OpenPath(diskDir); err != nil {
		return nil, nil, failed("open the writable disk", err)
	}
	if err := mount("overlay", 0, rootDir, sys.FSConfig{Key: "source", Value: "overlay"},
		sys.FSConfig{Key: "lowerdir", Value: lowerDir},
		sys.FSConfig{Key: "upperdir", Value: diskDir + "/upper"},
		sys.FSConfig{Key: "workdir", Value: diskDir + "/work"}); err != nil {
		return nil, nil, failed("mount the root", err)
	}
	if root, err = sys.OpenPath(rootDir); err != nil {
		return nil, nil, failed("open the root", err)
	}
	for _, f := range []struct{ path, text string }{
		{"/etc/resolv.conf", s.ResolvConf}, {"/etc/hosts", s.Hosts}, {"/etc/hostname", s.HostnameFile},
	} {
		if f.text == "" {
			continue
		}
		if err := place(root, f.path, f.text); err != nil {
			return nil, nil, failed("write "+f.path, err)
		}
	}
	if err := a.standardMounts(root, s); err != nil {
		return nil, nil, err
	}
	for i := range s.Mounts {
		if err := tmpfs(root, &s.Mounts[i]); err != nil {
			return nil, nil, err
		}
	}
	return root, disk, nil
}

// mount makes a file system and attaches it at a path of our own.
func mount(fstype string, attr int, at string, params ...sys.FSConfig) error {
	m, err := sys.NewFS(fstype, attr, params...)
	if err != nil {
		return err
	}
	defer m.Close()
	return sys.Attach(m, at)
}

// layDisk makes the directories of the overlay on a new disk. In an overlay it
// is the upper root that counts, so it gets owner, mode and time of the
// image's; it gets its name last, so that it is never found half made.
func layDisk() error {
	const upper, work, unnamed = diskDir + "/upper", diskDir + "/work", diskDir + "/upper.new"
	if err := os.Mkdir(work, 0o700); err != nil && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	if _, err := os.Lstat(upper); !errors.Is(err, syscall.ENOENT) {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(lowerDir, &st); err != nil {
		return err
	}
	if err := os.Mkdir(unnamed, 0o755); err != nil && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	if err := os.Chown(unnamed, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := syscall.Chmod(unnamed, st.Mode&0o7777); err != nil {
		return err
	}
	if err := syscall.UtimesNano(unnamed, []syscall.Timespec{st.Atim, st.Mtim}); err != nil {
		return err
	}
	return os.Rename(unnamed, upper)
}

// place writes a small file of the engine's into the root, unless it says the
// same already. It is an ordinary file, so a package manager may replace it.
// A link to a regular file is followed; anything else that the image has there
// (a link that leads nowhere, a FIFO, a device) makes way unopened.
func place(root *os.File, path, text string) error {
	at := strings.LastIndexByte(path, '/')
	dir, err := sys.MkdirInRoot(root, path[:at], 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	flags := syscall.O_WRONLY | syscall.O_TRUNC
	if !regular(root, path) {
		if err := sys.RemoveAt(dir, path[at+1:]); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
		flags |= syscall.O_CREAT | syscall.O_EXCL
	} else if old, err := content(root, path, len(text)+1); err != nil || string(old) == text {
		return err
	}
	f, err := sys.OpenInRoot(root, path, flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func regular(root *os.File, path string) bool {
	f, err := sys.OpenPathInRoot(root, path)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	return err == nil && fi.Mode().IsRegular()
}

// content is at most limit bytes of a file.
func content(root *os.File, path string, limit int) ([]byte, error) {
	f, err := sys.OpenInRoot(root, path, syscall.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(limit)))
}

// setSysctls writes parameters by their dotted names; in "net.ipv4.conf.eth0/1"
// the slash stands for a dot, as in sysctl(8).
func setSysctls(values map[string]string) error {
	for name, v := range values {
		path := strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
		for _, part := range strings.Split(path, "/") {
			if part == "" || part == ".." || part == "." {
				return &isolation.StartError{Kind: isolation.StartFailed, Step: "set sysctl " + name, Why: "it is no name of a parameter"}
			}
		}
		if err := os.WriteFile("/proc/sys/"+path, []byte(v), 0o644); err != nil {
			return failed("set sysctl "+name, err)
		}
	}
	return nil
}

// tmpfs mounts one tmpfs of the user's.
func tmpfs(root *os.File, m *isolation.Mount) error {
	step := "mount tmpfs at " + m.Target
	if m.Type != isolation.MountTmpfs {
		return &isolation.StartError{Kind: isolation.StartFailed, Step: fmt.Sprintf("mount %s at %s", m.Type, m.Target), Why: "the guest agent mounts tmpfs only"}
	}
	mode := m.Mode
	if mode == 0 {
		mode = 0o1777
	}
	params := []sys.FSConfig{{Key: "source", Value: "tmpfs"}, {Key: "mode", Value: strconv.FormatUint(uint64(mode), 8)}}
	if m.Size > 0 {
		params = append(params, sys.FSConfig{Key: "size", Value: strconv.FormatInt(m.Size, 10)})
	}
	attr := 0
	if m.Readonly {
		attr |= sys.MountReadonly
	}
	for _, o := range strings.Split(m.Options, ",") {
		switch key, v, _ := strings.Cut(o, "="); key {
		case "", "rw", "suid", "dev", "exec", "atime", "relatime", "private", "rprivate":
		case "ro":
			attr |= sys.MountReadonly
		case "nosuid":
			attr |= sys.MountNosuid
		case "nodev":
			attr |= sys.MountNodev
		case "noexec":
			attr |= sys.MountNoexec
		case "noatime":
			attr |= sys.MountNoatime
		default:
			params = append(params, sys.FSConfig{Key: key, Value: v, Flag: !strings.Contains(o, "=")})
		}
	}
	at, err := sys.MkdirInRoot(root, m.Target, 0o755)
	if err != nil {
		return failed(step, err)
	}
	defer at.Close()
	mnt, err := sys.NewFS("tmpfs", attr, params...)
	if err != nil {
		return failed(step, err)
	}
	defer mnt.Close()
	if err := sys.AttachTo(mnt, at); err != nil {
		return failed(step, err)
	}
	return nil
}
