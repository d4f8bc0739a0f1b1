package agent

import (
	"bytes"
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
	go func() { network <- setupNetwork(s.NICs) }()
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
	for _, dir := range []string{diskDir + "/upper", diskDir + "/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, syscall.EEXIST) {
			return nil, nil, failed("prepare the writable disk", err)
		}
	}
	if disk, err = sys.OpenPath(diskDir); err != nil {
		return nil, nil, failed("open the writable disk", err)
	}
	if err := inheritRoot(); err != nil {
		return nil, nil, failed("prepare the writable disk", err)
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

// inheritRoot gives the upper directory owner and mode of the image's root:
// in an overlay it is the upper one's that count.
func inheritRoot() error {
	var st syscall.Stat_t
	if err := syscall.Stat(lowerDir, &st); err != nil {
		return err
	}
	var up syscall.Stat_t
	if err := syscall.Stat(diskDir+"/upper", &up); err != nil {
		return err
	}
	// Only a new one: what the user changed stays changed.
	if up.Ctim != up.Mtim || up.Mode&0o7777 != 0o755 || up.Uid != 0 || up.Gid != 0 {
		return nil
	}
	entries, err := os.ReadDir(diskDir + "/upper")
	if err != nil || len(entries) > 0 {
		return err
	}
	if err := os.Chown(diskDir+"/upper", int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return syscall.Chmod(diskDir+"/upper", st.Mode&0o7777)
}

// place writes a small file of the engine's into the root, unless it says the
// same already. It is an ordinary file, so a package manager may replace it. A
// link that leads nowhere is replaced by the file.
func place(root *os.File, path, text string) error {
	if f, err := sys.OpenInRoot(root, path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
		old, rerr := io.ReadAll(io.LimitReader(f, int64(len(text))+1))
		f.Close()
		if rerr == nil && bytes.Equal(old, []byte(text)) {
			return nil
		}
	}
	at := strings.LastIndexByte(path, '/')
	dir, err := sys.MkdirInRoot(root, path[:at], 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	const flags = syscall.O_WRONLY | syscall.O_CREAT | syscall.O_TRUNC | syscall.O_NONBLOCK
	f, err := sys.OpenInRoot(root, path, flags, 0o644)
	if err != nil {
		// A dangling link, a directory, a FIFO without a reader: make way.
		if err := sys.RemoveAt(dir, path[at+1:]); err != nil {
			return err
		}
		if f, err = sys.OpenInRoot(root, path, flags, 0o644); err != nil {
			return err
		}
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
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
