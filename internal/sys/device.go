package sys

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// DeviceNode is one device node of the host.
type DeviceNode struct {
	Path         string
	Type         string // "c" or "b"
	Major, Minor uint32
	Mode         uint32 // permission bits
}

// Devices gives the device node at path, or all below it when it is a
// directory. Symbolic links are followed at path itself only. What every /dev
// brings by itself (pts, shm, mqueue, console, ptmx) is left out below a
// directory.
func Devices(path string) ([]DeviceNode, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot look at device %q: %w", path, err)
	}
	if !fi.IsDir() {
		if d, ok := deviceNode(filepath.Clean(path), fi); ok {
			return []DeviceNode{d}, nil
		}
		return nil, nil
	}
	var out []DeviceNode
	err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // a node that vanished, or a directory that is closed to us
		}
		switch e.Name() {
		case "pts", "shm", "mqueue", ".udev", ".lxc", "fd":
			if e.IsDir() {
				return fs.SkipDir
			}
		case "console", "ptmx":
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		if fi, err := e.Info(); err == nil {
			if d, ok := deviceNode(p, fi); ok {
				out = append(out, d)
			}
		}
		return nil
	})
	return out, err
}

func deviceNode(path string, fi fs.FileInfo) (DeviceNode, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode()&fs.ModeDevice == 0 {
		return DeviceNode{}, false
	}
	d := DeviceNode{Path: path, Type: "b", Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)), Mode: st.Mode & 0o777}
	if fi.Mode()&fs.ModeCharDevice != 0 {
		d.Type = "c"
	}
	return d, true
}
