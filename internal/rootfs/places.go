package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// places are what every container's root has, whatever its image holds: mount
// points, empty files that the engine mounts over, the link that old tools read,
// and the file by which a program tells that it runs in a container. They are
// those of Docker (moby, daemon/initlayer/setup_unix.go).
var places = []struct {
	path string
	link string // target; "": a file, or a directory where path ends in a slash
}{
	{path: "dev/"}, {path: "dev/pts/"}, {path: "dev/shm/"}, {path: "dev/console"}, {path: "proc/"}, {path: "sys/"}, {path: ".dockerenv"},
	{path: "etc/"}, {path: "etc/resolv.conf"}, {path: "etc/hosts"}, {path: "etc/hostname"}, {path: "etc/mtab", link: "/proc/mounts"},
}

// MakePlaces makes the places of every root below dir, which belongs to the
// caller alone. As the lowest layer of an overlay they show wherever the image
// and the writable layer have nothing of that name, and are no difference
// between the two. What is there is kept.
func MakePlaces(dir string) error {
	for _, p := range places {
		at := filepath.Join(dir, p.path)
		err := os.ErrExist
		switch {
		case p.link != "":
			err = os.Symlink(p.link, at)
		case p.path[len(p.path)-1] == '/':
			err = makePlace(at, func() error { return os.MkdirAll(at, 0o755) })
		default:
			err = makePlace(at, func() error {
				f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL, 0o755)
				if err != nil {
					return err
				}
				return f.Close()
			})
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot make the lowest layer of containers: %w", err)
		}
	}
	return nil
}

// makePlace makes a file or directory with mode 0755 whatever the umask.
func makePlace(at string, do func() error) error {
	if err := do(); err != nil {
		return err
	}
	return os.Chmod(at, 0o755)
}
