package engine

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
)

// List gives containers, newest first.
func (e *Engine) List(ctx context.Context, o ListOptions) ([]*Container, error) {
	keep, err := e.listFilter(ctx, o.Filters)
	if err != nil {
		return nil, err
	}
	var out []*Container
	for _, b := range e.boxes() {
		out = append(out, b.snap.Load())
	}
	slices.SortFunc(out, func(a, b *Container) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	all := o.All || o.Limit > 0
	for _, key := range []string{"status", "exited", "before", "since"} {
		all = all || len(o.Filters[key]) > 0
	}
	out = slices.DeleteFunc(out, func(c *Container) bool {
		return !all && !c.State.alive() && c.State != Restarting || !keep(c)
	})
	if o.Limit > 0 && len(out) > o.Limit {
		out = out[:o.Limit]
	}
	return out, nil
}

// predicate is one alternative of a filter.
type predicate func(*Container) bool

// listFilter makes a predicate of Docker's filters: alternatives within a key,
// except that every label must match; all keys together.
func (e *Engine) listFilter(ctx context.Context, filters map[string][]string) (predicate, error) {
	var all []predicate
	for key, values := range filters {
		var any []predicate
		for _, v := range values {
			p, err := e.filter(ctx, key, v)
			if err != nil {
				return nil, err
			}
			if key == "label" || key == "label!" {
				all = append(all, p)
				continue
			}
			any = append(any, p)
		}
		if len(values) == 0 {
			if _, err := e.filter(ctx, key, ""); err != nil && strings.HasPrefix(err.Error(), "invalid filter '"+key+"'") {
				return nil, err
			}
		}
		if len(any) > 0 {
			all = append(all, func(c *Container) bool {
				return slices.ContainsFunc(any, func(p predicate) bool { return p(c) })
			})
		}
	}
	return func(c *Container) bool {
		return !slices.ContainsFunc(all, func(p predicate) bool { return !p(c) })
	}, nil
}

func (e *Engine) filter(ctx context.Context, key, v string) (predicate, error) {
	switch key {
	case "id":
		return func(c *Container) bool { return strings.HasPrefix(c.ID, v) }, nil
	case "name":
		match, err := nameMatcher(v)
		if err != nil {
			return nil, err
		}
		return func(c *Container) bool { return match(c.Name) }, nil
	case "label":
		return func(c *Container) bool { return hasLabel(c.Config.Labels, v) }, nil
	case "label!":
		return func(c *Container) bool { return !hasLabel(c.Config.Labels, v) }, nil
	case "status":
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return nil, invalid("%w", err)
		}
		return func(c *Container) bool { return string(c.State) == v }, nil
	case "ancestor":
		img, err := e.cfg.Images.Get(ctx, v)
		return func(c *Container) bool { return c.ImageRef == v || err == nil && c.ImageID == img.ID }, nil
	case "exited":
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, invalid("invalid filter 'exited=%s'", v)
		}
		return func(c *Container) bool { return c.State == Exited && c.ExitCode == n }, nil
	case "volume":
		return func(c *Container) bool {
			return slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool { return m.Name == v || m.Destination == v || m.Source == v })
		}, nil
	case "network":
		return func(c *Container) bool { return string(c.Host.NetworkMode) == v }, nil
	case "before", "since":
		ref, err := e.Get(ctx, v)
		if err != nil {
			return nil, err
		}
		if key == "before" {
			return func(c *Container) bool { return c.Created.Before(ref.Created) }, nil
		}
		return func(c *Container) bool { return c.Created.After(ref.Created) }, nil
	case "publish", "expose":
		match, err := portMatcher(v)
		if err != nil {
			return nil, invalid("invalid filter '%s=%s'", key, v)
		}
		return func(c *Container) bool {
			for p := range c.Config.ExposedPorts {
				if key == "expose" && match(p) {
					return true
				}
			}
			for p, bound := range c.Ports {
				if len(bound) > 0 && match(p) {
					return true
				}
			}
			return false
		}, nil
	case "health":
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return nil, invalid("%w", err)
		}
		return func(c *Container) bool {
			if c.Health == nil {
				return v == string(container.NoHealthcheck)
			}
			return string(c.Health.Status) == v
		}, nil
	case "isolation":
		return func(c *Container) bool {
			return strings.EqualFold(string(c.Kind), v) || v == "default" && c.Kind == "container"
		}, nil
	case "is-task":
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, invalid("invalid filter 'is-task=%s'", v)
		}
		return func(*Container) bool { return !b }, nil
	}
	return nil, invalid("invalid filter '%s'", key)
}

// nameMatcher matches a name as Docker does: an expression that may be found
// anywhere, with or without the slash before the name.
func nameMatcher(v string) (func(string) bool, error) {
	re, err := regexp.Compile(v)
	if err != nil {
		return nil, invalid("invalid filter 'name=%s': %w", v, err)
	}
	return func(name string) bool { return re.MatchString(name) || re.MatchString("/"+name) }, nil
}

// portMatcher reads "80", "80/udp", "8000-8010/tcp".
func portMatcher(v string) (func(dockernet.Port) bool, error) {
	r, err := dockernet.ParsePortRange(v)
	if err != nil {
		return nil, err
	}
	return func(p dockernet.Port) bool {
		return p.Num() >= r.Start() && p.Num() <= r.End() && p.Proto() == r.Proto()
	}, nil
}

// pruneFilter reads until (a time, or a duration before now), label and label!.
func pruneFilter(filters map[string][]string, now time.Time) (predicate, error) {
	var all []predicate
	for key, values := range filters {
		for _, v := range values {
			switch key {
			case "label":
				all = append(all, func(c *Container) bool { return hasLabel(c.Config.Labels, v) })
			case "label!":
				all = append(all, func(c *Container) bool { return !hasLabel(c.Config.Labels, v) })
			case "until":
				t, err := parseUntil(v, now)
				if err != nil {
					return nil, err
				}
				all = append(all, func(c *Container) bool { return c.Created.Before(t) })
			default:
				return nil, invalid("invalid filter '%s'", key)
			}
		}
	}
	return func(c *Container) bool {
		return !slices.ContainsFunc(all, func(p predicate) bool { return !p(c) })
	}, nil
}

// parseUntil reads "24h", "1700000000[.5]" and RFC 3339 times.
func parseUntil(v string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	if s, err := strconv.ParseFloat(v, 64); err == nil {
		return time.Unix(0, int64(s*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalid("invalid filter 'until=%s': use a duration, a Unix time or an RFC 3339 time", v)
}
