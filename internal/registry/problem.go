package registry

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/registry/store"
)

// Codes of errors, by the distribution specification. The last is not in it:
// for what only the operator can mend it is the word that clients know.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeTooManyRequests     = "TOOMANYREQUESTS"
	codeUnknown             = "UNKNOWN"
)

// problem is an answer that says no.
type problem struct {
	status  int
	code    string
	message string
	detail  any
	err     error // what led to it, for the log
}

func (p *problem) Error() string { return p.message }
func (p *problem) Unwrap() error { return p.err }

// because gives an error of the store the code that it has in the context of
// a request. The status follows from the error's kind, here and nowhere else.
func because(code string, err error) error {
	var done *problem
	if err == nil || errors.As(err, &done) {
		return err
	}
	p := &problem{code: code, message: err.Error(), err: err}
	var offset *store.OffsetError
	var missing *store.MissingError
	var used *store.UsedError
	var wrong *store.DigestError
	switch {
	case errors.As(err, &offset):
		p.status, p.code = http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid
	case errors.As(err, &wrong):
		p.status, p.code, p.message = http.StatusBadRequest, codeDigestInvalid, wrong.Error()
		p.detail = map[string]string{"digest": wrong.Want.String(), "content": wrong.Got.String()}
	case errors.As(err, &missing):
		p.status, p.code, p.detail = http.StatusNotFound, codeManifestBlobUnknown, map[string]any{"digests": missing.Missing}
	case errors.As(err, &used):
		// The specification knows no other no for a deletion.
		p.status, p.code, p.detail = http.StatusMethodNotAllowed, codeUnsupported, map[string]string{"manifest": used.By.String()}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		p.status, p.code, p.message = http.StatusInsufficientStorage, codeUnknown, "the registry's disk is full"
	case errors.Is(err, errReplaced):
		p.status, p.code = http.StatusConflict, codeUploadInvalid
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.status, p.code, p.message = http.StatusRequestTimeout, codeUploadInvalid, "nothing came for too long"
	case errdefs.IsNotFound(err):
		p.status = http.StatusNotFound
	case errdefs.IsInvalidArgument(err):
		p.status = http.StatusBadRequest
	case errdefs.IsResourceExhausted(err):
		p.status, p.code = http.StatusTooManyRequests, codeTooManyRequests
	case errdefs.IsAborted(err):
		p.status, p.code = http.StatusBadRequest, codeUploadInvalid
	default:
		// What went wrong inside is for the log; a client gets its number.
		p.status, p.code, p.message = http.StatusInternalServerError, codeUnknown, "the registry failed"
	}
	return p
}

// refuse writes the answer to an error, unless one was begun, and returns
// what the log should say.
func (g *Registry) refuse(w *answer, r *request, err error) error {
	var p *problem
	if !errors.As(err, &p) {
		errors.As(because(codeUnknown, err), &p)
	}
	cause := err
	if p.err != nil {
		cause = p.err
	}
	if w.status != 0 {
		// The client must not take a part for the whole.
		g.cfg.Log.Debug("an answer was cut", "request", r.id, "err", cause)
		panic(http.ErrAbortHandler)
	}
	message := p.message
	if p.status >= 500 {
		message += " (request " + r.id + " in its log)"
	}
	if p.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "5")
	}
	type line struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	_ = w.json(p.status, "application/json", map[string][]line{"errors": {{p.code, message, p.detail}}})
	return cause
}

// json writes one value.
func (w *answer) json(status int, mediaType string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.text(status, mediaType, append(raw, '\n'))
}
