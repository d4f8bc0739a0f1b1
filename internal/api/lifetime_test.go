package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Each exception is a route of the table; the rule is for all others (fault C6).
func TestLifetimes(t *testing.T) {
	s := &Server{}
	known := map[string]*route{}
	for _, rt := range s.routes() {
		known[rt.method+" "+rt.path] = &rt
	}
	for key := range lifetimes {
		if known[key] == nil {
			t.Errorf("%s is no route", key)
		}
	}
	for key, want := range map[string]lifetime{
		"POST /containers/{id...}/stop": completes, "DELETE /containers/{id...}": completes, "POST /commit": completes, "PUT /containers/{id...}/archive": completes,
		"POST /images/load": completes, "POST /images/create": lingers, "POST /containers/{id...}/wait": follows, "GET /events": follows, "POST /build": follows,
	} {
		rt := known[key]
		if rt == nil {
			t.Errorf("%s is no route", key)
			continue
		}
		if got := rt.lifetime(httptest.NewRequest(rt.method, "/x", nil)); got != want {
			t.Errorf("%s: %d, want %d", key, got, want)
		}
	}
	if got := known["POST /images/create"].lifetime(httptest.NewRequest("POST", "/images/create?fromSrc=-", nil)); got != completes {
		t.Errorf("an import: %d", got)
	}
}

// A request that outlives its client ends with the engine's requests.
func TestOutliveEndsWithTheEngine(t *testing.T) {
	life, stop := context.WithCancel(t.Context())
	client, hangUp := context.WithCancel(Life(life))
	r, err := http.NewRequestWithContext(client, "POST", "http://x/", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := outlive(r, completes)
	defer done()
	hangUp()
	if ctx.Err() != nil {
		t.Error("it ended with its client")
	}
	if with, done := outlive(r, follows); with.Err() == nil {
		t.Error("what follows its client went on")
	} else {
		done()
	}
	stop()
	<-ctx.Done()
}
