package sys

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a guest's first process asks of its kernel.

// LoadModule loads the kernel module in f; one that is there already is no
// error. A compressed file is left to the kernel (MODULE_INIT_COMPRESSED_FILE, Linux 5.17).
func LoadModule(f *os.File, params string) error {
	flags := 0
	if !strings.HasSuffix(f.Name(), ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err := unix.FinitModule(int(f.Fd()), params, flags)
	if err != nil && err != unix.EEXIST {
		return fmt.Errorf("cannot load module %q: %w", f.Name(), err)
	}
	return nil
}

// PowerOff ends the machine. reset asks for a restart instead, which a VMM told
// not to restart takes as the end; it is what a guest without ACPI can do.
// It returns only on error.
func PowerOff(reset bool) error {
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if reset {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	if err := unix.Reboot(cmd); err != nil {
		return fmt.Errorf("cannot power off: %w", err)
	}
	return nil
}

// SetHostname sets host and domain name of the caller's UTS namespace; an empty one is left.
func SetHostname(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("cannot set hostname %q: %w", host, err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("cannot set domain name %q: %w", domain, err)
		}
	}
	return nil
}

// SetClock sets the wall clock.
func SetClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// SinceBoot is the time since the kernel started.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// KernelRelease is what uname -r prints.
func KernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// MakeReadonly writes a file system to its disk and makes it read-only as a
// whole (fspick, Linux 5.2), so that nothing has to be repaired at the next
// mount. mount is any mount of it. EBUSY says that files are open for writing.
func MakeReadonly(mount *os.File) error {
	// syncfs wants a descriptor that was opened, which an O_PATH one was not.
	root, err := unix.Openat(int(mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Syncfs(root)
		unix.Close(root)
	}
	if err != nil {
		return fmt.Errorf("cannot sync %q: %w", mount.Name(), err)
	}
	fd, err := unix.Fspick(int(mount.Fd()), "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("cannot reconfigure %q: %w", mount.Name(), err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		return fmt.Errorf("cannot make %q read-only: %w%s", mount.Name(), err, fsLog(fd))
	}
	if err := unix.FsconfigReconfigure(fd); err != nil {
		return fmt.Errorf("cannot make %q read-only: %w%s", mount.Name(), err, fsLog(fd))
	}
	return nil
}

// Sync writes every file system to its disk.
func Sync() { unix.Sync() }

// AttachTo puts a detached mount on the open file or directory at (O_PATH will do).
func AttachTo(mount, at *os.File) error {
	if err := unix.MoveMount(int(mount.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot attach a mount at %q: %w", at.Name(), err)
	}
	return nil
}
