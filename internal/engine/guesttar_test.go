package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// A guest that is asked for one path gives nothing else to whoever unpacks it.
func TestGuestSendsOnlyWhatWasAskedFor(t *testing.T) {
	archive := func(names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o644, Size: 4, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "v"}}
			if strings.HasSuffix(n, "/") {
				h.Typeflag, h.Size = tar.TypeDir, 0
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				if _, err := io.WriteString(w, "data"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for _, c := range []struct {
		asked string
		sent  []byte
		ok    bool
	}{
		{"/a/data", archive("data/", "data/x", "data/x/../y"), true},
		{"/a/data/", archive("data/", "data/x"), true},
		{"data/.", archive("./", "./x", "y"), true},
		{"/", archive("/", "bin/", "bin/sh"), true},
		{"/a/..", archive("bin/"), true},
		{"/a/data", archive("data/", ".bashrc"), false},
		{"/a/data", archive("data/../.bashrc"), false},
		{"/a/data", archive("/etc/passwd"), false},
		{"/a/data", append(archive("data/"), make([]byte, 2<<20)...), false},
		{"/a/data", archive("data/", "data/x")[:1300], false},
		{"/a/data", []byte(strings.Repeat("no tar", 200)), false},
	} {
		var out bytes.Buffer
		err := guestTar(context.Background(), c.asked, &out, func(w io.Writer) error { _, err := w.Write(c.sent); return err })
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.asked, err)
		}
		if c.ok && !bytes.Equal(out.Bytes(), c.sent) {
			t.Errorf("%s: the archive is another one", c.asked)
		}
		if bytes.Contains(out.Bytes(), []byte("bashrc")) || bytes.Contains(out.Bytes(), []byte("passwd")) {
			t.Errorf("%s: a name was sent on", c.asked)
		}
	}
	// What the guest says of a path keeps its kind, and nothing has been sent.
	var out bytes.Buffer
	err := guestTar(context.Background(), "/x", &out, func(io.Writer) error { return errdefs.ErrNotFound })
	if !errors.Is(err, errdefs.ErrNotFound) || out.Len() > 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
}
