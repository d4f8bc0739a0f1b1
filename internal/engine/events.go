package engine

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"

	"proa/internal/event"
	"proa/internal/filters"
	"proa/internal/network"
)

// Scope is that of all events: this engine is one node.
const Scope = "local"

// emit publishes what happened to a container. It looks nothing up: what an
// event says is in the snapshot.
func (e *Engine) emit(c *Container, row *event.Row, own ...string) {
	e.publish(row.Of(c.ID, facts(c), own...))
}

// emitDetail is emit of a row whose action goes on with what was done.
func (e *Engine) emitDetail(c *Container, row *event.Row, detail string, own ...string) {
	e.publish(row.Of(c.ID, facts(c), own...).With(detail))
}

func (e *Engine) publish(ev event.Event) {
	ev.Time = e.cfg.Now()
	e.cfg.Events.Publish(ev)
}

// commandLine is a command as events show it: the executable, a space, and the
// arguments, if any.
func commandLine(cmd []string) string { return cmd[0] + " " + strings.Join(cmd[1:], " ") }

// facts are the attributes that a container gives to its events.
func facts(c *Container) map[string]string {
	attributes := make(map[string]string, len(c.Config.Labels)+2)
	maps.Copy(attributes, c.Config.Labels)
	if c.ImageRef != "" {
		attributes["image"] = c.ImageRef
	}
	attributes["name"] = c.Name
	return attributes
}

// emitNetwork publishes that a run has joined or left its network.
func (e *Engine) emitNetwork(rec *record, row *event.Row) {
	name := string(rec.Host.NetworkMode)
	if rec.Config.NetworkDisabled || rec.Host.NetworkMode.IsContainer() {
		return
	}
	e.publish(row.Of(network.ID(name), nil, rec.ID, name, network.Driver(name)))
}

// emitMounts publishes that a run has mounted its volumes, or has left them.
func (e *Engine) emitMounts(c *Container, mounted bool) {
	for _, m := range c.Mounts {
		switch {
		case m.Type != mount.TypeVolume:
		case mounted:
			e.publish(event.VolumeMount.Of(m.Name, nil, c.ID, m.Destination, m.Driver, string(m.Propagation), strconv.FormatBool(m.RW)))
		default:
			e.publish(event.VolumeUnmount.Of(m.Name, nil, c.ID, m.Driver))
		}
	}
}

// Events gives what happened since, and goes on until the time until (zero:
// until ctx ends). With until in the past it gives what is kept and ends. The
// channel is closed at the end, also when its reader is much too slow.
func (e *Engine) Events(ctx context.Context, since, until time.Time, f filters.Args) (<-chan event.Event, error) {
	if err := filters.Events.Check(f); err != nil {
		return nil, err
	}
	var left time.Duration
	if !until.IsZero() {
		left = time.Until(until)
	}
	past, sub := e.cfg.Events.Subscribe(since, until)
	out := make(chan event.Event)
	e.work.Go(func() {
		defer close(out)
		defer sub.Close()
		send := func(ev event.Event) bool {
			if len(f) > 0 && !eventMatches(&ev, f) {
				return true
			}
			select {
			case out <- ev:
				return true
			case <-ctx.Done():
			case <-e.life.Done():
			}
			return false
		}
		for _, ev := range past {
			if !send(ev) {
				return
			}
		}
		if left < 0 {
			return
		}
		var end <-chan time.Time
		if !until.IsZero() {
			t := time.NewTimer(left)
			defer t.Stop()
			end = t.C
		}
		for {
			select {
			case ev, ok := <-sub.Events():
				if !ok || !send(ev) {
					return
				}
			case <-end:
				return
			case <-ctx.Done():
				return
			case <-e.life.Done():
				return
			}
		}
	})
	return out, nil
}

// The events whose action is followed by a detail, which need not be given.
var detailed = []string{"health_status", "exec_create", "exec_start"}

// eventMatches compares an event with filters as Docker does: all keys
// together, alternatives within a key, except that every label must match.
func eventMatches(ev *event.Event, f filters.Args) bool {
	action := f.Exact("event", ev.Action)
	if !action && slices.ContainsFunc(detailed, func(d string) bool { return f["event"][d] }) {
		action = f.Prefix("event", ev.Action)
	}
	if !action || !f.Exact("type", ev.Type) || !f.Exact("scope", Scope) || !f.Pairs("label", ev.Attributes) {
		return false
	}
	for _, kind := range []string{"config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"} {
		if !f.Prefix(kind, ev.ID) && !f.Prefix(kind, ev.Attributes["name"]) {
			return false
		}
	}
	image := ev.Attributes["image"]
	if ev.Type == string(events.ImageEventType) {
		image = ev.Attributes["name"]
	}
	return f.Exact("image", ev.ID) || f.Exact("image", image) || f.Exact("image", untagged(ev.ID)) || f.Exact("image", untagged(image))
}

// untagged is the name of a repository without tag and digest.
func untagged(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(n)
}
