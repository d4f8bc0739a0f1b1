package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var ctx = context.Background()

// text is a Source of what a test has at hand.
type text struct{ io.Reader }

func (text) Interrupt() {}

func open(t testing.TB, dir string, cfg Config) *Store {
	t.Helper()
	s, err := Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// push stores content in a repository.
func push(t testing.TB, s *Store, repo, content string) digest.Digest {
	t.Helper()
	d := digest.FromString(content)
	id, err := s.Begin(repo, "me")
	must(t, err)
	_, err = s.Append(ctx, repo, id, 0, text{strings.NewReader(content)})
	must(t, err)
	_, err = s.Commit(ctx, repo, id, d)
	must(t, err)
	return d
}

// pushManifest stores a manifest that names content.
func pushManifest(t testing.TB, s *Store, repo, body string, subject digest.Digest, tags []string, refs ...digest.Digest) digest.Digest {
	t.Helper()
	m := Manifest{MediaType: "application/test", Digest: digest.FromString(body), Body: []byte(body), Subject: subject}
	for _, d := range refs {
		size, _, err := s.hasFile(d)
		must(t, err)
		m.Refs = append(m.Refs, Ref{d, size})
	}
	must(t, s.PutManifest(repo, m, tags...))
	return m.Digest
}

func read(t testing.TB, s *Store, repo string, d digest.Digest) string {
	t.Helper()
	f, err := s.OpenBlob(repo, d)
	must(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must(t, err)
	return string(b)
}

func files(t testing.TB, dir string) int {
	t.Helper()
	n := 0
	must(t, filepath.WalkDir(filepath.Join(dir, blobsDir), func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return err
	}))
	return n
}

func healthy(t testing.TB, s *Store) {
	t.Helper()
	_, _, faults, err := s.Verify(false)
	must(t, err)
	if len(faults) > 0 {
		t.Errorf("the store does not verify:\n%s", strings.Join(faults, "\n"))
	}
}

func TestUploadGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{})
	content := strings.Repeat("0123456789abcdef", 1<<16)
	id, err := s.Begin("a/b", "me")
	must(t, err)
	if _, err := s.Append(ctx, "a/b", id, 0, text{strings.NewReader(content[:500_000])}); err != nil {
		t.Fatal(err)
	}
	must(t, s.Close())

	s = open(t, dir, Config{})
	if n, err := s.Status("a/b", id); n != 500_000 || err != nil {
		t.Fatalf("status after a restart: %d, %v", n, err)
	}
	// The id is of no use in another repository.
	if _, err := s.Append(ctx, "a/c", id, -1, text{strings.NewReader("x")}); !errdefs.IsNotFound(err) {
		t.Errorf("an upload was found in another repository: %v", err)
	}
	var offset *OffsetError
	if _, err := s.Append(ctx, "a/b", id, 499_999, text{strings.NewReader("x")}); !errors.As(err, &offset) || offset.Have != 500_000 {
		t.Errorf("a chunk at the wrong place: %v", err)
	}
	if _, err := s.Append(ctx, "a/b", id, 500_000, text{strings.NewReader(content[500_000:])}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, "a/b", id, digest.SHA512.FromString(content)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, "a/b", digest.SHA512.FromString(content)); got != content {
		t.Error("the content changed")
	}
	if _, err := s.Commit(ctx, "a/b", id, digest.FromString(content)); !errdefs.IsNotFound(err) {
		t.Errorf("an upload was committed twice: %v", err)
	}
	healthy(t, s)
}

// A body that breaks off: what had arrived counts, and the rest can follow.
func TestCutUpload(t *testing.T) {
	s := open(t, t.TempDir(), Config{})
	content := strings.Repeat("x", 1<<20)
	id, err := s.Begin("r", "me")
	must(t, err)
	cut := io.MultiReader(strings.NewReader(content[:700_001]), brokenReader{io.ErrUnexpectedEOF})
	n, err := s.Append(ctx, "r", id, -1, text{cut})
	if n != 700_001 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("a cut body: %d, %v", n, err)
	}
	_, err = s.Append(ctx, "r", id, n, text{strings.NewReader(content[n:])})
	must(t, err)
	_, err = s.Commit(ctx, "r", id, digest.FromString(content))
	must(t, err)
	healthy(t, s)
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

// waiting is a client that has gone silent.
type waiting struct{ stop chan struct{} }

func (w waiting) Read([]byte) (int, error) { <-w.stop; return 0, errors.New("interrupted") }
func (w waiting) Interrupt()               { close(w.stop) }

func TestANewerRequestTakesTheUploadOver(t *testing.T) {
	s := open(t, t.TempDir(), Config{})
	id, err := s.Begin("r", "me")
	must(t, err)
	old := make(chan error)
	silent := waiting{make(chan struct{})}
	go func() {
		_, err := s.Append(ctx, "r", id, 0, text2{io.MultiReader(strings.NewReader("hel"), silent), silent.Interrupt})
		old <- err
	}()
	for u := s.find("r", id); ; time.Sleep(time.Millisecond) {
		u.mu.Lock()
		begun := u.source != nil
		u.mu.Unlock()
		if begun {
			break
		}
	}
	// What the silent one had read before it was interrupted counts.
	n, err := s.Append(ctx, "r", id, -1, text{strings.NewReader("lo")})
	must(t, err)
	if err := <-old; err == nil {
		t.Error("the older request did not notice")
	}
	if n != 5 {
		t.Fatalf("%d bytes, want 5", n)
	}
	_, err = s.Commit(ctx, "r", id, digest.FromString("hello"))
	must(t, err)
}

type text2 struct {
	io.Reader
	stop func()
}

func (t text2) Interrupt() { t.stop() }

func TestWrongContentEndsTheUpload(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{})
	for _, want := range []digest.Digest{digest.FromString("right"), digest.SHA512.FromString("right")} {
		id, err := s.Begin("r", "me")
		must(t, err)
		_, err = s.Append(ctx, "r", id, 0, text{strings.NewReader("wrong")})
		must(t, err)
		var wrong *DigestError
		if _, err := s.Commit(ctx, "r", id, want); !errors.As(err, &wrong) {
			t.Fatalf("wrong content: %v", err)
		}
		if _, err := s.Status("r", id); !errdefs.IsNotFound(err) {
			t.Errorf("the upload lives on: %v", err)
		}
		if _, err := s.OpenBlob("r", want); !errdefs.IsNotFound(err) {
			t.Errorf("there is a blob: %v", err)
		}
	}
	left, _ := os.ReadDir(filepath.Join(dir, uploadsDir))
	if files(t, dir) != 0 || len(left) != 0 {
		t.Errorf("%d files and %d uploads are left", files(t, dir), len(left))
	}
}

func TestLimits(t *testing.T) {
	s := open(t, t.TempDir(), Config{MaxBlob: 1000, MaxUploads: 2})
	id, err := s.Begin("r", "me")
	must(t, err)
	if _, err := s.Append(ctx, "r", id, 0, text{strings.NewReader(strings.Repeat("x", 1001))}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("1001 bytes of 1000: %v", err)
	}
	_, err = s.Begin("r", "me")
	must(t, err)
	if _, err := s.Begin("r", "me"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a third upload of two: %v", err)
	}
	must(t, s.Cancel(ctx, "r", id))
	if _, err := s.Begin("r", "me"); err != nil {
		t.Errorf("after one was cancelled: %v", err)
	}
}

func TestOneProcessForEachRoot(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Config{})
	_, err := Open(dir, Config{})
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("a second process: %v", err)
	}
}

func TestParallelPushesOfTheSameBlob(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{})
	content := strings.Repeat("same", 100_000)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { push(t, s, fmt.Sprintf("repo%d", i%4), content) })
	}
	wg.Wait()
	if n := files(t, dir); n != 1 {
		t.Errorf("%d files for one blob", n)
	}
	healthy(t, s)
}

func TestBlobsBelongToRepositories(t *testing.T) {
	s := open(t, t.TempDir(), Config{})
	d := push(t, s, "one", "content")
	if _, err := s.OpenBlob("two", d); !errdefs.IsNotFound(err) {
		t.Errorf("a blob of another repository: %v", err)
	}
	if err := s.Mount("two", "three", d); !errdefs.IsNotFound(err) {
		t.Errorf("mounted from where it is not: %v", err)
	}
	must(t, s.Mount("two", "one", d))
	must(t, s.Mount("four", "", d))
	for _, repo := range []string{"two", "four"} {
		if read(t, s, repo, d) != "content" {
			t.Error("the content changed")
		}
	}
	if err := s.Mount("two", "", digest.FromString("nowhere")); !errdefs.IsNotFound(err) {
		t.Errorf("mounted out of nothing: %v", err)
	}
}

func TestManifestsNameWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{})
	d := push(t, s, "r", "layer")
	m := Manifest{MediaType: "m", Digest: digest.FromString("{}"), Body: []byte("{}"), Refs: []Ref{{d, 5}, {digest.FromString("other"), 5}}}
	var missing *MissingError
	if err := s.PutManifest("r", m, "t"); !errors.As(err, &missing) || !slices.Equal(missing.Missing, []digest.Digest{digest.FromString("other")}) {
		t.Errorf("a missing layer: %v", err)
	}
	m.Refs = []Ref{{d, 6}}
	if err := s.PutManifest("r", m, "t"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a wrong size: %v", err)
	}
	if n := files(t, dir); n != 1 {
		t.Errorf("%d files: a refused manifest was stored", n)
	}
	if _, err := s.Resolve("r", "t"); !errdefs.IsNotFound(err) {
		t.Errorf("a refused manifest has a tag: %v", err)
	}
	m.Refs = []Ref{{d, 5}}
	must(t, s.PutManifest("r", m, "t", "u"))
	var used *UsedError
	if err := s.DeleteBlob("r", d); !errors.As(err, &used) || used.By != m.Digest {
		t.Errorf("a layer in use was deleted: %v", err)
	}
	must(t, s.DeleteTag("r", "t"))
	if _, _, err := s.OpenManifest("r", m.Digest); err != nil {
		t.Errorf("the manifest went with one of its tags: %v", err)
	}
	must(t, s.DeleteManifest("r", m.Digest))
	if _, err := s.Resolve("r", "u"); !errdefs.IsNotFound(err) {
		t.Errorf("a tag outlived its manifest: %v", err)
	}
	must(t, s.DeleteBlob("r", d))
	healthy(t, s)
}

func TestLists(t *testing.T) {
	s := open(t, t.TempDir(), Config{})
	d := push(t, s, "b", "x")
	for _, repo := range []string{"b", "a/b", "a", "a-b"} {
		pushManifest(t, s, repo, repo, "", []string{"2", "10", "1"})
	}
	walk := func(page func(last string) ([]string, bool)) (all []string) {
		for last, more := "", true; more; {
			var list []string
			list, more = page(last)
			if len(list) == 0 {
				t.Fatal("an empty page")
			}
			all, last = append(all, list...), list[len(list)-1]
		}
		return all
	}
	for n := 1; n < 6; n++ {
		got := walk(func(last string) ([]string, bool) {
			list, more, err := s.Repositories(last, n)
			must(t, err)
			return list, more
		})
		if want := []string{"a", "a-b", "a/b", "b"}; n < 6 && !slices.Equal(slices.Sorted(slices.Values(got)), want) || len(got) != 4 {
			t.Errorf("repositories by %d: %q", n, got)
		}
		got = walk(func(last string) ([]string, bool) {
			list, more, err := s.Tags("a", last, n)
			must(t, err)
			return list, more
		})
		if !slices.Equal(got, []string{"1", "10", "2"}) {
			t.Errorf("tags by %d: %q", n, got)
		}
	}
	if _, _, err := s.Tags("none", "", 10); !errdefs.IsNotFound(err) {
		t.Errorf("tags of no repository: %v", err)
	}
	// Whoever knows the subject has the list, also before the subject is there.
	for i := range 5 {
		pushManifest(t, s, "b", fmt.Sprint("ref", i), d, nil)
	}
	got := walk(func(last string) (names []string, more bool) {
		list, more, err := s.Referrers("b", d, "", last, 2, 1<<20)
		must(t, err)
		for _, l := range list {
			names = append(names, l.Digest.String())
		}
		return names, more
	})
	if len(got) != 5 || !slices.IsSorted(got) {
		t.Errorf("referrers: %q", got)
	}
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{KeepUnused: time.Nanosecond, UploadExpiry: time.Hour})
	config, layer := push(t, s, "r", "config"), push(t, s, "r", "layer")
	child := pushManifest(t, s, "r", "child", "", nil, config, layer)
	index := pushManifest(t, s, "r", "index", "", []string{"t"}, child)
	signature := pushManifest(t, s, "r", "signature", index, nil, push(t, s, "r", "sig"))
	alone := pushManifest(t, s, "r", "alone", "", nil, push(t, s, "r", "own layer"), config)
	push(t, s, "r", "nobody's")
	must(t, s.Mount("q", "r", layer)) // nobody's there
	fresh, err := s.Begin("r", "me")
	must(t, err)
	stale, err := s.Begin("r", "me")
	must(t, err)
	long := time.Now().Add(-2 * time.Hour)
	must(t, os.Chtimes(filepath.Join(dir, uploadsDir, uploadName("r", stale)), long, long))
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // terms are counted in seconds

	c, err := s.Collect(ctx, false)
	must(t, err)
	if c != (Collected{Blobs: 1, Bytes: 8, Uploads: 1}) {
		t.Errorf("collected %+v", c)
	}
	if _, err := s.OpenBlob("q", layer); !errdefs.IsNotFound(err) {
		t.Errorf("a mount that no manifest used is still there: %v", err)
	}
	if _, err := s.Status("r", fresh); err != nil {
		t.Errorf("a fresh upload went: %v", err)
	}
	if _, err := s.Status("r", stale); !errdefs.IsNotFound(err) {
		t.Errorf("a stale upload stays: %v", err)
	}
	healthy(t, s)

	c, err = s.Collect(ctx, true)
	must(t, err)
	if c.Manifests != 1 || c.Blobs != 2 {
		t.Errorf("collected %+v", c)
	}
	if _, _, err := s.OpenManifest("r", alone); !errdefs.IsNotFound(err) {
		t.Errorf("an untagged manifest stays: %v", err)
	}
	for _, d := range []digest.Digest{child, index, signature} {
		if _, _, err := s.OpenManifest("r", d); err != nil {
			t.Errorf("collected what a tag leads to: %v", err)
		}
	}
	healthy(t, s)

	must(t, s.DeleteTag("r", "t"))
	if _, err = s.Collect(ctx, true); err != nil {
		t.Fatal(err)
	}
	if n := files(t, dir); n != 0 {
		t.Errorf("%d files are left of nothing", n)
	}
	healthy(t, s)
}

// Pushes, pulls and collections at once: what a push has been told is there
// is there, whatever is collected meanwhile.
func TestCollectBesidePushes(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{KeepUnused: time.Hour})
	stop := make(chan struct{})
	var collector, pushers sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.Collect(ctx, false); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 4 {
		pushers.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for n := range 25 {
				content := fmt.Sprint("blob", rnd.IntN(3)) // shared by all: files come and go
				repo := fmt.Sprint("repo", i)
				d := push(t, s, repo, content)
				tag := fmt.Sprint(i, n)
				m := pushManifest(t, s, repo, fmt.Sprint("manifest", i, n), "", []string{tag}, d)
				if read(t, s, repo, d) != content {
					t.Error("the content changed")
				}
				must(t, s.DeleteManifest(repo, m))
				must(t, s.DeleteBlob(repo, d))
			}
		})
	}
	pushers.Wait()
	close(stop)
	collector.Wait()
	healthy(t, s)
}

func TestVerifyFindsAndRepairs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Config{})
	d := push(t, s, "r", "right")
	pushManifest(t, s, "r", "m", "", []string{"t"}, d)
	healthy(t, s)
	must(t, os.WriteFile(filepath.Join(dir, blobFile(d)), []byte("wrong"), 0o600))
	if _, _, faults, err := s.Verify(true); err != nil || len(faults) != 1 {
		t.Fatalf("faults: %q, %v", faults, err)
	}
	if _, err := s.OpenBlob("r", d); !errdefs.IsNotFound(err) {
		t.Errorf("the broken blob is still given out: %v", err)
	}
	push(t, s, "r", "right")
	healthy(t, s)
}

func TestDigests(t *testing.T) {
	for _, bad := range []string{
		"", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha384:" + strings.Repeat("a", 96), "sha256:" + strings.Repeat("A", 64),
		"sha256:" + strings.Repeat("a", 63) + "/", "sha256:../../../../etc/passwd" + strings.Repeat("a", 41), "../sha256:" + strings.Repeat("a", 64),
	} {
		if d, err := ParseDigest(bad); !errdefs.IsInvalidArgument(err) || d != "" {
			t.Errorf("%q: %q, %v", bad, d, err)
		}
	}
	for _, good := range []digest.Digest{digest.FromString("x"), digest.SHA512.FromString("x")} {
		if d, err := ParseDigest(good.String()); d != good || err != nil {
			t.Errorf("%q: %q, %v", good, d, err)
		}
	}
}

// FuzzNames: whatever is accepted is a plain relative path without surprises,
// and can be a key of the index.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"a", "library/busybox", "a.b_c__d---e/f", "A", "a//b", "/a", "a/", "../a", "a/../b", "a\x00b", "a b", "-a", "a_-b", strings.Repeat("a", 256), "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckName(s) == nil && (!filepath.IsLocal(s) || filepath.Clean(s) != s || strings.ContainsAny(s, "\x00 %\\:") || strings.ToLower(s) != s || len(s) > 255) {
			t.Errorf("repository %q is accepted", s)
		}
		if CheckTag(s) == nil && (strings.ContainsAny(s, "/\x00 %\\:") || strings.HasPrefix(s, ".") || len(s) > 128) {
			t.Errorf("tag %q is accepted", s)
		}
		if d, err := ParseDigest(s); err == nil && (!filepath.IsLocal(blobFile(d)) || strings.Count(blobFile(d), "/") != 2 || filepath.Clean(blobFile(d)) != blobFile(d)) {
			t.Errorf("digest %q is accepted", s)
		}
	})
}

// A list of referrers takes no more memory than it may, whatever their
// annotations hold; the rest comes with the next page.
func TestReferrersHaveRoom(t *testing.T) {
	s := open(t, t.TempDir(), Config{})
	d := digest.FromString("subject")
	for i := range 5 {
		m := Manifest{MediaType: "application/test", Body: fmt.Append(nil, i), Subject: d, Annotations: map[string]string{"a": strings.Repeat("x", 1000)}}
		m.Digest = digest.FromBytes(m.Body)
		must(t, s.PutManifest("a", m))
	}
	for room, want := range map[int]int{0: 1, 1500: 1, 2600: 2, 1 << 20: 5} {
		var all []string
		last := ""
		for more := true; more; {
			var list []ocispec.Descriptor
			var err error
			list, more, err = s.Referrers("a", d, "", last, 100, room)
			must(t, err)
			if len(list) != min(want, 5-len(all)) {
				t.Fatalf("room %d: %d at once, want %d", room, len(list), want)
			}
			for _, l := range list {
				last = l.Digest.String()
				all = append(all, last)
			}
		}
		if len(all) != 5 {
			t.Errorf("room %d: %d of 5", room, len(all))
		}
	}
}

// A chain of referrers and indexes is followed without recursion, and what no
// tag leads to is removed without looking at every tag for each of them.
func TestUntaggedAmongMany(t *testing.T) {
	s := open(t, t.TempDir(), Config{})
	kept := pushManifest(t, s, "a", "top", "", []string{"t"})
	for i := range 50 {
		kept = pushManifest(t, s, "a", fmt.Sprint("by ", i), kept, nil)
		kept = pushManifest(t, s, "a", fmt.Sprint("index ", i), "", []string{fmt.Sprint("i", i)}, kept)
	}
	for i := range 50 {
		pushManifest(t, s, "a", fmt.Sprint("loose ", i), "", nil)
	}
	c, err := s.Collect(ctx, true)
	must(t, err)
	if c.Manifests != 50 {
		t.Errorf("%d manifests were removed, want the 50 that nothing leads to", c.Manifests)
	}
	if _, _, faults, err := s.Verify(false); err != nil || len(faults) > 0 {
		t.Errorf("%v %v", faults, err)
	}
}
