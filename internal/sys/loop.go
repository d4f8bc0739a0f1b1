package sys

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// loopMutex keeps one process from making two loop devices for one file. Other
// processes may; that costs a page cache, nothing else.
var loopMutex sync.Mutex

// OpenLoop returns an open read-only loop device over the whole of file, an
// existing one of that file if there is one. The device is told to clear
// itself when its last user closes it: mount it, then close what OpenLoop
// returned, and unmounting is all that is left to do. Reads bypass the page
// cache of the file where its file system allows it. The name of the returned
// file is the device's path. Linux 5.8.
func OpenLoop(file *os.File) (*os.File, error) {
	loopMutex.Lock()
	defer loopMutex.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, fmt.Errorf("cannot stat %q: %w", file.Name(), err)
	}
	if dev := findLoop(&st); dev != nil {
		return dev, nil
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for a loop device (try: modprobe loop): %w", err)
	}
	defer control.Close()
	for range 100 { // others race for the same free device
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("cannot find a free loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot open a loop device: %w", err)
		}
		err = configureLoop(dev, file)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if err != unix.EBUSY {
			return nil, fmt.Errorf("cannot configure %s for %q: %w", dev.Name(), file.Name(), err)
		}
	}
	return nil, fmt.Errorf("cannot get a loop device for %q: %w", file.Name(), unix.EBUSY)
}

// loopWanted are the flags of a device that OpenLoop makes and shares.
const loopWanted = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR

func configureLoop(dev, file *os.File) error {
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: 4096}
	config.Info.Flags = loopWanted | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file.Name())
	err := unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	if err == unix.EINVAL {
		// Kernels differ in whether direct I/O that a file system refuses is
		// an error, and a block size of 4096 needs one that divides its own.
		config.Info.Flags = loopWanted
		config.Size = 0
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
	}
	return err
}

// findLoop opens the device that shows the file of st, if there is one.
func findLoop(st *unix.Stat_t) *os.File {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil // not mounted: a device more is made
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "loop") {
			continue
		}
		if _, err := os.Stat("/sys/block/" + e.Name() + "/loop/backing_file"); err != nil {
			continue
		}
		dev, err := os.OpenFile("/dev/"+e.Name(), os.O_RDONLY, 0)
		if err != nil {
			continue
		}
		// From here on the device cannot clear itself; what it shows now it
		// will show until dev is closed.
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino && info.Offset == 0 && info.Sizelimit == 0 && info.Flags&loopWanted == loopWanted {
			return dev
		}
		dev.Close()
	}
	return nil
}
