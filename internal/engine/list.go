package engine

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	"proa/internal/filters"
	"proa/internal/network"
)

// predicate is one condition of a list.
type predicate func(*Container) bool

// conditions are predicates that must all hold.
type conditions []predicate

func (all conditions) hold(c *Container) bool {
	return !slices.ContainsFunc(all, func(p predicate) bool { return !p(c) })
}

// List gives containers, newest first. Only those that run, unless All, Limit
// or the filter "status" says otherwise.
func (e *Engine) List(ctx context.Context, o ListOptions) ([]*Container, error) {
	if err := filters.Containers.Check(o.Filters); err != nil {
		return nil, err
	}
	var out []*Container
	for _, b := range e.boxes() {
		out = append(out, b.snap.Load())
	}
	slices.SortFunc(out, newestFirst)
	keep, err := e.listFilter(ctx, o.Filters, out)
	if err != nil {
		return nil, err
	}
	all := o.All || o.Limit > 0 || len(o.Filters["status"]) > 0
	out = slices.DeleteFunc(out, func(c *Container) bool {
		return !all && !runs(c) || !keep.hold(c)
	})
	if o.Limit > 0 && len(out) > o.Limit {
		out = out[:o.Limit]
	}
	return out, nil
}

func newestFirst(a, b *Container) int {
	if c := b.Created.Compare(a.Created); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// runs tells whether Docker counts a container as one that runs: also between
// two runs of its restart policy.
func runs(c *Container) bool { return c.State.alive() || c.State == Restarting }

// listFilter makes conditions of filters that were checked. list are all
// containers, newest first.
func (e *Engine) listFilter(ctx context.Context, f filters.Args, list []*Container) (conditions, error) {
	var all conditions
	for key := range f {
		var p predicate
		var err error
		switch key {
		case "id":
			p = byID(f, list)
		case "before", "since":
			p, err = e.byAge(ctx, f, key)
		case "ancestor":
			p, err = e.byImage(ctx, f)
		default:
			p = byFact(f, key)
		}
		if err != nil {
			return nil, err
		}
		if p != nil {
			all = append(all, p)
		}
	}
	return all, nil
}

// byFact is the condition of a key that a container alone answers; nil for the
// keys that listFilter or byPort handles.
func byFact(f filters.Args, key string) predicate {
	values := f[key]
	switch key {
	case "name":
		return func(c *Container) bool { return f.Pattern(key, "/"+c.Name) || f.Pattern(key, c.Name) }
	case "label":
		return func(c *Container) bool { return f.Pairs(key, c.Config.Labels) }
	case "annotation":
		return func(c *Container) bool { return f.Pairs(key, c.Host.Annotations) }
	case "status":
		return func(c *Container) bool { return f.Pattern(key, string(c.State)) }
	case "exited":
		return func(c *Container) bool {
			return len(values) == 0 || !runs(c) && !c.StartedAt.IsZero() && hasCode(f.Values(key), c.ExitCode)
		}
	case "volume":
		return func(c *Container) bool {
			return slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool {
				return values[m.Destination] || values[m.Name] || m.Name == "" && values[m.Source]
			})
		}
	case "network":
		return func(c *Container) bool { return onNetwork(f.Values(key), string(c.Host.NetworkMode)) }
	case "publish", "expose":
		return byPort(f)
	case "health":
		return func(c *Container) bool {
			if c.Health == nil {
				return f.Exact(key, string(container.NoHealthcheck))
			}
			return f.Exact(key, string(c.Health.Status))
		}
	case "isolation":
		return func(c *Container) bool {
			return len(values) == 0 || slices.ContainsFunc(f.Values(key), func(v string) bool {
				return strings.EqualFold(string(c.Kind), v) || v == "default" && c.Kind == "container"
			})
		}
	case "is-task": // there are none
		task, _ := f.Bool(key, false)
		return func(*Container) bool { return !task }
	}
	return nil
}

func hasCode(values []string, code int) bool {
	return slices.ContainsFunc(values, func(v string) bool {
		n, err := strconv.Atoi(v)
		return err == nil && n == code
	})
}

// onNetwork tells whether a mode is that of a network given by its name or by
// the beginning of its id.
func onNetwork(values []string, mode string) bool {
	if mode == "" || mode == "default" {
		mode = "bridge"
	}
	return slices.ContainsFunc(values, func(v string) bool {
		return v == mode || network.IsBuiltin(mode) && strings.HasPrefix(network.ID(mode), v)
	})
}

// byPort finds published host ports and exposed ports of the container; a
// container that has one of either is enough.
func byPort(f filters.Args) predicate {
	if len(f["publish"])+len(f["expose"]) == 0 {
		return nil
	}
	return func(c *Container) bool {
		if !c.State.alive() || c.Host.NetworkMode != "bridge" {
			return false // a list shows ports while they are on a network
		}
		for p := range c.Config.ExposedPorts {
			if f.Port("expose", p.Num(), string(p.Proto())) {
				return true
			}
		}
		for p, bound := range c.Ports {
			if len(bound) > 0 && f.Port("expose", p.Num(), string(p.Proto())) {
				return true
			}
			for _, b := range bound {
				host, err := strconv.ParseUint(b.HostPort, 10, 16)
				if err == nil && f.Port("publish", uint16(host), string(p.Proto())) {
					return true
				}
			}
		}
		return false
	}
}

// byID finds containers by the beginning of an id that fits no other.
func byID(f filters.Args, list []*Container) predicate {
	if len(f["id"]) == 0 {
		return nil
	}
	found := map[string]bool{}
	for v := range f["id"] {
		var fits []string
		for _, c := range list {
			if v != "" && strings.HasPrefix(c.ID, v) {
				fits = append(fits, c.ID)
			}
		}
		if len(fits) == 1 {
			found[fits[0]] = true
		}
	}
	return func(c *Container) bool { return found[c.ID] }
}

// byAge finds what was created before or since others.
func (e *Engine) byAge(ctx context.Context, f filters.Args, key string) (predicate, error) {
	var all conditions
	for v := range f[key] {
		ref, err := e.Get(ctx, v)
		if err != nil {
			return nil, err
		}
		all = append(all, func(c *Container) bool {
			if key == "before" {
				return newestFirst(c, ref) > 0
			}
			return newestFirst(c, ref) < 0
		})
	}
	return all.hold, nil
}

// byImage finds the containers of the images that the values mean now; a value
// that means none finds nothing.
func (e *Engine) byImage(ctx context.Context, f filters.Args) (predicate, error) {
	found := map[digest.Digest]bool{}
	for v := range f["ancestor"] {
		img, err := e.cfg.Images.Get(ctx, v)
		switch {
		case err == nil:
			found[img.ID] = true
		case !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err):
			return nil, err
		}
	}
	return func(c *Container) bool { return found[c.ImageID] }, nil
}

// pruneFilter makes conditions of until, label and label!.
func pruneFilter(f filters.Args, now time.Time) (predicate, error) {
	if err := filters.ContainerPrune.Check(f); err != nil {
		return nil, err
	}
	until := f.Until("until", now)
	return func(c *Container) bool {
		return (until.IsZero() || !c.Created.After(until)) && f.Labels(c.Config.Labels)
	}, nil
}
