package flat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"proa/internal/image/erofs"
	"proa/internal/sys"
)

// Mounter mounts image indexes by one strategy. It is safe for concurrent use.
type Mounter struct {
	dir      string
	strategy string
	why      string
	direct   bool // file: read data files without their page cache

	mu sync.Mutex // one extraction at a time
}

// Open returns a mounter for files below dir. With forced set it uses that
// strategy or fails with ErrFailedPrecondition and the reason; otherwise it
// takes the first of file, loop, extract that works.
func Open(dir, forced string) (*Mounter, error) {
	found := probe(dir)
	m := &Mounter{dir: dir, direct: found.direct}
	try := func(name string) (bool, string) {
		v := found.verdict(name)
		if v.OK {
			m.strategy, m.why = name, v.Why
		}
		return v.OK, name + ": " + v.Why
	}
	if forced != "" {
		if found.verdict(forced) == nil {
			return nil, fmt.Errorf("cannot mount images by strategy %q: it is none of file, loop, extract: %w", forced, errdefs.ErrInvalidArgument)
		}
		if ok, why := try(forced); !ok {
			return nil, fmt.Errorf("cannot mount images below %q by strategy %s: %w", dir, why, errdefs.ErrFailedPrecondition)
		}
		m.why = "forced"
		return m, nil
	}
	var reasons []error
	for _, name := range []string{StrategyFile, StrategyLoop, StrategyExtract} {
		ok, why := try(name)
		if ok {
			if len(reasons) > 0 {
				m.why = errors.Join(reasons...).Error()
			}
			return m, nil
		}
		reasons = append(reasons, errors.New(why))
	}
	return nil, fmt.Errorf("cannot mount images below %q in any way: %w: %w", dir, errors.Join(reasons...), errdefs.ErrFailedPrecondition)
}

// Strategy is the strategy in use and why it was chosen.
func (m *Mounter) Strategy() (name, why string) { return m.strategy, m.why }

// Mount mounts an image read-only at the existing directory at, in the
// caller's mount namespace. Every Mount is a superblock of its own with a page
// cache of its own: mount an image once and hand out clones of that mount
// (sys.CloneTree). By strategy "extract" the first Mount unpacks the image.
func (m *Mounter) Mount(image Files, at string) error {
	mount, err := m.detached(image, m.direct)
	if err == nil {
		err = sys.Attach(mount, at)
		mount.Close()
	}
	if err != nil {
		return fmt.Errorf("cannot mount image index %q by strategy %s: %w", image.Index, m.strategy, err)
	}
	return nil
}

// Once is Mount without a place, as a descriptor, for whoever reads everything
// one time and from beginning to end: unlike the mounts of Mount it reads
// through the page cache of the data files, and so with what was read ahead.
func (m *Mounter) Once(image Files) (*os.File, error) {
	mount, err := m.detached(image, false)
	if err != nil {
		return nil, fmt.Errorf("cannot mount image index %q by strategy %s: %w", image.Index, m.strategy, err)
	}
	return mount, nil
}

// Unmount undoes Mount. Clones that are still in use keep the image alive. A
// path where nothing is mounted is no error.
func (m *Mounter) Unmount(at string) error { return sys.Detach(at) }

// detached makes the mount of an image without a place.
func (m *Mounter) detached(image Files, direct bool) (*os.File, error) {
	if err := check(image); err != nil {
		return nil, err
	}
	switch m.strategy {
	case StrategyFile:
		return mountFiles(image, direct)
	case StrategyLoop:
		return mountLoops(image)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Lstat(image.Dir); errors.Is(err, os.ErrNotExist) {
		if err := extract(image); err != nil {
			return nil, fmt.Errorf("cannot unpack it to %q: %w", image.Dir, err)
		}
	} else if err != nil {
		return nil, err
	}
	return bindReadonly(image.Dir)
}

// check compares the index with the data files that go with it. The kernel
// checks neither: given no devices at all it takes the index for a flattened
// image, and a file that is too short shows when it is read.
func check(image Files) error {
	f, err := os.Open(image.Index)
	if err != nil {
		return err
	}
	defer f.Close()
	im, err := erofs.Open(f)
	if err != nil {
		return err
	}
	devices := im.Devices()
	if len(devices) != len(image.Data) {
		return fmt.Errorf("the index has %d data files, %d are given: %w", len(devices), len(image.Data), errdefs.ErrInvalidArgument)
	}
	for i, path := range image.Data {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if st.Size() != int64(devices[i].Blocks)*BlockSize {
			return damaged("%q has %d bytes, the index says %d blocks", path, st.Size(), devices[i].Blocks)
		}
	}
	return nil
}

// mountFiles mounts an index straight from its files (Linux 6.12 with
// EROFS_FS_BACKED_BY_FILE). Without the option directio the page cache would
// hold everything that is read twice: once for the data file and once for the
// file of the image.
func mountFiles(image Files, direct bool) (*os.File, error) {
	var params []sys.FSConfig
	for i, path := range append([]string{image.Index}, image.Data...) {
		key := "device"
		if i == 0 {
			key = "source"
		}
		// fsconfig(2) takes strings of at most 255 bytes.
		if len(path) > 255 {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			path = viaFD(f)
		}
		params = append(params, sys.FSConfig{Key: key, Value: path})
	}
	if direct {
		params = append(params, sys.FSConfig{Key: "directio", Flag: true})
	}
	return newIndexFS(params)
}

// newIndexFS mounts EROFS. The superblock itself has to be read-only: the
// kernel opens a read-only loop device for nothing else.
func newIndexFS(params []sys.FSConfig) (*os.File, error) {
	params = append(params, sys.FSConfig{Key: "ro", Flag: true})
	return sys.NewFS("erofs", sys.MountReadonly, params...)
}

// mountLoops mounts an index by loop devices, which serve every mount of the
// same file and go away with the last one.
func mountLoops(image Files) (*os.File, error) {
	var params []sys.FSConfig
	for i, path := range append([]string{image.Index}, image.Data...) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		dev, err := sys.OpenLoop(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		defer dev.Close() // by then the mount holds it
		key := "device"
		if i == 0 {
			key = "source"
		}
		params = append(params, sys.FSConfig{Key: key, Value: dev.Name()})
	}
	return newIndexFS(params)
}

// bindReadonly makes a read-only bind mount of a directory.
func bindReadonly(dir string) (*os.File, error) {
	mount, err := sys.CloneTree(nil, filepath.Clean(dir), false)
	if err != nil {
		return nil, err
	}
	if err := sys.SetMountAttr(mount, sys.MountReadonly, 0, false); err != nil {
		mount.Close()
		return nil, err
	}
	return mount, nil
}

// viaFD is a path of the file that f has open.
func viaFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
