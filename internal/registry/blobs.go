package registry

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"proa/internal/registry/store"
)

// serveFile answers with a file's content: all of it, the ranges that the
// client asks for, or nothing but its length.
func (w *answer) serveFile(r *request, f *os.File, mediaType string, d digest.Digest) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(w, r.Request, "", time.Time{}, f)
}

func (w *answer) text(status int, mediaType string, raw []byte) error {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	if w.head {
		return nil
	}
	_, err := w.Write(raw)
	return err
}

func (w *answer) nothing(status int) error {
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(status)
	return nil
}

// digestOf reads the digest of a path or query.
func digestOf(text string) (digest.Digest, error) {
	d, err := store.ParseDigest(text)
	return d, because(codeDigestInvalid, err)
}

func (g *Registry) getBlob(w *answer, r *request) error {
	d, err := digestOf(r.ref)
	if err != nil {
		return err
	}
	f, err := g.cfg.Store.OpenBlob(r.repo, d)
	if err != nil {
		return because(codeBlobUnknown, err)
	}
	defer f.Close()
	w.serveFile(r, f, "application/octet-stream", d)
	return nil
}

func (g *Registry) deleteBlob(w *answer, r *request) error {
	d, err := digestOf(r.ref)
	if err != nil {
		return err
	}
	if err := g.cfg.Store.DeleteBlob(r.repo, d); err != nil {
		return because(codeBlobUnknown, err)
	}
	g.removed()
	return w.nothing(http.StatusAccepted)
}

// hasBlob answers that the repository has the blob from now on.
func (w *answer) hasBlob(repo string, d digest.Digest) error {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	return w.nothing(http.StatusCreated)
}

// uploadAt answers where an upload stands.
func (w *answer) uploadAt(status int, r *request, id string, size int64) error {
	w.uploadHeaders(r, id, size)
	return w.nothing(status)
}

func (w *answer) uploadHeaders(r *request, id string, size int64) {
	w.Header().Set("Location", "/v2/"+r.repo+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
}

// beginUpload begins an upload, or saves it: by a mount, or because the whole
// blob came with the request. All who may push here may pull everything, so a
// blob that any repository has is mounted also if the client does not say which.
func (g *Registry) beginUpload(w *answer, r *request) error {
	q := r.URL.Query()
	if q.Get("mount") != "" {
		d, err := digestOf(q.Get("mount"))
		if err != nil {
			return err
		}
		from := q.Get("from")
		if from != "" {
			if err := store.CheckName(from); err != nil {
				return because(codeNameInvalid, err)
			}
		}
		err = because(codeBlobUnknown, g.cfg.Store.Mount(r.repo, from, d))
		var p *problem
		switch {
		case err == nil:
			return w.hasBlob(r.repo, d)
		case !errors.As(err, &p) || p.status != http.StatusNotFound:
			return err
		}
		// Nothing to mount is no error: the client sends it.
	}
	var d digest.Digest
	if q.Get("digest") != "" {
		var err error
		if d, err = digestOf(q.Get("digest")); err != nil {
			return err
		}
	}
	id, err := g.cfg.Store.Begin(r.repo, r.client())
	if err != nil {
		return because(codeTooManyRequests, err)
	}
	if d == "" {
		return w.uploadAt(http.StatusAccepted, r, id, 0)
	}
	err = g.receiveBlob(w, r, id, -1)
	if err == nil {
		_, err = g.cfg.Store.Commit(r.Context(), r.repo, id, d)
	}
	if err != nil {
		// The client was told no id, so it cannot go on with this one.
		_ = g.cfg.Store.Cancel(r.Context(), r.repo, id)
		return because(codeUploadInvalid, err)
	}
	return w.hasBlob(r.repo, d)
}

var chunkRange = regexp.MustCompile(`^(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d+|\*))?$`)

// chunkStart reads where a chunk begins: -1 if the client does not say.
func chunkStart(r *request) (int64, error) {
	given := r.Header.Get("Content-Range")
	if given == "" {
		return -1, nil
	}
	m := chunkRange.FindStringSubmatch(given)
	if m == nil {
		return 0, &problem{status: http.StatusBadRequest, code: codeUploadInvalid, message: fmt.Sprintf("Content-Range %.60q: it is <first byte>-<last byte>", given)}
	}
	from, _ := strconv.ParseInt(m[1], 10, 64)
	to, _ := strconv.ParseInt(m[2], 10, 64)
	if to < from || r.ContentLength >= 0 && r.ContentLength != to-from+1 {
		return 0, &problem{status: http.StatusBadRequest, code: codeSizeInvalid, message: fmt.Sprintf("Content-Range %s does not fit a Content-Length of %d", given, r.ContentLength)}
	}
	return from, nil
}

// receiveBlob appends the request's body to an upload.
func (g *Registry) receiveBlob(w *answer, r *request, id string, at int64) error {
	if r.ContentLength == 0 && at < 0 {
		return nil
	}
	select {
	case g.receive <- struct{}{}:
		defer func() { <-g.receive }()
	default:
		return &problem{status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many uploads at once (--max-uploads): try again"}
	}
	size, err := g.cfg.Store.Append(r.Context(), r.repo, id, at, r.source(g.cfg.Stall))
	if err == nil {
		return nil
	}
	var offset *store.OffsetError
	if errors.As(err, &offset) {
		w.uploadHeaders(r, id, size)
	}
	err = because(codeUploadUnknown, err)
	var p *problem
	if errors.As(err, &p) && p.status == http.StatusTooManyRequests {
		p.status, p.code = http.StatusRequestEntityTooLarge, codeSizeInvalid
	}
	return err
}

func (g *Registry) uploadStatus(w *answer, r *request) error {
	size, err := g.cfg.Store.Status(r.repo, r.ref)
	if err != nil {
		return because(codeUploadUnknown, err)
	}
	return w.uploadAt(http.StatusNoContent, r, r.ref, size)
}

func (g *Registry) appendUpload(w *answer, r *request) error {
	at, err := chunkStart(r)
	if err != nil {
		return err
	}
	if err := g.receiveBlob(w, r, r.ref, at); err != nil {
		return err
	}
	size, err := g.cfg.Store.Status(r.repo, r.ref)
	if err != nil {
		return because(codeUploadUnknown, err)
	}
	return w.uploadAt(http.StatusAccepted, r, r.ref, size)
}

func (g *Registry) endUpload(w *answer, r *request) error {
	d, err := digestOf(r.URL.Query().Get("digest"))
	if err != nil {
		return err
	}
	at, err := chunkStart(r)
	if err != nil {
		return err
	}
	if err := g.receiveBlob(w, r, r.ref, at); err != nil {
		return err
	}
	if _, err := g.cfg.Store.Commit(r.Context(), r.repo, r.ref, d); err != nil {
		return because(codeUploadUnknown, err)
	}
	return w.hasBlob(r.repo, d)
}

func (g *Registry) cancelUpload(w *answer, r *request) error {
	if err := g.cfg.Store.Cancel(r.Context(), r.repo, r.ref); err != nil {
		return because(codeUploadUnknown, err)
	}
	return w.nothing(http.StatusNoContent)
}
