package agent

import (
	"cmp"
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/rootfs"
	"proa/internal/sys"
)

// Where things are mounted before the image's root becomes the root.
const (
	lowerDir  = "/.proa/image"  // the merged image
	placesDir = "/.proa/places" // the lowest layer
	diskDir   = "/.proa/disk"   // the writable layer's file system, with upper and work
	filesDir  = "/.proa/files"  // the engine's small files, in memory
	viewDir   = "/.proa/view"   // the root as Files requests see it
	rootDir   = "/newroot"
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
	r, disk, err := a.assemble(s)
	if nerr := <-network; err == nil && nerr != nil {
		err = failed("bring up the network", nerr)
	}
	if err != nil {
		return err
	}
	if err := sys.SetHostname(s.Hostname, s.Domain); err != nil {
		return failed("set the hostname", err)
	}
	if err := setSysctls(s.Sysctls); err != nil {
		return err
	}
	if err := r.hide(s); err != nil {
		return err
	}
	for _, path := range a.options.Forget {
		_ = os.Remove(path) // nothing depends on it
	}
	a.mu.Lock()
	a.disk, a.room = disk, r
	a.mu.Unlock()
	return a.enter(down, ready, "")
}

// assemble mounts image, disk and overlay, fills in the files and mounts that
// every container has, and returns the room and the disk's mount.
func (a *Agent) assemble(s *wire.Setup) (r *room, disk *os.File, err error) {
	for _, dir := range []string{lowerDir, placesDir, diskDir, filesDir, viewDir, rootDir} {
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
	lowers := lowerDir
	if !s.Unstub { // a step's root has nothing but its files
		if err := rootfs.MakePlaces(placesDir); err != nil {
			return nil, nil, failed("make the lowest layer", err)
		}
		lowers += ":" + placesDir
	}
	if err := mount("overlay", sys.MountNodev, rootDir, sys.FSConfig{Key: "source", Value: "overlay"},
		sys.FSConfig{Key: "redirect_dir", Value: "off"}, sys.FSConfig{Key: "metacopy", Value: "off"}, // as in sys.Overlay
		sys.FSConfig{Key: "lowerdir", Value: lowers},
		sys.FSConfig{Key: "upperdir", Value: diskDir + "/upper"},
		sys.FSConfig{Key: "workdir", Value: diskDir + "/work"}); err != nil {
		return nil, nil, failed("mount the root", err)
	}
	root, err := sys.OpenPath(rootDir)
	if err != nil {
		return nil, nil, failed("open the root", err)
	}
	if s.Workdir != "" {
		if dir, err := sys.OpenTarget(root, path.Join("/", s.Workdir), true); err == nil {
			dir.Close()
		}
	}
	if err := a.openFiles(root); err != nil {
		return nil, nil, failed("open the root's files", err)
	}
	if r, err = a.newRoom(root, s); err != nil {
		return nil, nil, err
	}
	if s.Unstub {
		r.stubs = &unstubber{bare: a.files.tree.Bare, parents: s.UnstubParents}
		a.files.tree.Exclude = nil // what stays is what every build leaves
	}
	if err := r.placeFiles(s); err != nil {
		return nil, nil, err
	}
	if err := makePlaces(s.Mounts); err != nil {
		return nil, nil, err
	}
	r.mounts = s.Mounts
	if !slices.ContainsFunc(s.Mounts, func(m isolation.Mount) bool { return m.Type == isolation.MountCopy }) {
		if err := r.attach(); err != nil {
			return nil, nil, err
		}
	}
	return r, disk, nil
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
func (r *room) tmpfs(m *isolation.Mount) error {
	step := "mount tmpfs at " + m.Target
	at, made, err := sys.MakeTarget(r.root, m.Target, true)
	r.stubs.note(made)
	if err != nil {
		return failed(step, err)
	}
	defer at.Close()
	mode := m.Mode
	switch {
	case mode == 0 && len(made) > 0:
		mode = 0o1777
	case mode == 0:
		st, err := sys.StatFile(at)
		if err != nil {
			return failed(step, err)
		}
		mode = st.Mode & 0o7777
	}
	attr, set := sys.TmpfsOptions(m.Options)
	set["mode"] = strconv.FormatUint(uint64(mode), 8)
	if m.Size > 0 {
		set["size"] = strconv.FormatInt(m.Size, 10)
	}
	params := []sys.FSConfig{{Key: "source", Value: cmp.Or(m.Origin, "tmpfs")}}
	for k, v := range set {
		params = append(params, sys.FSConfig{Key: k, Value: v, Flag: v == ""})
	}
	if m.Readonly {
		attr |= sys.MountReadonly
	}
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
