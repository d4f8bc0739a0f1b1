package engine

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"proa/internal/event"
	"proa/internal/filters"
)

// scope is that of all events: this engine is one node.
const scope = "local"

// emit tells the world what happened to a container, with Docker's attributes:
// the labels, the image, the name, and what the action adds.
func (e *Engine) emit(c *Container, action events.Action, more map[string]string) {
	attrs := make(map[string]string, len(c.Config.Labels)+2+len(more))
	maps.Copy(attrs, c.Config.Labels)
	attrs["image"], attrs["name"] = c.ImageRef, c.Name
	maps.Copy(attrs, more)
	e.cfg.Events.Publish(event.Event{Type: string(events.ContainerEventType), Action: string(action), ID: c.ID, Attributes: attrs, Time: e.cfg.Now()})
}

// Events gives what happened since (zero: from now on) and goes on until the
// time until (zero: until ctx ends). Filters as Docker's: container, event,
// image, label, type, volume, network, daemon, scope. The channel is closed at
// the end, also when its reader is much too slow.
func (e *Engine) Events(ctx context.Context, since, until time.Time, f filters.Args) (<-chan events.Message, error) {
	if err := filters.Events.Check(f); err != nil {
		return nil, err
	}
	past, sub := e.cfg.Events.Subscribe(since)
	out := make(chan events.Message)
	e.work.Go(func() {
		defer close(out)
		defer sub.Close()
		send := func(ev event.Event) bool {
			if !until.IsZero() && ev.Time.After(until) {
				return false
			}
			if len(f) > 0 && !eventMatches(&ev, f) {
				return true
			}
			select {
			case out <- message(ev):
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
		var end <-chan time.Time
		if !until.IsZero() {
			t := time.NewTimer(time.Until(until))
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

func message(ev event.Event) events.Message {
	return events.Message{
		Type: events.Type(ev.Type), Action: events.Action(ev.Action), Actor: events.Actor{ID: ev.ID, Attributes: ev.Attributes},
		Scope: scope, Time: ev.Time.Unix(), TimeNano: ev.Time.UnixNano(),
	}
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
	if !action || !f.Exact("type", ev.Type) || !f.Exact("scope", scope) || !f.Pairs("label", ev.Attributes) {
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
