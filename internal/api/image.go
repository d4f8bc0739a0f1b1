package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/event"
	"proa/internal/failure"
	"proa/internal/filters"
	"proa/internal/image"
)

// stallTime is how long an upload may stand still before its connection is
// given up. While an image is loaded or imported no garbage is collected, so a
// client that was stopped (ctrl-Z) may not put that off any longer.
const stallTime = 2 * time.Minute

// upload is a request body that must keep moving.
type upload struct {
	io.Reader
	rc    *http.ResponseController
	stall time.Duration
}

// Read gives what comes, and gives up when nothing does.
func (u *upload) Read(p []byte) (int, error) {
	_ = u.rc.SetReadDeadline(time.Now().Add(u.stall))
	n, err := u.Reader.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the client sent nothing for %v (was it stopped?), so it was given up: send it again", u.stall)
	}
	return n, err
}

func (c *call) upload() *upload {
	return &upload{c.Body, http.NewResponseController(c.ResponseWriter), stallTime}
}

// messages writes Docker's stream of JSON messages of a long request.
type messages struct {
	c   *call
	enc *json.Encoder
}

func (m *messages) send(v any) {
	if !m.c.started {
		m.c.started = true
		m.c.Header().Set("Content-Type", "application/json")
		m.c.WriteHeader(http.StatusOK)
		m.enc = json.NewEncoder(m.c)
		m.enc.SetEscapeHTML(false)
	}
	_ = m.enc.Encode(v)
	m.c.flush()
}

type streamMessage struct {
	Stream string `json:"stream,omitempty"`
	Status string `json:"status,omitempty"`
}

// streamError is Docker's message about what failed, the last of its stream.
type streamError struct {
	Detail struct {
		Message string `json:"message"`
	} `json:"errorDetail"`
	Error string `json:"error"`
}

// fail reports an error as a message where the answer has begun, else as a status.
func (m *messages) fail(err error) error {
	if !m.c.started {
		return err
	}
	return m.tell(err)
}

// tell reports an error as a message in any case.
func (m *messages) tell(err error) error {
	e := streamError{Error: failure.Words(err)}
	e.Detail.Message = e.Error
	m.send(e)
	return nil
}

// imageLoad answers 200 whatever becomes of the archive, as Docker does: what
// failed is the last message.
func (s *Server) imageLoad(c *call) error {
	_ = http.NewResponseController(c.ResponseWriter).EnableFullDuplex()
	m := &messages{c: c}
	quiet := c.flag("quiet")
	only, err := c.platforms("platform", 48, 52)
	if err != nil {
		return err
	}
	names, err := s.Images.Load(c.Context(), c.upload(), func(line string) {
		if !quiet {
			m.send(streamMessage{Status: line})
		}
	}, only...)
	if err != nil {
		return m.tell(err)
	}
	for _, n := range names {
		line := "Loaded image: " + n + "\n"
		if strings.HasPrefix(n, "sha256:") {
			line = "Loaded image ID: " + n + "\n"
		}
		m.send(streamMessage{Stream: line})
		s.imageEvent(c.Context(), event.ImageLoad, n, "")
	}
	return nil
}

// imageCreate is import (fromSrc) or pull (fromImage).
func (s *Server) imageCreate(c *call) error {
	src := c.query("fromSrc")
	if c.query("fromImage") != "" {
		return s.imagePull(c)
	}
	ref := c.query("repo")
	if tag := c.query("tag"); tag != "" && ref != "" {
		ref += ":" + tag
	}
	in, message := io.Reader(c.upload()), c.query("message")
	if src != "-" {
		body, from, err := fetch(c.Context(), src)
		if err != nil {
			return err
		}
		defer body.Close()
		in, message = body, cmp.Or(message, "Imported from "+from)
	}
	img, err := s.Images.Import(c.Context(), in, ref, c.URL.Query()["changes"], message, c.query("platform"))
	if err != nil {
		return err
	}
	m := &messages{c: c}
	m.send(streamMessage{Status: img.ID.String()})
	if ref != "" {
		s.imageEvent(c.Context(), event.ImageTag, img.ID.String(), image.FamiliarTag(ref))
	}
	s.imageEvent(c.Context(), event.ImageImport, img.ID.String(), "")
	return nil
}

func (s *Server) imageSave(c *call) error {
	return s.save(c, c.URL.Query()["names"])
}

func (s *Server) save(c *call, refs []string) error {
	if len(refs) == 0 {
		return bad("cannot save: no image named")
	}
	only, err := c.platforms("platform", 48, 52)
	if err != nil {
		return err
	}
	// Errors about names come before the first byte, so that they have a status.
	write, end, err := s.Images.PlanSave(c.Context(), refs, only)
	if err != nil {
		return err
	}
	defer end()
	c.started = true
	c.Header().Set("Content-Type", "application/x-tar")
	c.WriteHeader(http.StatusOK)
	if err := write(c.Context(), c); err != nil {
		// The archive is cut: the client must not take it for a whole one.
		s.Log.Error("cannot save", "images", refs, "error", err)
		panic(http.ErrAbortHandler)
	}
	for _, r := range refs {
		s.imageEvent(c.Context(), event.ImageSave, r, "")
	}
	return nil
}

func (s *Server) imageList(c *call) error {
	f, err := filters.Parse(c.query("filters"))
	if err != nil {
		return err
	}
	if old := c.query("filter"); c.version < 25 && old != "" && !f.Has("reference") {
		f.Add("reference", old)
	}
	if err := filters.Images.Check(f); err != nil {
		return err
	}
	if c.version >= 54 && c.flag("identity") && !c.flag("manifests") {
		return bad("conflicting options: identity requires manifests=1")
	}
	u, err := s.Images.Usage(c.Context())
	if err != nil {
		return err
	}
	keep, err := s.imageFilter(c, f)
	if err != nil {
		return err
	}
	manifests := c.version >= 47 && c.flag("manifests")
	out := []imagetypes.Summary{}
	for _, i := range u.Images {
		if shown, ok := keep(i.Image); ok {
			sum := imageSummary(i)
			sum.RepoTags, sum.RepoDigests = nonNil(shown.tags), nonNil(shown.digests)
			if manifests {
				if sum.Manifests, err = s.manifests(c, i.Image); err != nil {
					return err
				}
			}
			out = append(out, sum)
		}
	}
	return c.reply(http.StatusOK, out)
}

// names are the tags and digests of an image that a list shows.
type names struct{ tags, digests []string }

// imageFilter makes a condition of filters that were checked. Where a
// reference was asked for, only the names that match are shown.
func (s *Server) imageFilter(c *call, f filters.Args) (func(*image.Image) (names, bool), error) {
	before := f.Until("until", time.Now())
	var since time.Time
	for v := range f["before"] {
		img, err := s.Images.Get(c.Context(), v)
		if err != nil {
			return nil, err
		}
		if before.IsZero() || img.Created.Before(before) {
			before = img.Created
		}
	}
	for v := range f["since"] {
		img, err := s.Images.Get(c.Context(), v)
		if err != nil {
			return nil, err
		}
		if img.Created.After(since) {
			since = img.Created
		}
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	patterns := f.Values("reference")
	return func(i *image.Image) (names, bool) {
		all := names{i.Names, i.Digests}
		if f.Has("dangling") && dangling != (len(i.Digests) == 0) {
			return all, false
		}
		if !before.IsZero() && !i.Created.Before(before) || !since.IsZero() && !i.Created.After(since) {
			return all, false
		}
		if !image.LabelsMatch(f, i.Config.Config.Labels) {
			return all, false
		}
		if len(patterns) == 0 {
			return all, true
		}
		all.tags = slices.DeleteFunc(slices.Clone(i.Names), func(n string) bool { return !filters.MatchReference(patterns, n) })
		if len(all.tags) > 0 {
			all.digests = digestsOf(all.tags, i.Digests)
		} else {
			all.digests = slices.DeleteFunc(slices.Clone(i.Digests), func(n string) bool { return !filters.MatchReference(patterns, n) })
		}
		return all, len(all.tags)+len(all.digests) > 0
	}, nil
}

// digestsOf keeps the digests whose repository is that of one of the names:
// clients show a digest without a name as an image without a tag.
func digestsOf(names, digests []string) []string {
	out := []string{}
	for _, d := range digests {
		repo, _, _ := strings.Cut(d, "@")
		if slices.ContainsFunc(names, func(n string) bool { return n[:strings.LastIndex(n, ":")] == repo }) {
			out = append(out, d)
		}
	}
	return out
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func imageSummary(u image.ImageUsage) imagetypes.Summary {
	i := u.Image
	d := i.Target
	labels := i.Config.Config.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	return imagetypes.Summary{
		ID: i.ID.String(), Created: i.Created.Unix(), Labels: labels, RepoTags: nonNil(i.Names), RepoDigests: nonNil(i.Digests),
		Size: u.Size, SharedSize: u.Shared, Containers: int64(u.Holders), Descriptor: &d,
	}
}

// imageSaveOne is imageSave of the name in the path.
func (s *Server) imageSaveOne(c *call, ref string) error { return s.save(c, []string{ref}) }

// imageTag gives an image one more name.
func (s *Server) imageTag(c *call, ref string) error {
	target := c.query("repo")
	if tag := c.query("tag"); tag != "" {
		target += ":" + tag
	}
	if err := s.Images.Tag(c.Context(), ref, target); err != nil {
		return err
	}
	s.imageEvent(c.Context(), event.ImageTag, target, image.FamiliarTag(target))
	c.started = true
	c.WriteHeader(http.StatusCreated)
	return nil
}

func (s *Server) imageRemove(c *call) error {
	before, err := s.Images.List(c.Context())
	if err != nil {
		return err
	}
	only, err := c.platforms("platforms", 50, 50)
	if err != nil {
		return err
	}
	if c.version < 50 && c.query("platforms") != "" {
		return bad("removing some platforms of an image needs API version 1.50; without it the whole image would be removed")
	}
	if len(only) > 0 {
		gone, err := s.Images.RemovePlatforms(c.Context(), c.PathValue("name"), only)
		if err != nil {
			return err
		}
		return c.reply(http.StatusOK, removed(gone))
	}
	gone, err := s.Images.Remove(c.Context(), c.PathValue("name"), c.flag("force"), !c.flag("noprune"))
	if err != nil {
		return err
	}
	s.removalEvents(gone, before)
	return c.reply(http.StatusOK, removed(gone))
}

func (s *Server) imagePrune(c *call) error {
	f, err := c.filters(&filters.ImagePrune)
	if err != nil {
		return err
	}
	before, err := s.Images.List(c.Context())
	if err != nil {
		return err
	}
	s.Images.Snapshots().Tidy()
	gone, bytes, err := s.Images.Prune(c.Context(), f)
	if err != nil {
		return err
	}
	s.removalEvents(gone, before)
	s.Publish(event.ImagePrune.Of("", nil, strconv.FormatInt(bytes, 10)))
	return c.reply(http.StatusOK, imagetypes.PruneReport{ImagesDeleted: removed(gone), SpaceReclaimed: uint64(bytes)})
}

func removed(gone []image.Removed) []imagetypes.DeleteResponse {
	out := make([]imagetypes.DeleteResponse, 0, len(gone))
	for _, g := range gone {
		out = append(out, imagetypes.DeleteResponse{Untagged: g.Untagged, Deleted: g.Deleted})
	}
	return out
}

func (s *Server) imageInspect(c *call, ref string) error {
	only, err := c.platform(49)
	if err != nil {
		return err
	}
	manifests := c.version >= 48 && c.flag("manifests")
	if manifests && only != nil {
		return bad("conflicting options: manifests and platform options cannot both be set")
	}
	i, err := s.imageAs(c, ref, only)
	if err != nil {
		return err
	}
	var parts []imagetypes.ManifestSummary
	if manifests {
		if parts, err = s.manifests(c, i); err != nil {
			return err
		}
	}
	layers := make([]string, 0, len(i.Config.RootFS.DiffIDs))
	for _, d := range i.Config.RootFS.DiffIDs {
		layers = append(layers, d.String())
	}
	created := ""
	if !i.Created.IsZero() {
		created = stamp(i.Created)
	}
	d, cfg := i.Target, i.DockerConfig
	return c.reply(http.StatusOK, imagetypes.InspectResponse{
		ID: i.ID.String(), RepoTags: nonNil(i.Names), RepoDigests: nonNil(i.Digests), Comment: i.Comment, Created: created, Author: i.Config.Author,
		Config: &cfg, Architecture: i.Config.Architecture, Variant: i.Config.Variant, Os: i.Config.OS, OsVersion: i.Config.OSVersion, Size: i.Size,
		GraphDriver: &storage.DriverData{Name: "proa", Data: map[string]string{"Strategy": s.strategy()}},
		RootFS:      imagetypes.RootFS{Type: i.Config.RootFS.Type, Layers: layers}, Metadata: imagetypes.Metadata{LastTagTime: i.Tagged}, Descriptor: &d,
		Manifests: parts,
	})
}

// imageAs finds an image, as its variant for a platform where one is given.
func (s *Server) imageAs(c *call, ref string, only *ocispec.Platform) (*image.Image, error) {
	if only == nil {
		return s.Images.Get(c.Context(), ref)
	}
	return s.Images.Platform(c.Context(), ref, *only)
}

func (s *Server) imageHistory(c *call, ref string) error {
	only, err := c.platform(48)
	if err != nil {
		return err
	}
	i, err := s.imageAs(c, ref, only)
	if err != nil {
		return err
	}
	h := i.Config.History
	out := make([]imagetypes.HistoryResponseItem, 0, len(h))
	// The layers belong to the entries that are not empty, from the lowest up.
	sizes, left := make([]int64, len(h)), i.LayerSizes
	for n := range h {
		if !h[n].EmptyLayer && len(left) > 0 {
			sizes[n], left = left[0], left[1:]
		}
	}
	for n := len(h) - 1; n >= 0; n-- {
		item := imagetypes.HistoryResponseItem{ID: "<missing>", CreatedBy: h[n].CreatedBy, Comment: h[n].Comment, Size: sizes[n], Tags: []string{}}
		if h[n].Created != nil {
			item.Created = h[n].Created.Unix()
		}
		if n == len(h)-1 {
			item.ID, item.Tags = i.ID.String(), nonNil(i.Names)
		}
		out = append(out, item)
	}
	return c.reply(http.StatusOK, out)
}
