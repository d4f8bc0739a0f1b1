package credentials

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/registry"
)

func file(t *testing.T, content string) *File {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if content != "" {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t *testing.T, f *File) map[string]any {
	t.Helper()
	b, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFile(t *testing.T) {
	ctx := context.Background()
	f := file(t, "")
	if a, err := f.Get(ctx, "registry:5000"); err != nil || a.Username != "" || a.ServerAddress != "registry:5000" {
		t.Errorf("nothing kept: %+v %v", a, err)
	}
	if had, err := f.Erase(ctx, "registry:5000"); had || err != nil {
		t.Errorf("erased %v %v", had, err)
	}
	plain, err := f.Put(ctx, registry.AuthConfig{ServerAddress: "https://registry:5000/v2/", Username: "ada", Password: "a:b"})
	if err != nil || !plain {
		t.Fatalf("%v %v", plain, err)
	}
	if fi, err := os.Stat(f.Path()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", fi.Mode(), err)
	}
	if a, err := f.Get(ctx, "registry:5000"); err != nil || a.Username != "ada" || a.Password != "a:b" {
		t.Errorf("%+v %v", a, err)
	}
	if a, err := f.Get(ctx, "registry:5001"); err != nil || a.Username != "" {
		t.Errorf("another port got %+v %v", a, err)
	}
	if _, err := f.Put(ctx, registry.AuthConfig{ServerAddress: "docker.io", Username: "ada", IdentityToken: "tok"}); err != nil {
		t.Fatal(err)
	}
	if a, err := f.Get(ctx, "docker.io"); err != nil || a.IdentityToken != "tok" || a.Password != "" || a.ServerAddress != hubKey {
		t.Errorf("%+v %v", a, err)
	}
	if had, err := f.Erase(ctx, "index.docker.io"); !had || err != nil {
		t.Errorf("erased %v %v", had, err)
	}
	if a, _ := f.Get(ctx, "docker.io"); a.IdentityToken != "" {
		t.Error("still there")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(f.Path()), ".config-*")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// What is not known here stays, and a link stays a link.
func TestOthersStay(t *testing.T) {
	ctx := context.Background()
	f := file(t, `{"detachKeys":"ctrl-x","HttpHeaders":{"a":"b"},"auths":{"http://old:5000/v1/":{"auth":"YWRhOnB3","email":"x@y"},"quay.io":{"auth":"YWRhOnB3"}}}`)
	if a, err := f.Get(ctx, "old:5000"); err != nil || a.Password != "pw" {
		t.Errorf("%+v %v", a, err)
	}
	real := filepath.Join(t.TempDir(), "real.json")
	if err := os.Rename(f.Path(), real); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, f.Path()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(ctx, registry.AuthConfig{ServerAddress: "old:5000", Username: "bob", Password: "new"}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(f.Path()); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v %v", fi.Mode(), err)
	}
	m := read(t, f)
	auths := m["auths"].(map[string]any)
	if m["detachKeys"] != "ctrl-x" || m["HttpHeaders"] == nil || auths["quay.io"] == nil || auths["http://old:5000/v1/"] != nil || auths["old:5000"] == nil {
		t.Errorf("%v", m)
	}
	bad := file(t, `{"auths":`)
	if _, err := bad.Put(ctx, registry.AuthConfig{ServerAddress: "x", Username: "u", Password: "p"}); err == nil || !strings.Contains(err.Error(), "cannot read") {
		t.Errorf("a damaged file was changed: %v", err)
	}
	if b, _ := os.ReadFile(bad.Path()); string(b) != `{"auths":` {
		t.Errorf("it is %q now", b)
	}
}

// A helper is a program that is asked on its standard input.
func TestHelpers(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("KEPT", filepath.Join(dir, "kept"))
	script := `#!/bin/sh
case $1 in
store) cat > "$KEPT" ;;
erase) rm "$KEPT" ;;
get) if [ -e "$KEPT" ]; then cat "$KEPT"; else echo "credentials not found in native keychain"; exit 1; fi ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-box"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-broken"), []byte("#!/bin/sh\necho the safe is locked\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	f := file(t, `{"credsStore":"box","credHelpers":{"locked.example":"broken","missing.example":"nosuch","evil.example":"../../bin/sh"}}`)
	if a, err := f.Get(ctx, "registry:5000"); err != nil || a.Username != "" {
		t.Errorf("nothing kept: %+v %v", a, err)
	}
	plain, err := f.Put(ctx, registry.AuthConfig{ServerAddress: "registry:5000", Username: "ada", Password: "secret"})
	if err != nil || plain {
		t.Fatalf("%v %v", plain, err)
	}
	if b, _ := os.ReadFile(f.Path()); strings.Contains(string(b), "c2VjcmV0") || strings.Contains(string(b), "secret") {
		t.Errorf("the file holds the password: %s", b)
	}
	if a, err := f.Get(ctx, "registry:5000"); err != nil || a.Username != "ada" || a.Password != "secret" {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := f.Put(ctx, registry.AuthConfig{ServerAddress: "registry:5000", Username: "ada", IdentityToken: "tok"}); err != nil {
		t.Fatal(err)
	}
	if a, err := f.Get(ctx, "registry:5000"); err != nil || a.IdentityToken != "tok" || a.Password != "" {
		t.Errorf("%+v %v", a, err)
	}
	if had, err := f.Erase(ctx, "registry:5000"); !had || err != nil {
		t.Errorf("erased %v %v", had, err)
	}
	if had, err := f.Erase(ctx, "registry:5000"); had || err != nil {
		t.Errorf("erased twice: %v %v", had, err)
	}
	for host, want := range map[string]string{"locked.example": "the safe is locked", "missing.example": "cannot be run", "evil.example": "is no name"} {
		if _, err := f.Get(ctx, host); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", host, err)
		}
	}
}
