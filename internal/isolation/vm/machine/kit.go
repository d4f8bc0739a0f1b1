package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// kit is what every guest is booted from.
type kit struct {
	Vmlinux   string // path
	Initramfs string // path
	Release   string // of the kernel
	Digest    string // of the inputs, hex
	inputs    []stamp
}

// stamp tells without reading it whether a file is still the one that was read.
type stamp struct {
	path    string
	size    int64
	changed time.Time
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{path, info.Size(), info.ModTime()}, nil
}

// recipe changes when the way of making a kit does.
const recipe = "1"

// makeKit makes vmlinux and initramfs of a kernel and an agent in
// dir/<digest>/, or finds them there. Making a new one removes the others: a
// machine that runs has read its own.
func makeKit(dir string, k *Kernel, agent string) (*kit, error) {
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return nil, fmt.Errorf("cannot read the guest kernel: %w", err)
	}
	program, err := os.ReadFile(agent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot find the guest agent %q: %w: it is installed next to the engine (build it with `make build`)", agent, errdefs.ErrFailedPrecondition)
	} else if err != nil {
		return nil, fmt.Errorf("cannot read the guest agent: %w", err)
	}
	if k.Modules == "" {
		return nil, fmt.Errorf("cannot use the guest kernel %q: %w: its modules (lib/modules/%s) are missing", k.Image, errdefs.ErrFailedPrecondition, k.Release)
	}
	modules, err := loadModules(k.Modules, guestModules)
	if err != nil {
		return nil, err
	}

	sum := sha256.New()
	part := func(b []byte) {
		var size [8]byte
		binary.LittleEndian.PutUint64(size[:], uint64(len(b)))
		sum.Write(size[:])
		sum.Write(b)
	}
	part([]byte(recipe))
	part(image)
	part(program)
	for _, m := range modules {
		part([]byte(m.Name))
		part(m.Data)
	}
	out := &kit{Release: k.Release, Digest: hex.EncodeToString(sum.Sum(nil))}
	home := filepath.Join(dir, out.Digest)
	out.Vmlinux, out.Initramfs = filepath.Join(home, "vmlinux"), filepath.Join(home, "initramfs")
	_, kernelGone := os.Stat(out.Vmlinux)
	_, initramfsGone := os.Stat(out.Initramfs)
	if kernelGone != nil || initramfsGone != nil {
		if err := os.RemoveAll(home); err != nil {
			return nil, fmt.Errorf("cannot remove a damaged kit: %w", err)
		}
		if err := fillKit(home, k, image, program, modules); err != nil {
			return nil, err
		}
		removeOthers(dir, out.Digest)
	}
	// The result is among what must not change: somebody may empty the cache.
	for _, path := range []string{k.Image, agent, k.Modules, out.Vmlinux, out.Initramfs} {
		s, err := stampOf(path)
		if err != nil {
			return nil, fmt.Errorf("cannot look at %q: %w", path, err)
		}
		out.inputs = append(out.inputs, s)
	}
	return out, nil
}

func fillKit(home string, k *Kernel, image, program []byte, modules []Module) error {
	vmlinux, err := extractVmlinux(image)
	if err != nil {
		return fmt.Errorf("cannot use the guest kernel %q: %w", k.Image, err)
	}
	var initramfs bytes.Buffer
	if err := writeInitramfs(&initramfs, program, modules); err != nil {
		return err
	}
	return writeTogether(home, map[string][]byte{"vmlinux": vmlinux, "initramfs": initramfs.Bytes()})
}

// removeOthers removes kits of other digests, and what a killed engine left half made.
func removeOthers(dir, digest string) {
	entries, _ := os.ReadDir(dir) // what cannot be read now is removed another time
	for _, e := range entries {
		raw, err := hex.DecodeString(e.Name())
		if (err == nil && len(raw) == sha256.Size && e.Name() != digest) || strings.HasPrefix(e.Name(), unfinished) {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// unfinished is how the name of a directory begins that is still being filled.
const unfinished = ".new-"

// current says whether the kit was made from the files that are there now.
func (k *kit) current() bool {
	return !slices.ContainsFunc(k.inputs, func(s stamp) bool {
		now, err := stampOf(s.path)
		return err != nil || now.size != s.size || !now.changed.Equal(s.changed)
	})
}

// writeTogether makes a directory with files, as a whole or not at all. Losing
// a race against another process that makes the same is success.
func writeTogether(dir string, files map[string][]byte) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("cannot make %q: %w", parent, err)
	}
	work, err := os.MkdirTemp(parent, unfinished)
	if err != nil {
		return fmt.Errorf("cannot make a directory in %q: %w", parent, err)
	}
	defer os.RemoveAll(work)
	for name, data := range files {
		if err := sys.WriteSynced(filepath.Join(work, name), data, 0o644); err != nil { // the jailed VMM reads it
			return fmt.Errorf("cannot keep what a guest boots: %w", err)
		}
	}
	if err := sys.SyncDir(work); err != nil {
		return fmt.Errorf("cannot keep what a guest boots: %w", err)
	}
	if err := os.Rename(work, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cannot put %q in place: %w", dir, err)
	}
	return nil
}
