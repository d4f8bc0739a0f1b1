package build

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
)

// routes is the builder's whole HTTP server (package wire draws it).
func (b *Builder) routes() {
	b.mux = http.NewServeMux()
	b.mux.HandleFunc("POST /session", b.session)
	b.mux.HandleFunc("POST /build", b.classic.build)
	b.mux.HandleFunc("POST /build/cancel", b.classic.cancel)
	b.mux.HandleFunc("POST /build/prune", b.prune)
	b.mux.HandleFunc("GET /usage", b.usage)
	b.mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	b.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			b.grpc.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	})
}

// session attaches a client's session; the connection leaves HTTP.
func (b *Builder) session(w http.ResponseWriter, r *http.Request) {
	if err := b.sessions.HandleHTTPRequest(r.Context(), w, r); err != nil {
		// Harmless where the connection is not ours any more.
		fail(w, http.StatusBadRequest, err)
	}
}

// fail answers as Docker's API does.
func fail(w http.ResponseWriter, status int, err error) {
	reply(w, status, map[string]string{"message": err.Error()})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// Record is one record of the build cache in the shape that Docker's API
// gives it (build.CacheRecord of moby's API types).
type Record struct {
	ID          string
	Parents     []string `json:",omitempty"`
	Type        string
	Description string
	InUse       bool
	Shared      bool
	Size        int64
	CreatedAt   time.Time
	LastUsedAt  *time.Time
	UsageCount  int
}

// usage lists the build cache.
func (b *Builder) usage(w http.ResponseWriter, r *http.Request) {
	wk, err := b.worker.GetDefault()
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	all, err := wk.DiskUsage(r.Context(), client.DiskUsageInfo{})
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	out := make([]Record, 0, len(all))
	for _, u := range all {
		out = append(out, Record{
			ID: u.ID, Parents: u.Parents, Type: string(u.RecordType), Description: u.Description, InUse: u.InUse, Shared: u.Shared,
			Size: max(u.Size, 0), CreatedAt: u.CreatedAt, LastUsedAt: u.LastUsedAt, UsageCount: u.UsageCount,
		})
	}
	reply(w, http.StatusOK, out)
}

// Pruned is what a prune took away, Docker's shape. Records that images have
// as well are among the deleted, and their space is not reclaimed.
type Pruned struct {
	CachesDeleted  []string
	SpaceReclaimed uint64
}

// prune removes records of the build cache that nothing uses.
func (b *Builder) prune(w http.ResponseWriter, r *http.Request) {
	what, err := pruneOptions(r.URL.Query(), time.Now())
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	wk, err := b.worker.GetDefault()
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	// What an image has as well stays on the disk with the image. Prune does not
	// say of its records which these are.
	before, err := wk.DiskUsage(r.Context(), client.DiskUsageInfo{})
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	shared := map[string]bool{}
	for _, u := range before {
		shared[u.ID] = u.Shared
	}
	gone := make(chan client.UsageInfo, 32)
	ended := make(chan error, 1)
	go func() {
		ended <- wk.Prune(r.Context(), gone, what)
		close(gone)
	}()
	out := Pruned{CachesDeleted: []string{}}
	for u := range gone {
		out.CachesDeleted = append(out.CachesDeleted, u.ID)
		if !shared[u.ID] {
			out.SpaceReclaimed += uint64(max(u.Size, 0))
		}
	}
	if err := <-ended; err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	if len(out.CachesDeleted) > 0 {
		if err := b.links.ReleaseUnreferenced(r.Context()); err != nil && !errors.Is(err, r.Context().Err()) {
			fail(w, http.StatusInternalServerError, err)
			return
		}
	}
	reply(w, http.StatusOK, out)
}
