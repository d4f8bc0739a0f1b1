package test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"proa/test/proatest"
)

// needles are the forms in which a secret would be found.
func needles(secret string) [][]byte {
	return [][]byte{[]byte(secret), []byte(hex.EncodeToString([]byte(secret))), []byte(base64.RawStdEncoding.EncodeToString([]byte(secret)))}
}

// holds tells whether a stream has one of the needles: as it is, in what it is
// packed of, or in a file of the archive that it is.
func holds(t *testing.T, r io.Reader, look [][]byte) bool {
	t.Helper()
	b := bufio.NewReaderSize(r, 1<<20)
	head, _ := b.Peek(512)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		if z, err := gzip.NewReader(b); err == nil {
			return holds(t, z, look)
		}
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		return holds(t, z, look)
	case len(head) == 512 && bytes.HasPrefix(head[257:], []byte("ustar")):
		for a := tar.NewReader(b); ; {
			h, err := a.Next()
			if errors.Is(err, io.EOF) {
				return false
			}
			if err != nil {
				t.Fatal(err)
			}
			if found(strings.NewReader(fmt.Sprint(h)), look) || holds(t, a, look) {
				return true
			}
		}
	}
	return found(b, look)
}

// found looks for the needles in the bytes of a stream.
func found(r io.Reader, look [][]byte) bool {
	const most = 1 << 20
	var rest []byte
	for buf := make([]byte, most); ; {
		n, err := io.ReadFull(r, buf)
		rest = append(rest, buf[:n]...)
		for _, l := range look {
			if bytes.Contains(rest, l) {
				return true
			}
		}
		if err != nil {
			return false
		}
		rest = append(rest[:0], rest[len(rest)-256:]...)
	}
}

// parts are what of a file is no hole.
func parts(f *os.File, size int64) (out []io.Reader) {
	const data, hole = 3, 4 // SEEK_DATA, SEEK_HOLE
	for end := int64(0); ; {
		begin, err := f.Seek(end, data)
		if err != nil {
			return out // ENXIO: nothing but holes
		}
		if end, err = f.Seek(begin, hole); err != nil {
			end = size
		}
		out = append(out, io.NewSectionReader(f, begin, end-begin))
	}
}

// secretsIn are the files below some directories that hold a needle.
func secretsIn(t *testing.T, look [][]byte, dirs ...string) (names []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(p)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			defer f.Close()
			fi, err := f.Stat()
			if err != nil {
				return err
			}
			if fi.Size() >= 1<<30 { // a disk of VMs, nearly all of it one hole
				for _, part := range parts(f, fi.Size()) {
					if found(part, look) {
						names = append(names, p)
					}
				}
				return nil
			}
			if holds(t, f, look) {
				names = append(names, p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	return names
}

// What a step is given as a secret is in nothing that is left of the build, or
// lies on a disk while it runs: layers in every form, configuration and history,
// caches that were exported, the builder's databases, provenance, logs, and what
// was said of a step that failed. A step that writes it down is found by the same
// search.
func TestSecretsLeaveNoTrace(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	own := t.TempDir()
	raw := make([]byte, 40)
	_, _ = rand.Read(raw)
	file, word := "file-"+hex.EncodeToString(raw[:20]), "word-"+hex.EncodeToString(raw[20:])
	if err := os.WriteFile(filepath.Join(own, "token"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	look := append(needles(file), needles(word)...)
	t.Setenv("SECRET_WORD", word)
	const given = "RUN --mount=type=secret,id=token,required --mount=type=secret,id=word,env=WORD,required "
	dir := buildContext(t,
		"uses", "FROM bb\n"+given+`[ "$(wc -c </run/secrets/token)" = 45 ] && [ ${#WORD} = 45 ] && sha256sum /run/secrets/token >/sum`+"\nCOPY uses /copied\n",
		"fails", "FROM bb\n"+given+`cat /run/secrets/token >/dev/null && test -z "$WORD"`+"\n",
		"waits", "FROM bb\n"+given+`echo it-be""gan && sleep 300`+"\n",
		"leaks", "FROM bb\n"+given+`cat /run/secrets/token >/leak && echo "$WORD" >>/leak`+"\n")
	secrets := []string{"--secret", "id=token,src=" + filepath.Join(own, "token"), "--secret", "id=word,env=SECRET_WORD"}
	args := func(name, out string, more ...string) []string {
		a := append([]string{"build", "--no-cache", "--progress", "plain", "-f", filepath.Join(dir, name)}, secrets...)
		if out != "" {
			a = append(a, "-t", name, "--cache-to", "type=local,mode=max,dest="+filepath.Join(out, "cache"))
		}
		return append(append(a, more...), dir)
	}
	clean := func(what, out string, said string) {
		t.Helper()
		if got := secretsIn(t, look, e.Dir, e.ExecRoot, out); len(got) > 0 {
			t.Errorf("%s: the secret is in %q", what, got)
		}
		if found(strings.NewReader(said), look) {
			t.Errorf("%s: the secret was said:\n%s", what, said)
		}
	}
	for wall, forms := range map[string][]string{"container": {"gzip", "zstd", "uncompressed"}, "vm": nil} {
		out := t.TempDir()
		isolation := []string{"--isolation", wall}
		r := e.Proa(args("uses", out, isolation...)...)
		if r.Code != 0 {
			t.Fatalf("%s: exit code %d\n%s", wall, r.Code, r.Stderr)
		}
		said := r.Stdout + r.Stderr
		for _, as := range forms {
			r := e.Proa(args("uses", "", append(isolation, "-o", "type=oci,force-compression=true,compression="+as+",dest="+filepath.Join(out, as+".tar"))...)...)
			if r.Code != 0 {
				t.Fatalf("%s, %s: exit code %d\n%s", wall, as, r.Code, r.Stderr)
			}
			said += r.Stdout + r.Stderr
		}
		e.MustProa("save", "-o", filepath.Join(out, "saved.tar"), "uses")
		said += e.MustProa("inspect", "uses") + e.MustProa("history", "--no-trunc", "uses")
		clean("a build behind wall "+wall, out, said)
		if r := e.Proa(args("fails", "", isolation...)...); r.Code == 0 || !strings.Contains(r.Stderr, "exit code: 1") {
			t.Errorf("%s: exit code %d\n%s", wall, r.Code, r.Stderr)
		} else {
			clean("a failed build behind wall "+wall, out, r.Stdout+r.Stderr)
		}
	}
	out := t.TempDir()
	if r := e.Docker(append([]string{"buildx"}, args("uses", out, "--provenance=mode=max")...)...); r.Code != 0 {
		t.Errorf("buildx with provenance: exit code %d\n%s", r.Code, r.Stderr)
	} else {
		e.MustProa("save", "-o", filepath.Join(out, "saved.tar"), "uses")
		clean("a build with provenance", out, r.Stdout+r.Stderr)
	}
	b := begin(t, e, "it-began", filepath.Join(e.Bin(), "proa"), args("waits", "")...)
	clean("a step that runs", out, b.out.String())
	_ = b.cmd.Process.Signal(os.Interrupt)
	b.end(t)
	clean("a build that was cancelled", out, b.out.String())

	// The search finds it where it is.
	e.MustProa(args("leaks", out)...)
	for _, as := range []string{"gzip", "zstd"} {
		e.MustProa(args("leaks", "", "-o", "type=oci,force-compression=true,compression="+as+",dest="+filepath.Join(out, as+".tar"))...)
	}
	got := strings.Join(secretsIn(t, look, e.DataRoot, out), "\n")
	for _, want := range []string{"image/flat/", "image/content/blobs/", out + "/cache/blobs/", out + "/gzip.tar", out + "/zstd.tar"} {
		if !strings.Contains(got, want) {
			t.Errorf("the secret of a step that writes it down was not found in %s, but in\n%s", want, got)
		}
	}
}
