package api

import (
	"context"
	"net/http"
	"time"
)

// lifetime says what happens to a request whose client hangs up before the
// answer (docs/dev/streams.md has the reason of each route).
type lifetime int

const (
	// completes: the request was accepted, so it is carried out. A client with a
	// time limit of its own, or a proxy before it, must not leave a container
	// half stopped.
	completes lifetime = iota
	// lingers: it goes on for lingerTime and ends then. A client that comes back
	// meanwhile joins the same downloads; one that was interrupted on purpose
	// does not fill the disk for hours.
	lingers
	// follows: it ends with the connection, which is what was asked for.
	follows
)

// lingerTime is how long a transfer goes on without its client.
const lingerTime = 10 * time.Second

// lifetimes are the routes that differ from the rule: what only reads follows
// its client, what changes something completes.
var lifetimes = map[string]lifetime{
	"POST /build":                   follows, // as Docker: an interrupted build stops
	"POST /grpc":                    follows,
	"POST /session":                 follows,
	"POST /auth":                    follows,
	"POST /containers/{id...}/wait": follows,
	"POST /images/create":           lingers, // a pull; an import completes
	"POST /images/{name...}/push":   lingers,
}

func (rt *route) lifetime(r *http.Request) lifetime {
	l, listed := lifetimes[rt.method+" "+rt.path]
	switch {
	case listed && l == lingers && r.URL.Query().Has("fromSrc"):
		return completes
	case listed:
		return l
	case rt.method == http.MethodGet || rt.method == http.MethodHead || rt.method == http.MethodOptions:
		return follows
	}
	return completes
}

// lifeKey is where a request's context holds that of the engine's requests.
type lifeKey struct{}

// Life makes the context of which all requests' contexts are made
// (http.Server.BaseContext): requests that outlive their clients end with it.
func Life(ctx context.Context) context.Context { return context.WithValue(ctx, lifeKey{}, ctx) }

// outlive gives the context of a request whose client may hang up. stop has to
// be called when the request is done.
func outlive(r *http.Request, l lifetime) (ctx context.Context, stop func()) {
	if l == follows {
		return r.Context(), func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	ends := []func() bool{}
	if life, ok := r.Context().Value(lifeKey{}).(context.Context); ok {
		ends = append(ends, context.AfterFunc(life, cancel))
	}
	if l == lingers {
		ends = append(ends, context.AfterFunc(r.Context(), func() {
			t := time.AfterFunc(lingerTime, cancel)
			context.AfterFunc(ctx, func() { t.Stop() })
		}))
	}
	return ctx, func() {
		for _, end := range ends {
			end()
		}
		cancel()
	}
}
