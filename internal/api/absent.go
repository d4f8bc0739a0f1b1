package api

import (
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/plugin"

	"proa/internal/filters"
)

// What Docker's API has and this engine has not is answered in one of two ways.
// A kind of object that cannot exist here is answered as by a Docker without
// any: clients ask for one kind after the other and stop at anything but "not
// found". A verb that would make such an object is not implemented.

// notServed answers for a verb that is not implemented.
func (s *Server) notServed(c *call) error { return &notServedError{c.Method, c.URL.Path} }

// notServedError is a route of Docker's API that this engine does not have.
type notServedError struct{ method, path string }

func (n *notServedError) Error() string {
	return fmt.Sprintf("%s %s is not implemented by this engine", n.method, n.path)
}
func (n *notServedError) Unwrap() error { return errdefs.ErrNotImplemented }

// refusal is an error of a kind whose message is Docker's, which clients compare.
type refusal struct {
	kind    error
	message string
}

func (r *refusal) Error() string { return r.message }
func (r *refusal) Unwrap() error { return r.kind }

func (s *Server) experimental(*call) error {
	return &refusal{errdefs.ErrNotImplemented, "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it."}
}

func (s *Server) noSwarm(*call) error {
	return &refusal{errdefs.ErrUnavailable, "This node is not part of a swarm"}
}

func (s *Server) noManager(*call) error {
	return &refusal{errdefs.ErrUnavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`}
}

func (s *Server) pluginList(c *call) error {
	if _, err := c.filters(&filters.Plugins); err != nil {
		return err
	}
	return c.reply(http.StatusOK, []plugin.Plugin{})
}

func (s *Server) noPlugin(c *call) error {
	return &refusal{errdefs.ErrNotFound, fmt.Sprintf("plugin %q not found", c.PathValue("name"))}
}

// options answers 200 for every path, as Docker does.
func (s *Server) options(c *call) error {
	c.started = true
	c.WriteHeader(http.StatusOK)
	return nil
}
