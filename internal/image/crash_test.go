package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/state"
	"proa/internal/sys"
)

// The test binary is its own victim: with this variable it opens the store in
// that directory and loads, builds, pulls or pushes over and over until it is killed.
const (
	victim     = "PROA_TEST_VICTIM"
	victimWork = "PROA_TEST_VICTIM_WORK"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victim); dir != "" {
		fmt.Fprintln(os.Stderr, beVictim(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func beVictim(dir string) error {
	db, err := state.Open(filepath.Join(dir, "proa.db"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	s, err := Open(ctx, Config{Root: filepath.Join(dir, "image"), Mounts: filepath.Join(dir, "mounts"), DB: db, Registries: impatient()})
	if err != nil {
		return err
	}
	switch verb, ref, _ := strings.Cut(os.Getenv(victimWork), " "); verb {
	case "build":
		return buildForever(ctx, s)
	case "pull", "push":
		return carryForever(ctx, s, verb, ref)
	}
	return loadForever(ctx, s, dir)
}

// kill runs a victim and kills it within the given time after it began.
func kill(t *testing.T, dir, work string, after time.Duration) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), victim+"="+dir, victimWork+"="+work)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		_ = cmd.Wait()
		t.Fatalf("the victim did not start: %v %s", err, &stderr)
	}
	time.Sleep(after)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("the victim failed by itself: %s", &stderr)
	}
}

// carryForever pulls an image and removes it, or pushes it, each time to
// another repository, so that there is something to do.
func carryForever(ctx context.Context, s *Store, verb, ref string) (err error) {
	fmt.Println("ready")
	for n := 0; err == nil; n++ {
		if verb == "pull" {
			if _, err = s.Pull(ctx, ref, PullOptions{}); err == nil {
				_, err = s.Remove(ctx, ref, true, true)
			}
			continue
		}
		to := fmt.Sprintf("%s-%d", strings.TrimSuffix(ref, ":latest"), n)
		if err = s.Tag(ctx, ref, to); err == nil {
			_, err = s.Push(ctx, to, PushOptions{})
		}
		if err == nil {
			_, err = s.Remove(ctx, to, true, true)
		}
	}
	return err
}

func loadForever(ctx context.Context, s *Store, dir string) error {
	a, err := os.ReadFile(filepath.Join(dir, "archive"))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if _, err := s.Load(ctx, bytes.NewReader(a), nil); err != nil {
			return err
		}
		if img, err := s.Get(ctx, "big"); err != nil {
			return err
		} else if _, err := s.Mount(ctx, img.ID.String()); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond) // so that some kills find it whole
		if _, err := s.Remove(ctx, "big", true, true); err != nil {
			return err
		}
	}
}

// noise is content that does not compress.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return string(b)
}

func big(t testing.TB, names ...string) sample {
	i := sample{names: names}
	for n := range uint64(4) {
		i.layers = append(i.layers, tarOf(t, file{name: fmt.Sprintf("file%d", n), body: noise(n, 1<<20)}))
	}
	return i
}

// After a kill at any moment the store opens, holds the image whole or not at
// all, has no file that nobody needs, and works.
func TestKilledWhileLoading(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := ociArchive(t, gzipped, big(t, "big"))
	if err := os.WriteFile(filepath.Join(dir, "archive"), a, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, t.TempDir(), nil)
	empty := tree(t, s)
	load(t, s, a)
	settle(t, s)
	whole := tree(t, s)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	seen := map[string]int{}
	for range 20 {
		kill(t, dir, "load", time.Duration(random.IntN(300))*time.Millisecond)

		s := openAt(t, dir, nil)
		got := tree(t, s)
		img, err := s.Get(context.Background(), "big")
		switch {
		case err == nil:
			seen["whole"]++
			if !slices.Equal(got, whole) {
				t.Errorf("files with the image:\n%s", strings.Join(got, "\n"))
			}
			checkBig(t, s, img)
		case errdefs.IsNotFound(err):
			seen["none"]++
			if !slices.Equal(got, empty) {
				t.Errorf("files without the image:\n%s", strings.Join(got, "\n"))
			}
		default:
			t.Fatal(err)
		}
		load(t, s, a)
		checkBig(t, s, get(t, s, "big"))
		if random.IntN(2) == 0 {
			if _, err := s.Remove(context.Background(), "big", true, true); err != nil {
				t.Fatal(err)
			}
			expectTree(t, s, empty)
		}
		closeTest(t, s)
	}
	t.Logf("found %v", seen)
}

// A store that is killed while it pulls or pushes is in order when it opens
// again: the image is there whole or not at all, nothing is left of what was
// under way, and the same command succeeds.
func TestKilledWhilePullingAndPushing(t *testing.T) {
	t.Parallel()
	r := newFaulty(t, 0) // the registry in the box; its faults are off
	r.real = registryWithoutPassword(t)
	dir := t.TempDir()
	ref := r.host + "/big:latest"
	ctx := context.Background()
	i := big(t, ref)
	s := openPuller(t, dir)
	empty := tree(t, s)
	load(t, s, ociArchive(t, gzipped, i))
	if _, err := s.Push(ctx, ref, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	want := get(t, s, ref).Target.Digest
	whole := tree(t, s)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	seen := map[string]int{}
	for n := range 40 {
		verb := "pull"
		if n >= 20 {
			verb = "push"
		}
		if verb == "pull" {
			if _, err := s.Remove(ctx, ref, true, true); err != nil {
				t.Fatal(err)
			}
		}
		closeTest(t, s)
		kill(t, dir, verb+" "+ref, time.Duration(random.IntN(150))*time.Millisecond)

		s = openPuller(t, dir)
		files := tree(t, s) // before anything else is done: what opening left
		_, err := s.Get(ctx, ref)
		switch {
		case err == nil:
			seen[verb+" whole"]++
			if !slices.Equal(files, whole) {
				t.Errorf("files with the image:\n%s", strings.Join(files, "\n"))
			}
		case errdefs.IsNotFound(err) && verb == "pull":
			seen["pull none"]++
			if !slices.Equal(files, empty) {
				t.Errorf("files without the image:\n%s", strings.Join(files, "\n"))
			}
		default:
			t.Fatal(err)
		}
		if verb == "pull" {
			if got, err := s.Pull(ctx, ref, PullOptions{}); err != nil || got.Digest != want {
				t.Fatalf("pulled again: %+v %v", got, err)
			}
		} else if got, err := s.Push(ctx, ref, PushOptions{}); err != nil || got.Target.Digest != want {
			t.Fatalf("pushed again: %+v %v", got, err)
		}
		checkBig(t, s, get(t, s, ref))
		verify(t, s)
	}
	t.Logf("found %v", seen)
	if seen["pull none"] == 0 {
		t.Error("no pull was killed in its middle: the test does not test")
	}
}

func checkBig(t *testing.T, s *Store, img *Image) {
	t.Helper()
	m, err := s.Mount(context.Background(), img.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for n := range uint64(4) {
		if got, err := read(t, m, fmt.Sprintf("file%d", n)); err != nil || got != noise(n, 1<<20) {
			t.Errorf("file%d: %d bytes, %v", n, len(got), err)
		}
	}
	if err := s.Save(context.Background(), io.Discard, []string{img.ID.String()}); err != nil {
		t.Error(err)
	}
}

// smallDisk mounts an ext4 of so many bytes.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a small file system is mounted")
	}
	dir := t.TempDir()
	img, at := filepath.Join(dir, "disk"), filepath.Join(dir, "at")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", img}, {"mount", "-o", "loop", img, at}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := sys.Detach(at); err != nil {
			t.Error(err)
		}
	})
	return at
}

// On a full disk a load says so, leaves nothing, and the store goes on
// working, wherever it runs out.
func TestDiskFull(t *testing.T) {
	disk := smallDisk(t, 40<<20)
	s := openAt(t, disk, nil)
	load(t, s, ociArchive(t, gzipped, hello(t, "hello")))
	settle(t, s)
	before := tree(t, s)
	a := ociArchive(t, gzipped, big(t, "big"))
	root := tarOf(t, file{name: "noise", body: noise(9, 4<<20)})
	ctx := context.Background()
	filler := filepath.Join(disk, "filler")
	free := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	failed := 0
	for _, leave := range []int64{16 << 10, 128 << 10, 512 << 10, 1 << 20, 3 << 20, 5 << 20, 6 << 20, 7 << 20, 8 << 20, 8<<20 + 256<<10, 12 << 20} {
		if n := free() - leave; n > 0 {
			f, err := os.Create(filler)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Fallocate(int(f.Fd()), 0, 0, n); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		for what, do := range map[string]func() error{
			"load":   func() error { _, err := s.Load(ctx, bytes.NewReader(a), nil); return err },
			"import": func() error { _, err := s.Import(ctx, bytes.NewReader(root), "big", nil, "", ""); return err },
		} {
			err := do()
			switch {
			case err == nil:
				if _, err := s.Remove(ctx, "big", false, true); err != nil {
					t.Errorf("%s with %d bytes free: then remove: %v", what, leave, err)
				}
			case errdefs.IsResourceExhausted(err) && errors.Is(err, syscall.ENOSPC) && strings.Contains(err.Error(), "full"):
				failed++
			default:
				t.Errorf("%s with %d bytes free: %v", what, leave, err)
			}
			if got := tree(t, s); !slices.Equal(got, before) {
				t.Errorf("%s with %d bytes free left:\n%s", what, leave, strings.Join(got, "\n"))
			}
			get(t, s, "hello")
		}
		if err := os.Remove(filler); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 22 ran out of space", failed)
	if failed < 8 {
		t.Errorf("only %d of 22 ran out of space: the test does not test", failed)
	}
	load(t, s, a)
	checkBig(t, s, get(t, s, "big"))
}
