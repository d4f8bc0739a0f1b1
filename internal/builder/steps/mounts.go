package steps

import (
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"proa/internal/build/step/wire"
	"proa/internal/engine"
	"proa/internal/isolation"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// readMount reads where files come from, and whether that alone makes them
// read-only. What it does not know it refuses: an option that is not honoured
// would be a promise that is not kept.
func readMount(m wire.Mount) (f engine.StepFiles, readonly bool, err error) {
	what := m.Target
	if what == "" {
		what = "/"
	}
	switch m.Type {
	case "bind":
		f.Type, f.Source = isolation.MountBind, m.Source
		for _, o := range m.Options {
			switch o {
			case "ro":
				readonly = true
			case "rw", "bind", "rbind", "nodev", "nosuid", "noexec": // a bind has those of its source
			default:
				return f, false, invalid("cannot mount at %s: option %q of a bind is not known", what, o)
			}
		}
		if !filepath.IsAbs(f.Source) {
			return f, false, invalid("cannot mount at %s: source %q is not absolute", what, f.Source)
		}
	case "overlay":
		f.Type = engine.FilesOverlay
		var work string
		for _, o := range m.Options {
			key, value, _ := strings.Cut(o, "=")
			switch key {
			case "lowerdir":
				f.Source = value
			case "upperdir":
				f.Upper = value
			case "workdir":
				work = value
			case "ro":
				readonly = true
			case "rw", "volatile", "index", "userxattr", "redirect_dir", "metacopy": // chosen by the driver
			default:
				return f, false, invalid("cannot mount at %s: option %q of an overlay is not known", what, o)
			}
		}
		// The layers are merged before they are mounted, and a writable one is
		// one directory with two in it.
		dir := filepath.Dir(f.Upper)
		if !filepath.IsAbs(f.Source) || strings.Contains(f.Source, ":") || !filepath.IsAbs(f.Upper) ||
			f.Upper != filepath.Join(dir, "upper") || work != filepath.Join(dir, "work") {
			return f, false, invalid("cannot mount at %s: an overlay of %q, written to %q and %q, is not one of this engine's snapshots", what, f.Source, f.Upper, work)
		}
		f.Upper = dir
	case "tmpfs":
		f.Type = isolation.MountTmpfs
		for _, o := range m.Options {
			key, value, _ := strings.Cut(o, "=")
			switch key {
			case "size":
				if f.Size, err = strconv.ParseInt(value, 10, 64); err != nil || f.Size <= 0 {
					return f, false, invalid("cannot mount at %s: size %q of a tmpfs is not a number of bytes", what, value)
				}
			case "ro":
				readonly = true
			case "rw", "nosuid", "nodev":
			default:
				return f, false, invalid("cannot mount at %s: option %q of a tmpfs is not known", what, o)
			}
		}
	default:
		return f, false, invalid("cannot mount at %s: a mount of type %q is not possible in a step", what, m.Type)
	}
	return f, readonly, nil
}

// readMounts reads those besides the root. Of several at one place the last one
// counts.
func readMounts(list []wire.Mount) (out []engine.StepMount, err error) {
	at := map[string]int{}
	for _, m := range list {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
			return nil, invalid("cannot mount at %q: it must be an absolute path below /", m.Target)
		}
		files, readonly, err := readMount(m)
		if err != nil {
			return nil, err
		}
		sub := strings.TrimPrefix(path.Clean("/"+m.Selector), "/")
		if sub != "" && files.Type == isolation.MountTmpfs {
			return nil, invalid("cannot mount at %s: there is no %q in an empty tmpfs", m.Target, m.Selector)
		}
		mount := engine.StepMount{StepFiles: files, Subpath: sub, Target: path.Clean(m.Target), Readonly: m.Readonly || readonly}
		if i, again := at[mount.Target]; again {
			out[i] = mount
			continue
		}
		at[mount.Target] = len(out)
		out = append(out, mount)
	}
	return out, nil
}
