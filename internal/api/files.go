package api

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"proa/internal/engine"
	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/rootfs"
	"proa/internal/sys"
)

// pathStat is Docker's header about a path: base64 of this JSON.
type pathStat struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`
	Mode       fs.FileMode `json:"mode"`
	Mtime      time.Time   `json:"mtime"`
	LinkTarget string      `json:"linkTarget"`
}

const pathStatHeader = "X-Docker-Container-Path-Stat"

// goMode turns a mode of stat(2) into Go's, which Docker's API has.
func goMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & sys.TypeMask {
	case sys.TypeDir:
		m |= fs.ModeDir
	case sys.TypeSymlink:
		m |= fs.ModeSymlink
	case sys.TypeFifo:
		m |= fs.ModeNamedPipe
	case sys.TypeSocket:
		m |= fs.ModeSocket
	case sys.TypeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case sys.TypeBlock:
		m |= fs.ModeDevice
	}
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

// statPath looks at a path and puts what it is into the answer's header.
func (s *Server) statPath(c *call) (path string, err error) {
	if path = c.query("path"); path == "" {
		return "", bad("missing parameter: path")
	}
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(s.Engine.Files(c.Context(), c.PathValue("id"), &rootfs.Request{Op: rootfs.OpStat, Path: path}, nil, w))
	}()
	st, err := readStat(r)
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(pathStat{Name: st.Name, Size: st.Size, Mode: goMode(st.Mode), Mtime: time.Unix(st.Sec, int64(st.Nsec)), LinkTarget: st.LinkTarget})
	if err != nil {
		return "", err
	}
	c.Header().Set(pathStatHeader, base64.StdEncoding.EncodeToString(text))
	return path, nil
}

func (s *Server) archiveStat(c *call) error {
	if _, err := s.statPath(c); err != nil {
		return err
	}
	c.started = true
	c.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) archiveGet(c *call) error {
	path, err := s.statPath(c)
	if err != nil {
		return err
	}
	err = s.tarOut(c, &rootfs.Request{Op: rootfs.OpGet, Path: path})
	if err != nil {
		c.Header().Del(pathStatHeader)
	}
	return err
}

func (s *Server) containerExport(c *call) error {
	return s.tarOut(c, &rootfs.Request{Op: rootfs.OpExport})
}

// tarOut answers with a tar stream. What fails before its first byte has a
// status; later the connection is cut, so that nobody takes a part for the whole.
func (s *Server) tarOut(c *call, r *rootfs.Request) error {
	err := s.Engine.Files(c.Context(), c.PathValue("id"), r, nil, &lateWriter{c})
	if err != nil && c.started {
		if c.Context().Err() == nil {
			s.Log.Error("cannot send files", "container", c.PathValue("id"), "op", r.Op, "error", err)
		}
		panic(http.ErrAbortHandler)
	}
	return err
}

// lateWriter begins a tar answer with its first byte.
type lateWriter struct{ c *call }

func (w *lateWriter) Write(p []byte) (int, error) {
	if !w.c.started {
		w.c.started = true
		w.c.Header().Set("Content-Type", "application/x-tar")
		w.c.WriteHeader(http.StatusOK)
	}
	return w.c.Write(p)
}

func (s *Server) archivePut(c *call) error {
	path := c.query("path")
	if path == "" {
		return bad("missing parameter: path")
	}
	r := &rootfs.Request{Op: rootfs.OpPut, Path: path, NoOverwriteDirNonDir: c.flag("noOverwriteDirNonDir")}
	info, err := s.Engine.Get(c.Context(), c.PathValue("id"))
	if err != nil {
		return err
	}
	if c.flag("copyUIDGID") {
		r.User = info.Config.User
	}
	in, err := image.Unpacked(c.upload())
	if err != nil {
		return err
	}
	defer in.Close()
	if err := s.Engine.Files(c.Context(), c.PathValue("id"), r, in, io.Discard); err != nil {
		return err
	}
	c.started = true
	c.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) containerChanges(c *call) error {
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(s.Engine.Files(c.Context(), c.PathValue("id"), &rootfs.Request{Op: rootfs.OpChanges}, nil, w))
	}()
	defer r.CloseWithError(io.ErrClosedPipe)
	out, err := readChanges(r)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, out)
}

// What is read here may come from a guest, which may say anything without end
// and must not fill the engine's memory.
const (
	maxStat        = 64 << 10 // bytes about one path; a link's target has 4 KiB at most
	maxChanges     = 1_000_000
	maxChangesText = 256 << 20 // bytes
)

// atMost reads n bytes and fails where there are more.
type atMost struct {
	r io.Reader
	n int64
}

func (a *atMost) Read(p []byte) (int, error) {
	if a.n <= 0 {
		return 0, fmt.Errorf("the answer about the container's files is larger than is allowed: %w", errdefs.ErrResourceExhausted)
	}
	n, err := a.r.Read(p[:min(int64(len(p)), a.n)])
	a.n -= int64(n)
	return n, err
}

// readStat reads the answer to rootfs.OpStat.
func readStat(r io.Reader) (st rootfs.Stat, err error) {
	err = json.NewDecoder(&atMost{r, maxStat}).Decode(&st)
	return st, err
}

// readChanges reads the answer to rootfs.OpChanges: nil without any, which is
// null in JSON, as in Docker's answer.
func readChanges(r io.Reader) ([]container.FilesystemChange, error) {
	var out []container.FilesystemChange
	for d := json.NewDecoder(&atMost{bufio.NewReader(r), maxChangesText}); ; {
		var one rootfs.Change
		err := d.Decode(&one)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(out) == maxChanges {
			return nil, fmt.Errorf("more than %d files differ from the image: %w", maxChanges, errdefs.ErrResourceExhausted)
		}
		out = append(out, container.FilesystemChange{Path: one.Path, Kind: container.ChangeType(one.Kind)})
	}
}

func (s *Server) containerCommit(c *call) error {
	id := c.query("container")
	if id == "" {
		return bad("missing parameter: container")
	}
	o := engine.CommitOptions{
		Name: c.query("repo"), Author: c.query("author"), Message: c.query("comment"), Changes: c.URL.Query()["changes"],
		NoPause: c.query("pause") != "" && !c.flag("pause"),
	}
	if tag := c.query("tag"); tag != "" && o.Name != "" {
		o.Name += ":" + tag
	}
	if err := c.decode(&o.Config, true); err != nil {
		return err
	}
	img, err := s.Engine.Commit(c.Context(), id, o)
	if err != nil {
		return err
	}
	s.imageEvent(c.Context(), event.ImageCreate, img.ID.String(), "")
	if o.Name != "" {
		s.imageEvent(c.Context(), event.ImageTag, img.ID.String(), image.FamiliarTag(o.Name))
	}
	return c.reply(http.StatusCreated, container.CommitResponse{ID: img.ID.String()})
}
