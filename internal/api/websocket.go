package api

import (
	"bufio"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"

	"proa/internal/engine"
)

// containerAttachWS is attach over a WebSocket (RFC 6455): the container's
// output comes as it is, without Docker's frames, and stdin is what the client
// sends. A close by the client ends the attachment.
func (s *Server) containerAttachWS(c *call) error {
	if !strings.EqualFold(c.Request.Header.Get("Upgrade"), "websocket") {
		return bad("cannot attach: the request is no WebSocket handshake (Upgrade: websocket is needed)")
	}
	o := attachOptions(c)
	o.EndsWithInput = true // nothing may be sent after a close (RFC 6455, 5.5.1)
	if c.version < 42 {    // these three are read from 1.42 on
		o.Stdin, o.Stdout, o.Stderr = true, true, true
	}
	at, err := s.Engine.Attach(c.Context(), c.PathValue("id"), o)
	if err != nil {
		return err
	}
	defer at.Close()
	c.started = true
	out := &hijacker{ResponseWriter: c.ResponseWriter}
	srv := websocket.Server{
		Config: websocket.Config{Header: engineHeaders(c.Header())},
		Handler: func(ws *websocket.Conn) {
			(&hijacked{Conn: out.conn}).awaitHead()
			s.carryWS(c, at, ws)
		},
	}
	// A bad handshake is answered there, with 400 and without a handler. Web
	// pages were refused before (package daemon), so any Origin may pass.
	srv.ServeHTTP(out, c.Request)
	return nil
}

// hijacker keeps the connection that is taken from it.
type hijacker struct {
	http.ResponseWriter
	conn net.Conn
}

// Hijack takes the connection out of HTTP.
func (h *hijacker) Hijack() (conn net.Conn, rw *bufio.ReadWriter, err error) {
	h.conn, rw, err = http.NewResponseController(h.ResponseWriter).Hijack()
	return h.conn, rw, err
}

// carryWS joins a process to a WebSocket until one of them ends.
func (s *Server) carryWS(c *call, at *engine.Attachment, ws *websocket.Conn) {
	defer ws.Close() // with the status 1000, normal closure
	ws.PayloadType = websocket.TextFrame
	if c.version >= 28 {
		ws.PayloadType = websocket.BinaryFrame
	}
	if err := at.Run(c.Context(), ws, ws, ws); err != nil {
		s.Log.Debug("attachment ended early", "path", c.URL.Path, "error", err)
	}
}

// engineHeaders are what every answer of the engine has.
func engineHeaders(from http.Header) http.Header {
	out := http.Header{}
	for _, name := range []string{"Api-Version", "Docker-Experimental", "Ostype", "Server"} {
		out[name] = from[name]
	}
	return out
}
