package build

import (
	"archive/tar"
	"bytes"
	"net/url"
	"strings"
	"testing"
)

// archive makes a tar of name, content pairs.
func archive(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestClassicBuild(t *testing.T) {
	k := newKit(t)
	tar := archive(t, "Dockerfile", "FROM scratch\nCOPY a /b\nENV X=1\n", "a", "hello")
	status, body := k.post("/build?"+url.Values{"t": {"x", "y/z:1"}}.Encode(), tar)
	t.Log(body)
	if status != 200 || !strings.Contains(body, "Successfully tagged x:latest") {
		t.Fatal(status)
	}
}
