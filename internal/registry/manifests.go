package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/registry/store"
)

const (
	// manifestLimit is the size of a manifest that every registry takes.
	manifestLimit = 4 << 20
	// manifestsAtOnce bounds how many are read and decoded at a time.
	manifestsAtOnce = 16
	// valueLimit bounds the JSON of one: "{}," has three bytes, and the
	// descriptor that it becomes more than a hundred (CWE-789).
	valueLimit = 200_000
	// refLimit is how much one manifest may name.
	refLimit = 10_000
	// tagLimit is how many tags one push of a manifest may set.
	tagLimit = 100

	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerOld      = "application/vnd.docker.distribution.manifest.v1+"
)

// resolve finds which manifest a path means: a digest, or what a tag points to.
func (g *Registry) resolve(r *request) (digest.Digest, error) {
	if strings.Contains(r.ref, ":") {
		return digestOf(r.ref)
	}
	if err := store.CheckTag(r.ref); err != nil {
		return "", because(codeManifestInvalid, err)
	}
	d, err := g.cfg.Store.Resolve(r.repo, r.ref)
	return d, because(codeManifestUnknown, err)
}

func (g *Registry) getManifest(w *answer, r *request) error {
	d, err := g.resolve(r)
	if err != nil {
		return err
	}
	mediaType, f, err := g.cfg.Store.OpenManifest(r.repo, d)
	if err != nil {
		return because(codeManifestUnknown, err)
	}
	defer f.Close()
	w.serveFile(r, f, mediaType, d)
	return nil
}

func (g *Registry) putManifest(w *answer, r *request) error {
	var want digest.Digest
	var tagged []string
	var err error
	if strings.Contains(r.ref, ":") {
		if want, err = digestOf(r.ref); err != nil {
			return err
		}
		tagged = r.URL.Query()["tag"] // of the specification's next version
	} else {
		tagged = []string{r.ref}
	}
	if len(tagged) > tagLimit {
		return &problem{status: http.StatusRequestURITooLong, code: codeManifestInvalid, message: fmt.Sprintf("%d tags at once: at most %d are taken", len(tagged), tagLimit)}
	}
	for _, tag := range tagged {
		if err := store.CheckTag(tag); err != nil {
			return because(codeManifestInvalid, err)
		}
	}
	tooLarge := &problem{status: http.StatusRequestEntityTooLarge, code: codeSizeInvalid, message: fmt.Sprintf("a manifest has at most %d bytes", manifestLimit)}
	if r.ContentLength > manifestLimit {
		return tooLarge
	}
	done, err := g.mayRead(r)
	if err != nil {
		return err
	}
	defer done()
	raw, err := io.ReadAll(io.LimitReader(r.Body, manifestLimit+1))
	if err != nil {
		return &problem{status: http.StatusBadRequest, code: codeManifestInvalid, message: "the manifest did not arrive whole", err: err}
	}
	if len(raw) > manifestLimit {
		return tooLarge
	}
	_ = r.rc.SetReadDeadline(time.Time{}) // from here on we are the slow ones
	m, err := readManifest(raw, r.Header.Get("Content-Type"))
	if err != nil {
		return &problem{status: http.StatusBadRequest, code: codeManifestInvalid, message: err.Error()}
	}
	m.Digest = digest.SHA256.FromBytes(raw)
	if want != "" {
		if m.Digest = want.Algorithm().FromBytes(raw); m.Digest != want {
			return because(codeDigestInvalid, &store.DigestError{Want: want, Got: m.Digest})
		}
	}
	if err := g.cfg.Store.PutManifest(r.repo, m, tagged...); err != nil {
		return because(codeManifestInvalid, err)
	}
	w.Header().Set("Location", "/v2/"+r.repo+"/manifests/"+m.Digest.String())
	w.Header().Set("Docker-Content-Digest", m.Digest.String())
	if want != "" {
		for _, tag := range tagged {
			w.Header().Add("OCI-Tag", tag)
		}
	}
	if m.Subject != "" {
		w.Header().Set("OCI-Subject", m.Subject.String())
	}
	return w.nothing(http.StatusCreated)
}

// mayRead waits for a token to read a manifest, which then has to arrive whole
// within the stall limit: who sends slowly must not keep others out.
func (g *Registry) mayRead(r *request) (done func(), err error) {
	wait := time.NewTimer(g.cfg.Stall)
	defer wait.Stop()
	select {
	case g.reading <- struct{}{}:
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	case <-wait.C:
		return nil, &problem{status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many manifests at once: try again"}
	}
	_ = r.rc.SetReadDeadline(time.Now().Add(g.cfg.Stall))
	return func() { <-g.reading }, nil
}

// tooManyValues says whether a JSON document has more values than limit.
func tooManyValues(raw []byte, limit int) bool {
	inString, escaped := false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped, inString = c == '\\', c != '"'
		case c == '"':
			inString = true
		case c == ',':
			if limit--; limit < 0 {
				return true
			}
		}
	}
	return false
}

// readManifest reads what the registry must know of a manifest. Docker's
// second schema has the fields of OCI's where it has them at all.
func readManifest(raw []byte, contentType string) (m store.Manifest, err error) {
	var v struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		ArtifactType  string               `json:"artifactType"`
		Config        *ocispec.Descriptor  `json:"config"`
		Layers        []ocispec.Descriptor `json:"layers"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
		Subject       *ocispec.Descriptor  `json:"subject"`
		Annotations   map[string]string    `json:"annotations"`
	}
	if tooManyValues(raw, valueLimit) {
		return m, fmt.Errorf("the manifest holds more than %d values", valueLimit)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return m, fmt.Errorf("the manifest is no JSON of a manifest: %w", err)
	}
	given := ""
	if contentType != "" {
		if given, _, err = mime.ParseMediaType(contentType); err != nil {
			return m, fmt.Errorf("Content-Type %.100q: %w", contentType, err)
		}
	}
	m = store.Manifest{MediaType: v.MediaType, Body: raw}
	switch {
	case given == "" && v.MediaType == "":
		return m, errors.New("the manifest has no media type: neither Content-Type nor mediaType says it")
	case v.MediaType == "":
		m.MediaType = given
	case given != "" && given != v.MediaType:
		return m, fmt.Errorf("Content-Type says %.100q, but the manifest's mediaType is %.100q", given, v.MediaType)
	}
	if v.SchemaVersion != 2 {
		return m, fmt.Errorf("schemaVersion %d: only 2 is taken", v.SchemaVersion)
	}
	var refs []ocispec.Descriptor
	switch m.MediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if v.Manifests != nil {
			return m, fmt.Errorf("a manifest of type %s with a list of manifests: which is it?", m.MediaType)
		}
		if v.Config == nil {
			return m, errors.New("the manifest has no config")
		}
		refs = append(v.Layers, *v.Config)
	case ocispec.MediaTypeImageIndex, dockerList:
		if v.Layers != nil || v.Config != nil {
			return m, fmt.Errorf("an index of type %s with config or layers: which is it?", m.MediaType)
		}
		refs = v.Manifests
	default:
		if strings.HasPrefix(m.MediaType, dockerOld) {
			return m, errors.New("this is a manifest of Docker's first schema, which has no digest of its config: push it with Docker 1.10 or later, or convert it (skopeo copy --format oci)")
		}
		return m, fmt.Errorf("manifests of type %.100q are not taken: use one of %s, %s, %s, %s", m.MediaType, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerList)
	}
	if len(refs) > refLimit {
		return m, fmt.Errorf("the manifest names %d pieces of content: at most %d are taken", len(refs), refLimit)
	}
	for _, d := range refs {
		if len(d.URLs) > 0 {
			continue // lies elsewhere, by its own word
		}
		checked, err := store.ParseDigest(d.Digest.String())
		if err != nil {
			return m, err
		}
		if d.Size < 0 {
			return m, fmt.Errorf("%s has a size of %d", checked, d.Size)
		}
		m.Refs = append(m.Refs, store.Ref{Digest: checked, Size: d.Size})
	}
	oci := m.MediaType == ocispec.MediaTypeImageManifest || m.MediaType == ocispec.MediaTypeImageIndex
	if v.Subject != nil && oci {
		if m.Subject, err = store.ParseDigest(v.Subject.Digest.String()); err != nil {
			return m, fmt.Errorf("subject: %w", err)
		}
		m.ArtifactType, m.Annotations = v.ArtifactType, v.Annotations
		if m.ArtifactType == "" && v.Config != nil {
			m.ArtifactType = v.Config.MediaType
		}
	}
	return m, nil
}

func (g *Registry) deleteManifest(w *answer, r *request) error {
	var err error
	if strings.Contains(r.ref, ":") {
		var d digest.Digest
		if d, err = digestOf(r.ref); err == nil {
			err = g.cfg.Store.DeleteManifest(r.repo, d)
		}
	} else if err = store.CheckTag(r.ref); err != nil {
		return because(codeManifestInvalid, err)
	} else {
		err = g.cfg.Store.DeleteTag(r.repo, r.ref)
	}
	if err != nil {
		return because(codeManifestUnknown, err)
	}
	g.removed()
	return w.nothing(http.StatusAccepted)
}

// page is the most names in one answer.
const page = 10_000

// paged reads how much of a list a client wants.
func paged(r *request) (last string, n int, err error) {
	q := r.URL.Query()
	n = page
	if text := q.Get("n"); text != "" {
		given, err := strconv.Atoi(text)
		if err != nil || given < 0 {
			return "", 0, &problem{status: http.StatusBadRequest, code: "PAGINATION_NUMBER_INVALID", message: fmt.Sprintf("n=%.20q: it is how many names an answer should have", text)}
		}
		n = min(given, page)
	}
	return q.Get("last"), n, nil
}

// next says where the list goes on.
func (w *answer) next(r *request, more bool, n int, last string, also ...string) {
	if !more || last == "" {
		return
	}
	q := url.Values{"n": {strconv.Itoa(n)}, "last": {last}}
	for i := 0; i+1 < len(also); i += 2 {
		q.Set(also[i], also[i+1])
	}
	w.Header().Set("Link", "<"+r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
}

func lastOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}

func (g *Registry) tags(w *answer, r *request) error {
	last, n, err := paged(r)
	if err != nil {
		return err
	}
	list, more, err := g.cfg.Store.Tags(r.repo, last, n)
	if err != nil {
		return because(codeNameUnknown, err)
	}
	w.next(r, more, n, lastOf(list))
	return w.json(http.StatusOK, "application/json", map[string]any{"name": r.repo, "tags": list})
}

func (g *Registry) catalog(w *answer, r *request) error {
	last, n, err := paged(r)
	if err != nil {
		return err
	}
	list, more, err := g.cfg.Store.Repositories(last, n)
	if err != nil {
		return err
	}
	w.next(r, more, n, lastOf(list))
	return w.json(http.StatusOK, "application/json", map[string]any{"repositories": list})
}

// referrers answers with an index of at most manifestLimit bytes, since that
// is what a client takes of an index.
func (g *Registry) referrers(w *answer, r *request) error {
	d, err := digestOf(r.ref)
	if err != nil {
		return err
	}
	last, n, err := paged(r)
	if err != nil {
		return err
	}
	artifactType := r.URL.Query().Get("artifactType")
	list, more, err := g.cfg.Store.Referrers(r.repo, d, artifactType, last, n, manifestLimit-4096)
	if err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
	var also []string
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		also = []string{"artifactType", artifactType}
	}
	if have := len(list); have > 0 {
		w.next(r, more, n, list[have-1].Digest.String(), also...)
	}
	return w.json(http.StatusOK, ocispec.MediaTypeImageIndex, index)
}
