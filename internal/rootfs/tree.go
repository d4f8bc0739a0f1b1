package rootfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// Tree is a root whose files are read and written. The descriptors stay the
// caller's. Which of them must be there says each operation.
type Tree struct {
	// Root is the root with the mounts that belong to its files.
	Root *os.File
	// Bare is the same root without any mount.
	Bare *os.File
	// Upper is the overlay's upper directory, Lower what lies below it.
	Upper, Lower *os.File
	// Exclude are paths at which the engine made something to mount on, see LayerOptions.
	Exclude []string
	// IDs is the map of the user namespace through which Root and Bare show
	// owners; nil is none: they show them as they are on the disk.
	IDs isolation.IDMap
	// User finds the ids of a user's name inside, in Docker's form; it may be
	// nil where no Request has one.
	User func(name string) (uid, gid uint32, err error)
	// Sync is called after something was written; nil for nothing.
	Sync func() error
}

// Op names an operation on a tree.
type Op string

// The operations: what they read from the input and write to the output.
const (
	OpStat    Op = "stat"    // Path -> one Stat in JSON
	OpGet     Op = "get"     // Path -> tar
	OpPut     Op = "put"     // tar; Path, User, NoOverwriteDirNonDir
	OpExport  Op = "export"  // -> tar of the whole root
	OpChanges Op = "changes" // -> one Change a line in JSON
	OpLayer   Op = "layer"   // -> OCI layer tar
	OpUser    Op = "user"    // User: nothing, or ErrNotFound where the root has no such user or group
)

// Request is one operation, ready to travel.
type Request struct {
	Op   Op     `json:"op"`
	Path string `json:"path,omitempty"` // inside, as the user wrote it: a slash or dot at its end counts
	// User is whom OpUser looks for, and makes everything that is put this user's
	// instead of the stream's owner.
	User string `json:"user,omitempty"`
	// NoOverwriteDirNonDir refuses to put a file in the place of a directory and
	// the other way round.
	NoOverwriteDirNonDir bool `json:"noOverwriteDirNonDir,omitempty"`
	// Mount is 0 for the root, or the number of a copied mount of the spec,
	// counted from 1 (isolation.MountCopy): then Path lies in its place.
	Mount int `json:"mount,omitempty"`
	// Still asks that the instance's processes are held still meanwhile.
	Still bool `json:"still,omitempty"`
}

// rawRequest is a Request on its way: JSON has no strings that are not UTF-8, and
// paths need not be.
type rawRequest struct {
	plainRequest
	RawPath []byte `json:"rawPath,omitempty"` // in the place of path
}

type plainRequest Request

// MarshalJSON keeps each byte of the path.
func (r Request) MarshalJSON() ([]byte, error) {
	raw := rawRequest{plainRequest: plainRequest(r)}
	if !utf8.ValidString(r.Path) {
		raw.Path, raw.RawPath = "", []byte(r.Path)
	}
	return json.Marshal(raw)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Request) UnmarshalJSON(text []byte) error {
	var raw rawRequest
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	if *r = Request(raw.plainRequest); len(raw.RawPath) > 0 {
		r.Path = string(raw.RawPath)
	}
	return nil
}

// Serve carries out one request. in and out may be nil where the operation has
// no use for them. Errors: errdefs.ErrNotFound for a path that does not exist,
// ErrInvalidArgument for a request or stream that makes no sense,
// ErrFailedPrecondition for what the tree does not allow,
// ErrResourceExhausted for a full disk.
func (t *Tree) Serve(ctx context.Context, r *Request, in io.Reader, out io.Writer) error {
	need := func(files ...*os.File) error {
		for _, f := range files {
			if f == nil {
				return fmt.Errorf("cannot %s here: %w", r.Op, errdefs.ErrNotImplemented)
			}
		}
		return nil
	}
	var err error
	switch r.Op {
	case OpStat:
		if err = need(t.Root); err == nil {
			var st *Stat
			if st, err = t.Stat(r.Path); err == nil {
				err = json.NewEncoder(out).Encode(st)
			}
		}
	case OpGet:
		if err = need(t.Root); err == nil {
			err = t.Get(ctx, r.Path, out)
		}
	case OpPut:
		if err = need(t.Root); err == nil {
			err = t.Put(ctx, r, in)
		}
	case OpExport:
		if err = need(t.Bare); err == nil {
			err = t.Export(ctx, out)
		}
	case OpChanges:
		if err = need(t.Upper, t.Lower); err == nil {
			enc := json.NewEncoder(out)
			err = t.Changes(ctx, func(c Change) error { return enc.Encode(c) })
		}
	case OpLayer:
		if err = need(t.Upper); err == nil {
			err = WriteLayer(ctx, out, t.Upper, LayerOptions{Exclude: t.Exclude, Lower: t.Lower})
		}
	case OpUser:
		if err = need(t.Root); err == nil {
			_, _, err = t.User(r.User)
		}
	default:
		err = fmt.Errorf("cannot carry out the unknown operation %q: %w", r.Op, errdefs.ErrInvalidArgument)
	}
	return err
}

// Stat is what is known of one path, in the words of Docker's API
// (X-Docker-Container-Path-Stat).
type Stat struct {
	Name       string `json:"name"`
	Size       int64  `json:"size"`
	Mode       uint32 `json:"mode"` // type and permissions as in stat(2)
	Sec        int64  `json:"sec"`  // modification time
	Nsec       uint32 `json:"nsec"`
	LinkTarget string `json:"linkTarget,omitempty"` // where a symbolic link leads to in the end, from the root
}

// Stat looks at a path. A symbolic link at its end is not followed unless a
// slash or "/." comes after it.
func (t *Tree) Stat(name string) (*Stat, error) {
	p, err := t.pin(name)
	if err != nil {
		return nil, err
	}
	defer p.close()
	st := &Stat{Name: path.Base(absolute(name)), Size: p.st.Size, Mode: p.st.Mode, Sec: p.st.Sec, Nsec: p.st.Nsec}
	if p.st.Type() == sys.TypeSymlink {
		var ends bool
		if st.LinkTarget, ends = t.follow(absolute(name)); !ends { // as Docker, whose clients ask before they copy
			return nil, fmt.Errorf("cannot look up %q: %w: %w", name, syscall.ELOOP, errdefs.ErrInvalidArgument)
		}
	}
	return st, nil
}

// absolute is a path from the root on, with the slash or dot at its end that
// the user may have written.
func absolute(name string) string {
	clean := path.Join("/", name)
	switch {
	case name != "" && path.Base(name) == ".": // ".", "./", "a/.", "a/./"
		clean = strings.TrimSuffix(clean, "/") + "/."
	case clean == "/":
	case strings.HasSuffix(name, "/"):
		clean += "/"
	}
	return clean
}

// EntryBase is the name that the first entry of the archive of a path has, as
// in Docker: "etc" for "/etc", "." wherever the path ends in a dot, and "" for
// the root, whose entries begin with a slash.
func EntryBase(name string) string {
	base := path.Base(absolute(name))
	if base == "/" {
		return ""
	}
	return base
}

// Resolve gives the path that a path leads to in the end, with all symbolic
// links followed inside, as far as it exists. It is good for a message or a
// decision about mounts; files are opened by descriptor.
func (t *Tree) Resolve(name string) string {
	at, _ := t.follow(absolute(name))
	return at
}

// pin opens what a path inside names.
func (t *Tree) pin(name string) (*pinned, error) {
	if strings.Contains(name, "\x00") {
		return nil, fmt.Errorf("cannot look up %q: a zero byte: %w", name, errdefs.ErrInvalidArgument)
	}
	f, err := sys.OpenInRoot(t.Root, absolute(name), sys.OnlyPin|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, lookupError(name, err)
	}
	return pinOwned(f)
}

func lookupError(name string, err error) error {
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENAMETOOLONG) {
		return fmt.Errorf("cannot look up %q: %w: %w", name, reason(err), errdefs.ErrNotFound)
	}
	return fmt.Errorf("cannot look up %q: %w", name, err)
}

// reason is the kernel's part of an error.
func reason(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

// follow gives the path that a path leads to in the end, as far as it exists,
// and whether there is an end; nothing but a name is made of it.
func (t *Tree) follow(name string) (_ string, ends bool) {
	at, todo := "/", strings.Split(name, "/")
	for hops := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		f, err := sys.OpenInRoot(t.Root, next, sys.OnlyPin|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return path.Join(next, strings.Join(todo, "/")), true
		}
		st, err := sys.StatFile(f)
		target := ""
		if err == nil && st.Type() == sys.TypeSymlink {
			target, err = sys.ReadLink(f)
		}
		_ = f.Close()
		if err != nil || target == "" {
			at = next
			continue
		}
		if hops++; hops > maxHops {
			return at, false
		}
		if target[0] == '/' {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return at, true
}

// maxHops is how many symbolic links are followed, as many as Docker follows.
const maxHops = 255
