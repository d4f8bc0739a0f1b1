package engine

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"proa/internal/volume"
)

// MountPlan is one wanted mount, kept in the record. Files are opened from it
// at each start.
type MountPlan struct {
	Type         mount.Type        `json:"type"` // bind, volume or tmpfs
	Volume       string            `json:"volume,omitempty"`
	Anonymous    bool              `json:"anonymous,omitempty"` // made for this container and removed with it on request
	Labels       map[string]string `json:"labels,omitempty"`    // of a volume to make
	DriverOpts   map[string]string `json:"driverOpts,omitempty"`
	Subpath      string            `json:"subpath,omitempty"` // inside the volume
	Source       string            `json:"source,omitempty"`  // bind: path of the host
	MakeSource   bool              `json:"makeSource,omitempty"`
	Target       string            `json:"target"`
	Readonly     bool              `json:"readonly,omitempty"`
	ReadonlyTop  bool              `json:"readonlyTop,omitempty"` // bind: mounts below it stay writable
	NonRecursive bool              `json:"nonRecursive,omitempty"`
	Propagation  mount.Propagation `json:"propagation,omitempty"`
	NoCopy       bool              `json:"noCopy,omitempty"` // no copy-up into a new volume
	Size         int64             `json:"size,omitempty"`   // tmpfs
	Mode         uint32            `json:"mode,omitempty"`   // tmpfs
	Options      string            `json:"options,omitempty"`
	Text         string            `json:"text,omitempty"` // the options as written, for inspect
}

// point is the plan as Docker's inspect shows it.
func (p *MountPlan) point(volumePath string) container.MountPoint {
	m := container.MountPoint{Type: p.Type, Source: p.Source, Destination: p.Target, Mode: p.Text, RW: !p.Readonly, Propagation: p.Propagation}
	switch p.Type {
	case mount.TypeVolume:
		m.Name, m.Source, m.Driver = p.Volume, volumePath, volume.Driver
	case mount.TypeBind:
		if m.Propagation == "" {
			m.Propagation = mount.PropagationRPrivate
		}
	case mount.TypeTmpfs:
		m.Source = ""
	}
	return m
}

// planMounts collects what is to be mounted, by Docker's order of precedence:
// VolumesFrom, then Binds and Mounts, then Tmpfs, then the image's volumes.
// A later source takes the place of VolumesFrom; any other two mounts of one
// target are refused. from gives the plan of another container.
//
// A VM keeps what it writes on a disk of its own, so the image's volumes are
// left out there.
func planMounts(c *container.Config, h *container.HostConfig, vm bool, from func(ref string) ([]MountPlan, error)) ([]MountPlan, error) {
	byTarget := map[string]MountPlan{}
	inherited := map[string]bool{}
	for _, ref := range h.VolumesFrom {
		if ref == "" {
			return nil, invalid("volumes-from specification cannot be an empty string")
		}
		name, mode, _ := strings.Cut(ref, ":")
		if mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
			return nil, invalid("invalid mode: %s", mode)
		}
		plans, err := from(name)
		if err != nil {
			return nil, err
		}
		for _, p := range plans {
			if p.Type == mount.TypeTmpfs {
				continue
			}
			p.Readonly = p.Readonly || mode == "ro"
			// Nothing of this image is copied into what another container has. An
			// anonymous volume goes with the last container that has it.
			p.NoCopy = true
			byTarget[p.Target], inherited[p.Target] = p, true
		}
	}
	add := func(p MountPlan) error {
		if err := checkTarget(&p); err != nil {
			return err
		}
		if _, taken := byTarget[p.Target]; taken && !inherited[p.Target] {
			return invalid("Duplicate mount point: %s", p.Target)
		}
		delete(inherited, p.Target)
		byTarget[p.Target] = p
		return nil
	}
	for _, b := range h.Binds {
		p, err := parseBind(b)
		if err == nil {
			err = checkVolumeDriver(p, h.VolumeDriver)
		}
		if p.Type == mount.TypeVolume && p.Text == "" {
			p.Text = "z" // what Docker shows of a volume without a mode
		}
		if err == nil {
			err = add(p)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, m := range h.Mounts {
		p, err := planOf(m)
		if err == nil {
			err = add(p)
		}
		if err != nil {
			return nil, err
		}
	}
	for target, opts := range h.Tmpfs {
		p, err := parseTmpfs(target, opts)
		if err == nil {
			err = add(p)
		}
		if err != nil {
			return nil, err
		}
	}
	for target := range c.Volumes {
		if vm {
			break
		}
		p := MountPlan{Type: mount.TypeVolume, Target: target, Anonymous: true}
		if err := checkTarget(&p); err != nil {
			return nil, err
		}
		if _, taken := byTarget[p.Target]; !taken {
			if err := checkVolumeDriver(p, h.VolumeDriver); err != nil {
				return nil, err
			}
			byTarget[p.Target] = p
		}
	}

	out := make([]MountPlan, 0, len(byTarget))
	for _, p := range byTarget {
		if p.Type == mount.TypeVolume && p.Volume == "" {
			p.Volume, p.Anonymous = newID(), true
		}
		out = append(out, p)
	}
	// Outer ones first, so that none hides another.
	slices.SortFunc(out, func(a, b MountPlan) int {
		if n := strings.Count(a.Target, "/") - strings.Count(b.Target, "/"); n != 0 {
			return n
		}
		return strings.Compare(a.Target, b.Target)
	})
	return out, nil
}

// checkVolumeDriver refuses a driver that does not exist as soon as a volume
// would be made by it; until then its name is only kept, as in Docker.
func checkVolumeDriver(p MountPlan, driver string) error {
	if p.Type != mount.TypeVolume || driver == "" || driver == volume.Driver {
		return nil
	}
	return volume.NoDriver(cmp.Or(p.Volume, newID()), driver)
}

func checkTarget(p *MountPlan) error {
	if !path.IsAbs(p.Target) {
		return invalid("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", p.Type, p.Target)
	}
	if strings.ContainsRune(p.Target, 0) {
		return invalid("invalid mount path %q: it holds a zero byte", p.Target)
	}
	p.Target = path.Clean(p.Target)
	if p.Target == "/" {
		return invalid("invalid mount config for type %q: invalid specification: destination can't be '/'", p.Type)
	}
	return nil
}

// parseBind reads "source:target[:options]" and "target" of -v.
func parseBind(s string) (MountPlan, error) {
	parts := strings.Split(s, ":")
	p := MountPlan{Type: mount.TypeVolume}
	bad := invalid("invalid volume specification: '%s'", s)
	switch {
	case len(parts) > 3 || slices.Contains(parts, ""):
		return p, bad
	case len(parts) == 1:
		p.Target = parts[0]
		return p, nil
	}
	p.Target = parts[1]
	if path.IsAbs(parts[0]) {
		p.Type, p.Source, p.MakeSource = mount.TypeBind, filepath.Clean(parts[0]), true
	} else {
		p.Volume = parts[0]
	}
	if len(parts) == 3 {
		p.Text = parts[2]
	}
	seen := map[string]bool{}
	for _, o := range strings.Split(p.Text, ",") {
		class := o
		switch o {
		case "":
			continue
		case "ro", "rw":
			p.Readonly, class = o == "ro", "rw"
		case "z", "Z":
			class = "label" // no SELinux: nothing to label
		case "nocopy":
			if p.Type != mount.TypeVolume {
				return p, invalid("invalid mode: %s: nocopy is for volumes", p.Text)
			}
			p.NoCopy = true
		case "consistent", "cached", "delegated", "default":
			class = "consistency" // means something on other systems only
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			if p.Type != mount.TypeBind {
				return p, invalid("invalid mode: %s: propagation is for bind mounts", p.Text)
			}
			p.Propagation, class = mount.Propagation(o), "propagation"
			if err := checkPropagation(p.Propagation); err != nil {
				return p, err
			}
		default:
			return p, invalid("invalid mode: %s", p.Text)
		}
		if seen[class] {
			return p, invalid("invalid mode: %s: two options of one kind", p.Text)
		}
		seen[class] = true
	}
	return p, nil
}

// checkPropagation refuses what the engine's own mount namespace cannot give:
// a mount made inside a container does not reach the host.
func checkPropagation(p mount.Propagation) error {
	if p == mount.PropagationShared || p == mount.PropagationRShared {
		return invalid("cannot honour mount propagation %s: mounts of a container stay inside; use rslave or rprivate", p)
	}
	return nil
}

// planOf reads one --mount.
func planOf(m mount.Mount) (MountPlan, error) {
	p := MountPlan{Type: m.Type, Target: m.Target, Readonly: m.ReadOnly}
	bad := func(format string, args ...any) (MountPlan, error) {
		return p, invalid("invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	given := map[string]bool{"BindOptions": m.BindOptions != nil, "VolumeOptions": m.VolumeOptions != nil, "ImageOptions": m.ImageOptions != nil, "TmpfsOptions": m.TmpfsOptions != nil, "ClusterOptions": m.ClusterOptions != nil}
	own := map[mount.Type]string{mount.TypeBind: "BindOptions", mount.TypeVolume: "VolumeOptions", mount.TypeTmpfs: "TmpfsOptions"}[m.Type]
	for name, set := range given {
		if set && name != own {
			return bad("field %s must not be specified", name)
		}
	}
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if !filepath.IsAbs(m.Source) {
			return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		p.Source = filepath.Clean(m.Source)
		if o := m.BindOptions; o != nil {
			if o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
				return bad("invalid propagation mode: %s", o.Propagation)
			}
			switch {
			case o.ReadOnlyNonRecursive && !m.ReadOnly:
				return p, invalid("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
			case o.ReadOnlyForceRecursive && !m.ReadOnly:
				return p, invalid("mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
			case o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive:
				return p, invalid("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
			}
			if err := checkPropagation(o.Propagation); err != nil {
				return p, err
			}
			p.ReadonlyTop = o.ReadOnlyNonRecursive
			p.Propagation, p.NonRecursive, p.MakeSource = o.Propagation, o.NonRecursive, o.CreateMountpoint
		}
	case mount.TypeVolume:
		p.Volume = m.Source
		if o := m.VolumeOptions; o != nil {
			p.NoCopy, p.Labels, p.Subpath = o.NoCopy, o.Labels, o.Subpath
			if o.Subpath != "" && (m.Source == "" || !filepath.IsLocal(o.Subpath)) {
				return bad("invalid subpath %q", o.Subpath)
			}
			if d := o.DriverConfig; d != nil {
				if err := checkVolumeDriver(p, d.Name); err != nil {
					return p, err
				}
				p.DriverOpts = d.Options
			}
		}
		p.Text = "z"
	case mount.TypeTmpfs:
		if m.Source != "" {
			return bad("field Source must not be specified")
		}
		p.Options = "noexec,nosuid,nodev"
		if o := m.TmpfsOptions; o != nil {
			if o.SizeBytes < 0 {
				return bad("size cannot be negative")
			}
			p.Size, p.Mode = o.SizeBytes, uint32(o.Mode.Perm())|uint32(o.Mode)&0o7000
			var opts []string
			for _, kv := range o.Options {
				opts = append(opts, strings.Join(kv, "="))
			}
			t, err := parseTmpfs(m.Target, strings.Join(opts, ","))
			if err != nil {
				return p, err
			}
			p.Options = t.Options
		}
	default:
		return bad("mount type unknown or not supported (known: bind, volume, tmpfs)")
	}
	return p, nil
}

// valued are the options of a tmpfs that have a value.
var valued = map[string]bool{"size": true, "mode": true, "uid": true, "gid": true, "nr_inodes": true, "nr_blocks": true, "mpol": true, "huge": true}

// parseTmpfs reads the options of --tmpfs: those of mount(8) and of tmpfs that
// Docker takes (moby/sys/mount, MergeTmpfsOptions). Docker's defaults are noexec,
// nosuid and nodev; each can be lifted by its opposite. The later one of two that
// contradict each other counts.
func parseTmpfs(target, opts string) (MountPlan, error) {
	p := MountPlan{Type: mount.TypeTmpfs, Target: target, Text: opts}
	flags := map[string]bool{"noexec": true, "nosuid": true, "nodev": true}
	var more []string
	for _, o := range strings.Split(opts, ",") {
		key, value, has := strings.Cut(o, "=")
		bad := invalid("invalid tmpfs option %q", o)
		if has != valued[key] && o != "" {
			return p, bad
		}
		switch key {
		case "", "defaults", "mand", "nomand": // Linux has no mandatory locks any more
		case "ro", "rw":
			p.Readonly = key == "ro"
		case "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable":
			p.Propagation = mount.Propagation(key)
		case "noexec", "nosuid", "nodev":
			flags[key] = true
		case "exec", "suid", "dev":
			flags["no"+key] = false
		case "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "sync", "async", "dirsync":
			more = append(more, key)
		case "size":
			if n, ok := strings.CutSuffix(value, "%"); ok { // of the host's or the guest's memory
				if _, err := strconv.ParseUint(n, 10, 16); err != nil {
					return p, bad
				}
				p.Size, more = 0, append(more, o)
				continue
			}
			n, err := parseSize(value)
			if err != nil {
				return p, bad
			}
			p.Size = n
		case "mode":
			n, err := strconv.ParseUint(value, 8, 12)
			if err != nil {
				return p, bad
			}
			p.Mode = uint32(n)
		case "uid", "gid", "nr_inodes", "nr_blocks":
			if _, err := strconv.ParseUint(strings.TrimRight(value, "kmgKMG"), 10, 32); err != nil {
				return p, bad
			}
			more = append(more, o)
		case "mpol", "huge":
			if value == "" || strings.ContainsAny(value, "\x00 ") {
				return p, bad
			}
			more = append(more, o)
		default:
			return p, bad
		}
	}
	for _, f := range []string{"nodev", "noexec", "nosuid"} {
		if !flags[f] {
			f = f[len("no"):] // said aloud: a driver's own default is the strict one
		}
		more = append(more, f)
	}
	p.Options = strings.Join(more, ",")
	return p, nil
}
