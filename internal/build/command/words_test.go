package command

import (
	"testing"

	"github.com/moby/buildkit/client"
)

// What BuildKit's layers say is cut to what is of use; what a step or a
// registry says itself stays.
func TestTidied(t *testing.T) {
	for in, want := range map[string]string{
		`process "/bin/sh -c echo \"a\" && exit 3" did not complete successfully: exit code: 3`:                                                                       "exit code: 3",
		"process \"/bin/sh -c set -e\\nfalse: unavailable\" did not complete successfully: exit code: 1":                                                              "exit code: 1",
		`failed to do request: Head "https://registry/v2/b/manifests/latest": cannot reach registry registry: nothing listens there: unavailable`:                     "cannot reach registry registry: nothing listens there",
		`failed to compute cache key: failed to calculate checksum of ref proa-container::qahtbq4p39hmf6igxiuyp8c29: "/helo.txt": not found`:                          `"/helo.txt": not found`,
		`biuld: failed to resolve source metadata for docker.io/library/biuld:latest: cannot reach it: failed precondition (did you mean build?)`:                     `biuld: cannot reach it (did you mean build?)`,
		`failed to commit yacusf8nv to lqd8ueq73 during finalize: cannot commit snapshot "yacusf8nv": entry "f": the layer holds more than 1 bytes: invalid argument`: `entry "f": the layer holds more than 1 bytes`,
		`failed to load cache key: invalid response status 404`:                                                                                                       "invalid response status 404",
		`failed to push h:5010/team/q:latest: unexpected status from HEAD request to http://h:5010/v2/team/q/blobs/sha256:cf: 401 Unauthorized`:                       "failed to push h:5010/team/q:latest: registry h:5010 says 401 Unauthorized",
		"h:5010/team/app:1: h:5010/team/app:1: not found":                                                                                                             "h:5010/team/app:1: not found",
		"secret key: not found": "secret key: not found",
		"dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)": "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)",
	} {
		if got := tidied(in); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
}

func TestTidy(t *testing.T) {
	from, to := make(chan *client.SolveStatus, 2), make(chan *client.SolveStatus, 2)
	from <- &client.SolveStatus{
		Vertexes: []*client.Vertex{
			{Name: "[stage-1 2/3] ADD http://h/x /", Error: "failed to load cache key: invalid response status 404"},
			{Name: "[1/3] FROM bb", Error: "context canceled"},
		},
		Statuses: []*client.VertexStatus{{ID: "exporting layers"}, {ID: "naming to dangling@sha256:00"}, {ID: "naming to docker.io/library/x:latest"}},
	}
	close(from)
	if failed := tidy(from, to); failed != "ADD http://h/x /" {
		t.Errorf("the step that failed: %q", failed)
	}
	s, more := <-to, len(to)
	if s.Vertexes[0].Error != "invalid response status 404" || len(s.Statuses) != 2 || s.Statuses[1].ID != "naming to docker.io/library/x:latest" || more != 0 {
		t.Errorf("passed on: %+v %+v %d", s.Vertexes[0], s.Statuses, more)
	}
	if _, open := <-to; open {
		t.Error("the display's channel stays open")
	}
}

func TestNearImage(t *testing.T) {
	here := []string{"x:latest", "debian:12", "team/app:v1", "localhost:5000/web:v2"}
	for name, want := range map[string]string{
		"debain": "debian:12", "debian": "debian:12", "team/apq": "team/app:v1", "b": "", "postgres": "", "localhost:5000/wbe": "localhost:5000/web:v2",
	} {
		if got := nearImage(name, here); got != want {
			t.Errorf("near %q: %q, want %q", name, got, want)
		}
	}
}
