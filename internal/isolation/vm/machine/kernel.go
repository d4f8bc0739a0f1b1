package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Kernel is an unpacked kernel package: an image and its modules.
type Kernel struct {
	Image   string // vmlinuz or vmlinux
	Modules string // lib/modules/RELEASE; "" where the package brings none
	Release string // "6.1.0-56-cloud-amd64"
}

// NoKernelError says that no directory held a kernel. It is an
// errdefs.ErrFailedPrecondition.
type NoKernelError struct{ Dirs []string }

func (e *NoKernelError) Error() string {
	return fmt.Sprintf("cannot find a guest kernel in %s: download one with `scripts/guest-kernel %s` (it is unpacked, never installed), or name its directory with --guest-kernel",
		strings.Join(e.Dirs, ", "), e.Dirs[0])
}

// Unwrap gives the kind.
func (e *NoKernelError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// FindKernel returns the newest kernel of the first directory that has one.
// A directory is what `dpkg-deb -x` makes of a kernel package: boot/vmlinuz-R
// with lib/modules/R or usr/lib/modules/R; or usr/lib/modules/R/vmlinuz, as
// other distributions ship it.
func FindKernel(dirs ...string) (*Kernel, error) {
	var looked []string
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		looked = append(looked, dir)
		k, err := kernelIn(dir)
		if err != nil {
			return nil, err
		}
		if k != nil {
			return k, nil
		}
	}
	if len(looked) == 0 {
		looked = []string{"."}
	}
	return nil, &NoKernelError{Dirs: looked}
}

func kernelIn(dir string) (*Kernel, error) {
	var found []Kernel
	for _, pattern := range []string{"boot/vmlinuz-*", "boot/vmlinux-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz"} {
		images, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("cannot look for a kernel in %q: %w", dir, err)
		}
		for _, image := range images {
			k := Kernel{Image: image}
			if name := filepath.Base(image); name == "vmlinuz" {
				k.Release = filepath.Base(filepath.Dir(image))
			} else {
				_, k.Release, _ = strings.Cut(name, "-")
			}
			for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
				modules := filepath.Join(dir, lib, k.Release)
				if _, err := os.Stat(modules); err == nil {
					k.Modules = modules
					break
				} else if !errors.Is(err, fs.ErrNotExist) {
					return nil, fmt.Errorf("cannot look at kernel modules: %w", err)
				}
			}
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	newest := slices.MaxFunc(found, func(a, b Kernel) int { return compareRelease(a.Release, b.Release) })
	return &newest, nil
}

// compareRelease orders kernel releases: runs of digits by number, the rest by text.
func compareRelease(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
