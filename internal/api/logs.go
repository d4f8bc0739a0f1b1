package api

import (
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"proa/internal/engine"
)

func (s *Server) containerLogs(c *call) error {
	o := engine.LogsOptions{Stdout: c.flag("stdout"), Stderr: c.flag("stderr"), Follow: c.flag("follow"), Tail: -1}
	if !o.Stdout && !o.Stderr {
		return bad("Bad parameters: you must choose at least one stream")
	}
	// What is no number means all, as in Docker (moby daemon/logs.go).
	if n, err := strconv.Atoi(c.query("tail")); err == nil {
		o.Tail = n
	}
	var err error
	if o.Since, err = timestamp(c.query("since")); err != nil {
		return err
	}
	if o.Until, err = timestamp(c.query("until")); err != nil {
		return err
	}
	ct, err := s.Engine.Get(c.Context(), c.PathValue("id"))
	if err != nil {
		return err
	}
	lines, err := s.Engine.Logs(c.Context(), ct.ID, o)
	if err != nil {
		return err
	}
	c.started = true
	c.Header().Set("Content-Type", c.streamType(ct.Config.Tty))
	c.WriteHeader(http.StatusOK)
	c.flush()
	var stdout, stderr io.Writer = c, c
	if !ct.Config.Tty {
		stdout, stderr = multiplex(c)
	}
	stamp, details := c.flag("timestamps"), c.flag("details")
	var buf []byte
	for l, err := range lines {
		if err != nil {
			return err
		}
		w := stdout
		if l.Stream == "stderr" {
			w = stderr
		}
		text := l.Text
		if stamp || details {
			buf = buf[:0]
			if stamp {
				buf = append(l.Time.UTC().AppendFormat(buf, "2006-01-02T15:04:05.000000000Z07:00"), ' ')
			}
			if details {
				buf = append(appendAttrs(buf, l.Attrs), ' ')
			}
			buf = append(buf, l.Text...)
			text = buf
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		if o.Follow {
			c.flush()
		}
	}
	return nil
}

// appendAttrs writes the attributes of a log record as docker logs --details
// shows them: sorted, escaped as in a query, with commas between.
func appendAttrs(b []byte, attrs map[string]string) []byte {
	for i, k := range slices.Sorted(maps.Keys(attrs)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, url.QueryEscape(k)...), '='), url.QueryEscape(attrs[k])...)
	}
	return b
}
