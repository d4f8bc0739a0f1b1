package command

import (
	"testing"

	"github.com/moby/buildkit/client"
)

func TestFollow(t *testing.T) {
	from, to := make(chan *client.SolveStatus, 2), make(chan *client.SolveStatus, 2)
	from <- &client.SolveStatus{Vertexes: []*client.Vertex{
		{Name: "[stage-1 2/3] ADD http://h/x /", Error: "invalid response status 404"},
		{Name: "[1/3] FROM bb", Error: "context canceled"},
	}}
	close(from)
	if failed := follow(from, to); failed != "ADD http://h/x /" {
		t.Errorf("the step that failed: %q", failed)
	}
	if s, more := <-to, len(to); len(s.Vertexes) != 2 || more != 0 {
		t.Errorf("passed on: %+v %d", s, more)
	}
	if _, open := <-to; open {
		t.Error("the display's channel stays open")
	}
}
