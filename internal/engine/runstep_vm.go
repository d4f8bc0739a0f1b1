package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"proa/internal/image"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/rootfs"
	"proa/internal/shim"
	"proa/internal/sys"
)

// A guest reaches no file of the host. So what a step mounts is sent into the
// machine before the step runs, and what it wrote is fetched when its process
// has ended: the root's layer goes to the snapshot as a layer tar, changes of a
// writable mount are carried out on the host's files.

// stepMemory is what a guest of a step gets where nothing is said: compilers
// need more than most services.
const stepMemory = 2 << 30

// memoryFile is the size up to which a single file is kept in the guest's
// memory, so that no secret is ever on a disk.
const memoryFile = 4 << 20

// vmStep is what a step in a VM has besides.
type vmStep struct {
	root []mount.Mount // of the snapshot
	disk *image.Disk

	mu     sync.Mutex // held while files are fetched; guards copies
	copies []stepCopy
}

// stepCopy is one mount's files on the host.
type stepCopy struct {
	target string
	files  *os.File // O_PATH
	dir    bool
	back   bool // changes are carried out on files
}

// snapshotMounts are the mounts of a step's root in the words of snapshots.
func snapshotMounts(f StepFiles) []mount.Mount {
	if f.Type != FilesOverlay {
		return []mount.Mount{{Type: "bind", Source: f.Source, Options: []string{"rbind", "rw"}}}
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + f.Source, "upperdir=" + filepath.Join(f.Upper, "upper"), "workdir=" + filepath.Join(f.Upper, "work"),
	}}}
}

// openVM opens the root's files and those of all mounts.
func (r *StepRun) openVM(ctx context.Context, s Step, p *parts) (err error) {
	v := &vmStep{root: snapshotMounts(s.Root)}
	r.vm = v
	if v.disk, err = r.e.cfg.Images.SnapshotDisk(ctx, v.root); err != nil {
		return err
	}
	for _, m := range s.Mounts {
		if m.Type == isolation.MountTmpfs {
			p.mounts = append(p.mounts, isolation.Mount{Type: m.Type, Target: m.Target, Readonly: m.Readonly, Size: m.Size, Options: "exec"})
			continue
		}
		var f *os.File
		if m.Type == FilesOverlay {
			f, err = r.openView(m, false)
		} else {
			f, err = openPart(m)
		}
		if err != nil {
			return fmt.Errorf("cannot mount at %s: %w", m.Target, err)
		}
		c := stepCopy{target: m.Target, files: f}
		v.copies = append(v.copies, c)
		st, err := sys.StatFile(f)
		if err != nil {
			return fmt.Errorf("cannot mount at %s: %w", m.Target, err)
		}
		out := isolation.Mount{Type: isolation.MountCopy, Origin: m.Source, Target: m.Target, Readonly: m.Readonly}
		switch st.Type() {
		case sys.TypeDir:
			c.dir, c.back = true, !m.Readonly
		case sys.TypeRegular:
			out.InMemory = st.Size <= memoryFile
		case sys.TypeSocket:
			return refusef(errdefs.ErrNotImplemented, "cannot mount a socket at %s of a step in a VM (--mount=type=ssh): a guest reaches no socket of the host; do this step in a build with --isolation container", m.Target)
		default:
			return refusef(errdefs.ErrNotImplemented, "cannot mount at %s of a step in a VM: it is neither a file nor a directory", m.Target)
		}
		v.copies[len(v.copies)-1] = c
		p.mounts = append(p.mounts, out)
	}
	return nil
}

// closeTrees lets go of the mounts' files.
func (r *StepRun) closeTrees() {
	if r.vm == nil {
		return
	}
	r.vm.mu.Lock()
	defer r.vm.mu.Unlock()
	for _, c := range r.vm.copies {
		c.files.Close()
	}
	r.vm.copies = nil
}

// number is a copied mount's in the spec, counted from 1.
func (r *StepRun) number(c *stepCopy) int {
	return 1 + slices.IndexFunc(r.spec.Mounts, func(m isolation.Mount) bool {
		return m.Type == isolation.MountCopy && m.Target == c.target
	})
}

// send puts the files of all mounts into the machine.
func (r *StepRun) send(ctx context.Context, sh *shim.Shim) error {
	for i := range r.vm.copies {
		c := &r.vm.copies[i]
		out, in := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			in.CloseWithError(c.write(ctx, in))
		}()
		err := sh.Files(ctx, &rootfs.Request{Op: rootfs.OpPut, Mount: r.number(c), Path: "/"}, out, nil)
		out.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		<-done
		if err != nil {
			return fmt.Errorf("cannot bring the files for %s into the VM: %w", c.target, err)
		}
	}
	return nil
}

// copyData is the name that a machine expects a mount's files under.
const copyData = "data"

// write writes the files as a tar stream.
func (c *stepCopy) write(ctx context.Context, w io.Writer) error {
	if c.dir {
		tree := rootfs.Tree{Root: c.files}
		return tree.GetAs(ctx, "/", copyData, w)
	}
	f, err := sys.OpenPinned(c.files, syscall.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := sys.StatFile(f)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	err = tw.WriteHeader(&tar.Header{
		Name: copyData, Typeflag: tar.TypeReg, Size: st.Size, Mode: int64(st.Mode & 0o7777), Uid: int(st.UID), Gid: int(st.GID),
		ModTime: time.Unix(st.Sec, int64(st.Nsec)), Format: tar.FormatPAX,
	})
	if err == nil {
		_, err = io.CopyN(tw, f, st.Size)
	}
	return errors.Join(err, tw.Close())
}

// fetch takes what the step wrote out of the machine. A machine that died has
// nothing to give.
func (r *StepRun) fetch(ctx context.Context, exit isolation.Exit) error {
	if exit.Error != "" || ctx.Err() != nil {
		return nil
	}
	r.vm.mu.Lock()
	defer r.vm.mu.Unlock()
	for i := range r.vm.copies {
		c := &r.vm.copies[i]
		if !c.back {
			continue
		}
		if err := r.fetchMount(ctx, c); err != nil {
			return fmt.Errorf("cannot bring what was written at %s out of the VM: %w", c.target, err)
		}
	}
	out, in := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := r.sh.Layer(ctx, in)
		in.CloseWithError(err)
		sent <- err
	}()
	_, err := r.e.cfg.Images.Snapshots().ApplyTar(ctx, r.vm.root, out)
	out.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	if serr := <-sent; serr != nil && err != nil {
		err = serr // the reason of the other one
	}
	if err != nil {
		return fmt.Errorf("cannot bring the step's files out of the VM: %w", err)
	}
	return nil
}

// fetchMount carries the changes of a writable mount out on the host.
func (r *StepRun) fetchMount(ctx context.Context, c *stepCopy) error {
	spool, err := os.CreateTemp(r.e.dir(r.id), "changes-")
	if err != nil {
		return err
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	// What a guest says of itself is not believed: it cannot have written more
	// than its disk holds.
	out := &bounded{w: spool, left: machine.DefaultDisk}
	if err := r.sh.Files(ctx, &rootfs.Request{Op: rootfs.OpLayer, Mount: r.number(c)}, nil, out); err != nil {
		return errors.Join(err, out.err)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	tree := rootfs.Tree{Root: c.files}
	return tree.Apply(ctx, spool)
}

// bounded is a writer that takes so many bytes and refuses all that follow.
type bounded struct {
	w    io.Writer
	left int64
	err  error // that it refused
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		b.err = fmt.Errorf("the guest sends more than its disk can hold: %w", errdefs.ErrResourceExhausted)
		return 0, b.err
	}
	return b.w.Write(p)
}
