package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"

	"proa/internal/api/versions"
	"proa/internal/engine"
	"proa/internal/failure"
	"proa/internal/filters"
)

var noDeadline time.Time

func (s *Server) containerCreate(c *call) error {
	var body createBody
	if err := c.decode(&body, false); err != nil {
		return err
	}
	if body.Config == nil {
		return bad("cannot create a container: the request has no configuration")
	}
	warnings, err := body.newest(c.version)
	if err != nil {
		return err
	}
	name := c.query("name")
	if name != "/" { // which is no name, as Docker says
		name = strings.TrimPrefix(name, "/")
	}
	r := engine.CreateRequest{Name: name, Config: body.Config, Host: body.CreateRequest.HostConfig, Networking: body.NetworkingConfig}
	if p := c.query("platform"); p != "" && c.version >= 41 {
		parsed, err := platforms.Parse(p)
		if err != nil {
			return fmt.Errorf("cannot read platform %w: %w", err, errdefs.ErrInvalidArgument)
		}
		r.Platform = &parsed
	}
	made, err := s.Engine.Create(c.Context(), r)
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, container.CreateResponse{ID: made.ID, Warnings: nonNil(append(made.Warnings, warnings...))})
}

func (s *Server) containerList(c *call) error {
	f, err := c.filters(&filters.Containers)
	if err != nil {
		return err
	}
	limit := 0
	if l := c.query("limit"); l != "" {
		if limit, err = strconv.Atoi(l); err != nil {
			return bad("%w", err)
		}
	}
	list, err := s.Engine.List(c.Context(), engine.ListOptions{All: c.flag("all"), Limit: max(0, limit), Filters: f})
	if err != nil {
		return err
	}
	now, err := s.imagesNow(c.Context(), list)
	if err != nil {
		return err
	}
	out := make([]listed, 0, len(list))
	for _, ct := range list {
		sum := listed{summary(ct, now), ownOf(ct)}
		if c.flag("size") {
			if sz, err := s.Engine.Size(c.Context(), ct.ID); err == nil {
				sum.SizeRw, sum.SizeRootFs = sz.RW, sz.RootFS
			}
		}
		out = append(out, sum)
	}
	return c.reply(http.StatusOK, out)
}

func (s *Server) containerInspect(c *call) error {
	ct, err := s.Engine.Get(c.Context(), c.PathValue("id"))
	if err != nil {
		return err
	}
	out := inspect(ct, s.strategy())
	if c.flag("size") {
		sz, err := s.Engine.Size(c.Context(), ct.ID)
		if err != nil {
			return err
		}
		out.SizeRw, out.SizeRootFs = &sz.RW, &sz.RootFS
	}
	wanted := map[string]any{}
	if ep := ct.Networking[networkName(ct)]; ep != nil && len(ep.MacAddress) > 0 {
		wanted["MacAddress"] = ep.MacAddress.String()
	}
	return c.reply(http.StatusOK, versions.With{Newest: out, Old: wanted})
}

func (s *Server) strategy() string {
	name, _ := s.Images.Strategy()
	return name
}

func (s *Server) containerStart(c *call) error {
	if err := s.Engine.Start(c.Context(), c.PathValue("id")); err != nil {
		return err
	}
	return c.noContent()
}

// stopOptions reads t and signal.
func stopOptions(c *call) (engine.StopOptions, error) {
	var o engine.StopOptions
	if c.version >= 42 {
		o.Signal = c.query("signal")
	}
	if t := c.query("t"); t != "" {
		n, err := strconv.Atoi(t)
		if err != nil {
			return o, bad("cannot read t %q: must be seconds", t)
		}
		d := time.Duration(n) * time.Second
		o.Timeout = &d
	}
	return o, nil
}

func (s *Server) containerStop(c *call) error {
	o, err := stopOptions(c)
	if err != nil {
		return err
	}
	if err := s.Engine.Stop(c.Context(), c.PathValue("id"), o); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) containerRestart(c *call) error {
	o, err := stopOptions(c)
	if err != nil {
		return err
	}
	if err := s.Engine.Restart(c.Context(), c.PathValue("id"), o); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) containerKill(c *call) error {
	if err := s.Engine.Kill(c.Context(), c.PathValue("id"), c.query("signal")); err != nil {
		return fmt.Errorf("cannot kill container: %s: %w", c.PathValue("id"), err)
	}
	return c.noContent()
}

func (s *Server) containerPause(c *call) error {
	if err := s.Engine.Pause(c.Context(), c.PathValue("id")); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) containerUnpause(c *call) error {
	if err := s.Engine.Unpause(c.Context(), c.PathValue("id")); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) containerRename(c *call) error {
	if err := s.Engine.Rename(c.Context(), c.PathValue("id"), strings.TrimPrefix(c.query("name"), "/")); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) containerRemove(c *call) error {
	if c.flag("link") {
		return fmt.Errorf("cannot remove a link: links between containers are not supported: %w", errdefs.ErrNotImplemented)
	}
	o := engine.RemoveOptions{Force: c.flag("force"), Volumes: c.flag("v")}
	if err := s.Engine.Remove(c.Context(), c.PathValue("id"), o); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) containerUpdate(c *call) error {
	var u container.UpdateConfig
	if err := c.decode(&u, false); err != nil {
		return err
	}
	warnings, err := s.Engine.Update(c.Context(), c.PathValue("id"), u)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, container.UpdateResponse{Warnings: warnings}) // null without any, as Docker's
}

func (s *Server) containerPrune(c *call) error {
	f, err := c.filters(&filters.ContainerPrune)
	if err != nil {
		return err
	}
	r, err := s.Engine.Prune(c.Context(), f)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, container.PruneReport{ContainersDeleted: r.Deleted, SpaceReclaimed: uint64(r.Reclaimed)})
}

// size reads h and w of a resize. The kernel keeps 16 bits of each.
func size(c *call) (rows, cols uint16, err error) {
	h, err := strconv.ParseUint(c.query("h"), 10, 32)
	if err != nil {
		return 0, 0, bad("invalid resize height %q: %w", c.query("h"), err)
	}
	w, err := strconv.ParseUint(c.query("w"), 10, 32)
	if err != nil {
		return 0, 0, bad("invalid resize width %q: %w", c.query("w"), err)
	}
	return uint16(h), uint16(w), nil
}

func (s *Server) containerResize(c *call) error {
	rows, cols, err := size(c)
	if err != nil {
		return err
	}
	if err := s.Engine.Resize(c.Context(), c.PathValue("id"), rows, cols); err != nil {
		return err
	}
	c.started = true
	c.WriteHeader(http.StatusOK)
	return nil
}

// containerWait registers, sends the headers at once so that the client may
// go on and start the container, and answers when the condition holds.
func (s *Server) containerWait(c *call) error {
	cond := container.WaitCondition(c.query("condition"))
	early := c.version >= 30 // before, there were no conditions, and the head came with the answer
	if !early {
		cond = ""
	}
	switch cond {
	case "":
		cond = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return bad("cannot wait for %q: must be not-running, next-exit or removed", cond)
	}
	ch, err := s.Engine.Wait(c.Context(), c.PathValue("id"), cond)
	if err != nil {
		return err
	}
	c.Header().Set("Content-Type", "application/json")
	if early {
		c.started = true
		c.WriteHeader(http.StatusOK)
		c.flush()
	}
	r, ok := <-ch
	if !ok {
		return c.Context().Err()
	}
	c.started = true
	out := container.WaitResponse{StatusCode: int64(r.ExitCode)}
	if r.Error != "" {
		out.Error = &container.WaitExitError{Message: r.Error}
	}
	return c.encode(out)
}

// attachOptions reads the query of attach.
func attachOptions(c *call) engine.AttachOptions {
	return engine.AttachOptions{
		Stdin: c.flag("stdin"), Stdout: c.flag("stdout"), Stderr: c.flag("stderr"),
		Stream: c.flag("stream"), Logs: c.flag("logs"), DetachKeys: c.query("detachKeys"),
	}
}

func (s *Server) containerAttach(c *call) error {
	if err := c.discard(); err != nil {
		return err
	}
	o := attachOptions(c)
	at, err := s.Engine.Attach(c.Context(), c.PathValue("id"), o)
	if err != nil {
		return err
	}
	conn, err := c.hijack(at.TTY())
	if err != nil {
		return errors.Join(err, at.Close())
	}
	return s.carry(c, at, conn, at.TTY())
}

// carry joins a process to the client's connection until one of them ends.
func (s *Server) carry(c *call, at *engine.Attachment, conn *hijacked, tty bool) error {
	defer conn.finish()
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	conn.gone = cancel
	in := io.Reader(conn)
	if !at.TakesInput() {
		in = nil
		go func() { _, _ = io.Copy(io.Discard, conn) }() // so that its end is seen; finish ends it
	}
	stdout, stderr := conn.outputs(tty)
	err := at.Run(ctx, in, stdout, stderr)
	if errors.Is(err, io.ErrClosedPipe) || ctx.Err() != nil {
		return nil
	}
	return err
}

// containerStats sends one reading a second, each with the one before it, or
// a single one: at once (one-shot) or after a second, so that it has a rate.
func (s *Server) containerStats(c *call) error {
	stream := !c.URL.Query().Has("stream") || c.flag("stream")
	oneShot := c.version >= 41 && c.flag("one-shot")
	if stream && oneShot {
		return bad("cannot have stream=true with one-shot=true")
	}
	id := c.PathValue("id")
	prev, err := s.Engine.Stats(c.Context(), id)
	if err != nil {
		return err
	}
	c.started = true
	c.Header().Set("Content-Type", "application/json")
	c.WriteHeader(http.StatusOK)
	if oneShot {
		return c.encode(stats(prev, nil))
	}
	if stream {
		if err := c.encode(stats(prev, nil)); err != nil {
			return err
		}
		c.flush()
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-c.Context().Done():
			return nil
		case <-tick.C:
		}
		now, err := s.Engine.Stats(c.Context(), id)
		if err != nil {
			return err
		}
		if err := c.encode(stats(now, prev)); err != nil || !stream {
			return err
		}
		c.flush()
		prev = now
	}
}

func (s *Server) execCreate(c *call) error {
	var r container.ExecCreateRequest
	if err := c.decode(&r, false); err != nil {
		return err
	}
	if len(r.Cmd) == 0 {
		return bad("No exec command specified")
	}
	id, err := s.Engine.ExecCreate(c.Context(), c.PathValue("id"), r)
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// execStart refuses what cannot be started while the answer can have a status.
// Then the head goes out alone, and the process starts: clients that read the
// head with a buffer lose what comes with it. A later failure is written
// into the stream, and the exit code is in inspect.
func (s *Server) execStart(c *call) error {
	var r container.ExecStartRequest
	if err := c.decode(&r, true); err != nil {
		return err
	}
	id := c.PathValue("id")
	if err := s.Engine.ExecMayStart(id); err != nil {
		return err
	}
	o := engine.ExecStartOptions{Detach: r.Detach, Tty: r.Tty}
	if r.ConsoleSize != nil && r.Tty {
		o.Rows, o.Cols = uint16(r.ConsoleSize[0]), uint16(r.ConsoleSize[1])
	}
	if r.Detach {
		if _, err := s.Engine.ExecStart(c.Context(), id, o); err != nil {
			return err
		}
		c.started = true
		c.WriteHeader(http.StatusOK)
		return nil
	}
	conn, err := c.hijack(r.Tty)
	if err != nil {
		return err
	}
	at, err := s.Engine.ExecStart(c.Context(), id, o)
	if err != nil {
		defer conn.finish()
		stdout, _ := conn.outputs(r.Tty)
		_, err = io.WriteString(stdout, failure.Words(err)+"\r\n")
		return err
	}
	return s.carry(c, at, conn, r.Tty)
}

func (s *Server) execResize(c *call) error {
	rows, cols, err := size(c)
	if err != nil {
		return err
	}
	if err := s.Engine.ExecResize(c.Context(), c.PathValue("id"), rows, cols); err != nil {
		return err
	}
	c.started = true
	c.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) execInspect(c *call) error {
	ex, err := s.Engine.ExecGet(c.Context(), c.PathValue("id"))
	if err != nil {
		return err
	}
	r := ex.Request
	p := &container.ExecProcessConfig{Tty: r.Tty, User: r.User, Privileged: &r.Privileged}
	if ct, err := s.Engine.Get(c.Context(), ex.ContainerID); err == nil && p.User == "" {
		p.User = ct.Config.User
	}
	if len(r.Cmd) > 0 {
		p.Entrypoint, p.Arguments = r.Cmd[0], r.Cmd[1:]
	}
	return c.reply(http.StatusOK, container.ExecInspectResponse{
		ID: ex.ID, Running: ex.Running, ExitCode: ex.ExitCode, ProcessConfig: p, ContainerID: ex.ContainerID, Pid: ex.Pid,
		OpenStdin: r.AttachStdin, OpenStdout: r.AttachStdout, OpenStderr: r.AttachStderr, CanRemove: !ex.Running && ex.ExitCode != nil,
		DetachKeys: []byte(r.DetachKeys),
	})
}
