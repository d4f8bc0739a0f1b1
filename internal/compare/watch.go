package compare

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Times between two looks at a running command: often at first, because most
// commands are short, seldom later, because looking costs.
const (
	firstLook = 100 * time.Millisecond
	lastLook  = 2 * time.Second
)

// sightings are what was seen of a run while it ran.
type sightings struct {
	processes int                      // most at one time
	stats     *container.StatsResponse // latest; only of another engine
	memory    uint64                   // most in use at one time; only of another engine
}

// watcher looks at a running container from time to time.
type watcher struct {
	cancel context.CancelFunc
	done   chan *sightings
}

// watch begins to look.
func (l *lane) watch(ctx context.Context, id string) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{cancel, make(chan *sightings, 1)}
	look := l.lookOther
	if l.proa {
		look = l.look
	}
	go func() {
		s := &sightings{}
		for pause := firstLook; ; pause = min(2*pause, lastLook) {
			look(ctx, id, s)
			select {
			case <-ctx.Done():
				w.done <- s
				return
			case <-time.After(pause):
			}
		}
	}()
	return w
}

// stop ends the looking and gives what was seen.
func (w *watcher) stop() *sightings {
	w.cancel()
	return <-w.done
}

// look asks Proa. A container that has just ended says nothing of use.
func (l *lane) look(ctx context.Context, id string, s *sightings) {
	if u, err := l.client.ContainerUsage(ctx, id); err == nil && u.Running {
		s.processes = max(s.processes, u.Processes)
	}
}

// lookOther asks an engine that has Docker's stats only.
func (l *lane) lookOther(ctx context.Context, id string, s *sightings) {
	if t, err := l.client.ContainerTop(ctx, id, ""); err == nil {
		s.processes = max(s.processes, len(t.Processes))
	}
	st := &container.StatsResponse{}
	at := url.Values{"stream": {"0"}, "one-shot": {"1"}}
	if l.client.Do(ctx, http.MethodGet, "/containers/"+id+"/stats", at, nil, st) == nil && st.CPUStats.CPUUsage.TotalUsage > 0 {
		s.stats, s.memory = st, max(s.memory, st.MemoryStats.Usage)
	}
}
