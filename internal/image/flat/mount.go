package flat

import "github.com/containerd/errdefs"

// Mounter mounts image indexes by one strategy.
type Mounter struct {
	dir      string
	strategy string
	why      string
}

// Probe says which strategies work for files below dir, by mounting a tiny
// image there in each way. The answer is kept for the life of the process.
func Probe(dir string) Ability { return Ability{} }

// Open returns a mounter for files below dir. With forced set it uses that
// strategy or fails with ErrFailedPrecondition and the reason; otherwise it
// takes the first of file, loop, extract that works.
func Open(dir, forced string) (*Mounter, error) { return nil, errdefs.ErrNotImplemented }

// Strategy is the strategy in use and why it was chosen.
func (m *Mounter) Strategy() (name, why string) { return m.strategy, m.why }

// Mount mounts an image read-only at the existing directory at, in the
// caller's mount namespace. Every Mount is a superblock of its own with a page
// cache of its own: mount an image once and hand out clones of that mount.
func (m *Mounter) Mount(image Files, at string) error { return errdefs.ErrNotImplemented }

// Unmount undoes Mount. Clones that are still in use keep the image alive. A
// path where nothing is mounted is no error.
func (m *Mounter) Unmount(at string) error { return errdefs.ErrNotImplemented }
