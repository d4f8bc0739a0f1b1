package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
	"proa/internal/interrupt"
)

// copying is one run of cp.
type copying struct {
	a      *app
	c      *client.Client
	owned  bool // -a
	follow bool // -L
	quiet  bool
}

func (a *app) cpCmd() *cobra.Command {
	o := copying{a: a}
	cmd := &cobra.Command{
		Use:   "cp CONTAINER:PATH LOCAL|-\n  proa cp LOCAL|- CONTAINER:PATH",
		Short: "Copy files between a container, running or not, and here; - is a tar stream", Args: cobra.ExactArgs(2),
	}
	cmd.Flags().BoolVarP(&o.owned, "archive", "a", false, "give what is copied into a container to the container's user")
	cmd.Flags().BoolVarP(&o.follow, "follow-link", "L", false, "copy what a symbolic link at PATH or LOCAL leads to")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "do not say what was copied")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		o.c = c
		from, src := splitContainer(args[0])
		to, dst := splitContainer(args[1])
		switch {
		case from != "" && to != "":
			return errors.New("copying between containers is not supported; copy to a local directory and from there")
		case from == "" && to == "":
			return errors.New("one of the two must be in a container: CONTAINER:PATH")
		case src == "" || dst == "":
			return errors.New("a path is missing after the colon")
		case from != "":
			return o.out(ctx, from, src, dst)
		}
		return o.in(ctx, src, to, dst)
	})
	return cmd
}

// splitContainer parts CONTAINER:PATH. What is a path by its look is one, so
// that a local name may hold a colon: ./a:b.
func splitContainer(arg string) (container, path string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	container, path, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(container, ".") {
		return "", arg
	}
	return container, path
}

// asksDir says whether a path can only mean a directory.
func asksDir(p string) bool {
	return strings.HasSuffix(p, "/") || p == "." || strings.HasSuffix(p, "/.")
}

// lastPart is the name that the entries of a path's archive begin with.
func lastPart(p string) string {
	if p == "." || strings.HasSuffix(p, "/.") {
		return "."
	}
	return path.Base(p)
}

// archiveBase is what the names in the archive of a container's path begin
// with, by the rule of the engine that writes it.
func archiveBase(p string) string {
	if p == "." || strings.HasSuffix(p, "/.") {
		return "."
	}
	return path.Base(path.Join("/", p))
}

// place is where an archive is unpacked and how its first name is changed to.
type place struct {
	dir  string
	name string // "": stays
}

// target is what is known of a destination.
type target struct {
	path          string
	exists, isDir bool
}

// put says where something goes, by the rules of cp(1) as docker has them: into
// a directory that exists, else to the name itself.
func (t *target) put(srcIsDir bool, split func(string) (dir, base string)) (place, error) {
	switch {
	case t.exists && t.isDir:
		return place{dir: t.path}, nil
	case t.exists && srcIsDir:
		return place{}, fmt.Errorf("cannot copy a directory onto the file %q", t.path)
	case !srcIsDir && asksDir(t.path):
		return place{}, fmt.Errorf("cannot copy to %q: there is no such directory", t.path)
	}
	dir, base := split(strings.TrimRight(strings.TrimSuffix(t.path, "/."), "/"))
	return place{dir: dir, name: base}, nil
}

// said tells how much was copied, as docker does.
func (o *copying) said(n int64, to string) {
	if !o.quiet {
		fmt.Fprintf(o.a.err, "Successfully copied %s to %s\n", units.HumanSize(float64(n)), to)
	}
}

// counted counts what goes through it.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// out copies from a container.
func (o *copying) out(ctx context.Context, id, src, dst string) error {
	name := ""
	if o.follow {
		st, err := o.c.ContainerStat(ctx, id, src)
		if err != nil {
			return err
		}
		if st.LinkTarget != "" {
			name, src = path.Base(src), st.LinkTarget
		}
	}
	if dst == "-" {
		if isStdoutTerminal(o.a.out) {
			return failure.Hint(errors.New("cannot copy: standard output is a terminal"), "redirect it, or name a local path instead of -")
		}
	}
	body, st, err := o.c.ContainerGet(ctx, id, src)
	if err != nil {
		return err
	}
	defer body.Close()
	if dst == "-" {
		_, err := io.Copy(o.a.out, body)
		return err
	}
	to := target{path: dst}
	if fi, err := os.Stat(dst); err == nil {
		to.exists, to.isDir = true, fi.IsDir()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot copy: %w", err)
	}
	where, err := to.put(st.Mode.IsDir(), func(p string) (string, string) { return filepath.Dir(p), filepath.Base(p) })
	if err != nil {
		return err
	}
	if where.name == "" {
		where.name = name
	}
	in := &counted{Reader: body}
	if err := o.unpack(ctx, in, archiveBase(src), where); err != nil {
		return fmt.Errorf("cannot copy to %q: %w", dst, err)
	}
	o.said(in.n, dst)
	return nil
}

// unpack writes an archive below a local directory. Who wrote it is not
// trusted: it may be a guest. Only what was asked for is written (CVE-2019-6111):
// every name begins with base and lies in a directory that the archive has made
// or entered before, so that no symbolic link, of the archive's or one that was
// there, leads a name elsewhere (CVE-2018-15664).
func (o *copying) unpack(ctx context.Context, in io.Reader, base string, where place) error {
	root, err := os.OpenRoot(where.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacking{root: root, dir: where.dir, base: base, to: where.name, dirs: map[string]bool{".": true}, warn: o.a.err}
	for tr := tar.NewReader(in); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		if err := u.entry(h, interrupt.Reader(ctx, tr)); err != nil {
			return err
		}
	}
	return u.finishDirs()
}

// unpacking is one archive on its way to a local directory.
type unpacking struct {
	root *os.Root
	dir  string // the root's own name
	base string
	to   string // what base is changed to; "" stays
	dirs map[string]bool
	done []unpackedDir
	warn io.Writer
}

// unpackedDir is a directory whose mode and time are set at the end.
type unpackedDir struct {
	name string
	mode fs.FileMode
	time time.Time
}

// local is the local name of an entry, whose directory is known to be one.
func (u *unpacking) local(name string) (string, error) {
	local, err := renamed(name, u.base, u.to)
	if err != nil {
		return "", err
	}
	if !u.dirs[path.Dir(local)] {
		return "", fmt.Errorf("the archive holds the name %q without a directory that it lies in", name)
	}
	return local, nil
}

func (u *unpacking) entry(h *tar.Header, r io.Reader) error {
	name, err := u.local(h.Name)
	if err != nil {
		return err
	}
	old, err := u.root.Lstat(name)
	exists := err == nil
	if h.Typeflag == tar.TypeDir {
		switch {
		case exists && !old.IsDir():
			return fmt.Errorf("cannot overwrite non-directory %q with directory %q", filepath.Join(u.dir, name), h.Name)
		case !exists:
			if err := u.root.Mkdir(name, 0o700); err != nil {
				return err
			}
		}
		u.dirs[name] = true
		if name != "." {
			u.done = append(u.done, unpackedDir{name, h.FileInfo().Mode(), h.ModTime})
		}
		return nil
	}
	if exists && old.IsDir() {
		return fmt.Errorf("cannot overwrite directory %q with non-directory %q", name, h.Name)
	}
	target := ""
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeSymlink:
	case tar.TypeLink:
		if target, err = u.local(h.Linkname); err != nil {
			return err
		}
	default:
		fmt.Fprintf(u.warn, "proa: left out %q: it is neither a file, a directory nor a link; copy it as a tar with -\n", h.Name)
		return nil
	}
	if exists {
		if err := u.root.Remove(name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return u.root.Link(target, name)
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		// It is yours now: "run as its owner" would mean you.
		err = f.Chmod(h.FileInfo().Mode() & fs.ModePerm)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return u.root.Chtimes(name, h.ModTime, h.ModTime)
}

// finishDirs comes last, because files in directories change their times, and
// they may be read-only.
func (u *unpacking) finishDirs() error {
	for _, d := range slices.Backward(u.done) {
		if err := u.root.Chmod(d.name, d.mode&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky)); err != nil {
			return err
		}
		if err := u.root.Chtimes(d.name, d.time, d.time); err != nil {
			return err
		}
	}
	return nil
}

// renamed is the local name of an entry. Only what lies at base may come.
func renamed(name, base, to string) (string, error) {
	clean := path.Clean("/" + name)[1:]
	switch first, rest, _ := strings.Cut(clean, "/"); {
	case base == "." || base == "/":
		clean = path.Join(to, clean)
	case first != base:
		return "", fmt.Errorf("the archive holds the name %q, but what was asked for is %q", name, base)
	case to != "":
		clean = path.Join(to, rest)
	}
	if clean == "" {
		clean = "."
	}
	if !filepath.IsLocal(clean) {
		return "", fmt.Errorf("the archive holds the name %q, which is outside", name)
	}
	return clean, nil
}

// in copies into a container.
func (o *copying) in(ctx context.Context, src, id, dst string) error {
	to := target{path: dst}
	st, err := o.c.ContainerStat(ctx, id, dst)
	if err == nil && st.LinkTarget != "" {
		to.path = st.LinkTarget
		st, err = o.c.ContainerStat(ctx, id, to.path)
	}
	var api *client.APIError
	switch {
	case err == nil:
		to.exists, to.isDir = true, st.Mode.IsDir()
	case !errors.As(err, &api) || api.Status != http.StatusNotFound || strings.Contains(api.Message, "No such container"):
		return err
	}
	if src == "-" {
		if !to.isDir {
			return fmt.Errorf("destination \"%s:%s\" must be a directory, because a tar is unpacked there", id, dst)
		}
		in := &counted{Reader: o.a.in}
		if err := o.c.ContainerPut(ctx, id, to.path, in, o.owned); err != nil {
			return err
		}
		o.said(in.n, id+":"+dst)
		return nil
	}
	local := src
	if o.follow {
		if local, err = filepath.EvalSymlinks(src); err != nil {
			return fmt.Errorf("cannot copy: %w", err)
		}
	} else if asksDir(src) {
		local = filepath.Clean(src) + "/."
	}
	fi, err := os.Lstat(local)
	if err != nil {
		return fmt.Errorf("cannot copy: %w", err)
	}
	if strings.HasSuffix(src, "/") && !fi.IsDir() {
		return fmt.Errorf("cannot copy: %s is no directory", src)
	}
	where, err := to.put(fi.IsDir(), path.Split)
	if err != nil {
		return err
	}
	if where.dir == "" {
		where.dir = "/"
	}
	name := where.name
	if name == "" {
		name = lastPart(src)
	}
	if name == "/" || name == ".." {
		name = "."
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(pack(w, local, name)) }()
	in := &counted{Reader: r}
	err = o.c.ContainerPut(ctx, id, where.dir, in, o.owned)
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		return err
	}
	o.said(in.n, id+":"+dst)
	return nil
}

// pack writes a local file or tree as a tar in which its name is another one.
func pack(w io.Writer, local, name string) error {
	tw := tar.NewWriter(w)
	links := map[[2]uint64]string{}
	err := filepath.WalkDir(local, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(local, p)
		if err != nil {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if fi.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		target := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(fi, target)
		if err != nil {
			return err
		}
		h.Name, h.Uname, h.Gname, h.Format = path.Join(name, filepath.ToSlash(rel)), "", "", tar.FormatPAX
		if fi.IsDir() {
			h.Name += "/"
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && fi.Mode().IsRegular() {
			file := [2]uint64{uint64(st.Dev), st.Ino}
			if first, ok := links[file]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
				return tw.WriteHeader(h)
			}
			links[file] = h.Name
		}
		if !fi.Mode().IsRegular() {
			return tw.WriteHeader(h)
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		n, err := io.Copy(tw, io.LimitReader(f, h.Size))
		if err == nil && n < h.Size {
			err = fmt.Errorf("%s became shorter while it was read", p)
		}
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	return err
}
