package engine

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"

	"proa/internal/event"
)

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
func (e *Engine) Events(ctx context.Context, since, until time.Time, filters map[string][]string) (<-chan events.Message, error) {
	match, err := eventFilter(filters)
	if err != nil {
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
			if !match(ev) {
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
		Scope: "local", Time: ev.Time.Unix(), TimeNano: ev.Time.UnixNano(),
	}
}

// eventFilter makes a predicate of Docker's filters: alternatives within a key,
// all keys together.
func eventFilter(filters map[string][]string) (func(event.Event) bool, error) {
	known := []string{"container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume", "config"}
	for key := range filters {
		if !slices.Contains(known, key) {
			return nil, invalid("invalid filter '%s'", key)
		}
	}
	return func(ev event.Event) bool {
		for key, values := range filters {
			if len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool { return eventMatches(ev, key, v) }) {
				return false
			}
		}
		return true
	}, nil
}

func eventMatches(ev event.Event, key, v string) bool {
	object := func(kind string) bool {
		return ev.Type == kind && (ev.ID == v || ev.Attributes["name"] == strings.TrimPrefix(v, "/") || len(v) >= 4 && strings.HasPrefix(ev.ID, v))
	}
	switch key {
	case "type":
		return ev.Type == v
	case "event":
		// "exec_create: sh -c ..." is found by "exec_create" as well.
		action, _, _ := strings.Cut(ev.Action, ":")
		return ev.Action == v || action == v
	case "scope":
		return v == "local"
	case "label":
		return hasLabel(ev.Attributes, v)
	case "image":
		return object("image") || ev.Type == "container" && (ev.Attributes["image"] == v || strings.TrimSuffix(ev.Attributes["image"], ":latest") == v)
	}
	return object(key)
}

// hasLabel matches "key" and "key=value".
func hasLabel(labels map[string]string, want string) bool {
	k, v, exact := strings.Cut(want, "=")
	got, ok := labels[k]
	return ok && (!exact || got == v)
}
