package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/test/proatest"
)

// The specification's own test, with everything that it can ask for and what
// its next version adds.
func TestRegistryConforms(t *testing.T) {
	r := proatest.NewRegistry(t, "--allow-delete")
	cmd := exec.Command(proatest.Tool(t, "conformance"))
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+r.Addr, "OCI_TLS=disabled", "OCI_VERSION=dev",
		"OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true", "OCI_API_BLOBS_UPLOAD_CANCEL=true")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("OCI Conformance Result: Pass")) {
		var bad []string
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, ": Pass") {
				bad = append(bad, line)
			}
		}
		t.Fatalf("%v\n%s", err, strings.Join(bad, ""))
	}
	if err := r.Stop(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	r.Check()
	if res := r.Command("gc", "--untagged"); res.Code != 0 || !strings.Contains(res.Stdout, "removed ") {
		t.Errorf("gc: %s%s", res.Stdout, res.Stderr)
	}
	r.Check()
}

// layerTar makes a layer of one file of n random bytes.
func layerTar(t testing.TB, n int) string {
	t.Helper()
	body := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(body)
	file := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(file, proatest.Tar(t, proatest.Entry{Name: "blob", Body: string(body)}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// crane and skopeo put images in and take them out, with every digest as it
// was, over plain HTTP and over TLS with a password.
func TestRegistryOverTLS(t *testing.T) {
	plain := proatest.NewRegistry(t)
	for name, c := range map[string]struct {
		args []string
		tls  bool
	}{"plain": {}, "TLS and password": {[]string{"--tls-self-signed"}, true}} {
		t.Run(name, func(t *testing.T) {
			config := t.TempDir()
			env := []string{"DOCKER_CONFIG=" + config, "REGISTRY_AUTH_FILE=" + filepath.Join(config, "config.json"), "HOME=" + config}
			crane := func(args ...string) string {
				t.Helper()
				return proatest.Must(t, proatest.Crane(t, env, args...))
			}
			r, certs := plain, ""
			if c.tls {
				passwords := filepath.Join(t.TempDir(), "htpasswd")
				line, err := exec.Command("sh", "-c", "echo secret | "+filepath.Join(proatest.Bin(t), "proa")+" registry htpasswd anna").Output()
				if err == nil {
					err = os.WriteFile(passwords, line, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				r = proatest.NewRegistry(t, append(c.args, "--htpasswd", passwords)...)
				certs = t.TempDir()
				ca, err := os.ReadFile(filepath.Join(r.Root, "tls", "ca.crt"))
				if err == nil {
					err = os.WriteFile(filepath.Join(certs, "ca.crt"), ca, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				if res := proatest.Crane(t, env, "catalog", r.Addr); res.Code == 0 || !strings.Contains(res.Stderr, "certificate") {
					t.Errorf("without the certificate: %+v", res)
				}
				env = append(env, "SSL_CERT_FILE="+filepath.Join(certs, "ca.crt"))
				if res := proatest.Crane(t, env, "catalog", r.Addr); res.Code == 0 || !strings.Contains(res.Stderr, "UNAUTHORIZED") {
					t.Errorf("without a password: %+v", res)
				}
				crane("auth", "login", "-u", "anna", "-p", "wrong", r.Addr)
				if res := proatest.Crane(t, env, "catalog", r.Addr); res.Code == 0 || !strings.Contains(res.Stderr, "UNAUTHORIZED") {
					t.Errorf("with a wrong password: %+v", res)
				}
				crane("auth", "login", "-u", "anna", "-p", "secret", r.Addr)
			}
			skopeo := func(args ...string) string {
				t.Helper()
				all := append([]string{args[0]}, args[1:]...)
				for i, a := range args {
					if !strings.HasPrefix(a, "docker://") {
						continue
					}
					flag := map[bool]string{true: "--src-", false: "--dest-"}[i < len(args)-1]
					if args[0] != "copy" {
						flag = "--"
					}
					if strings.Contains(a, r.Addr) && c.tls {
						all = slices.Insert(all, 1, flag+"cert-dir", certs)
					} else {
						all = slices.Insert(all, 1, flag+"tls-verify=false")
					}
				}
				cmd := exec.Command("skopeo", append([]string{"--insecure-policy"}, all...)...)
				cmd.Env = append(os.Environ(), env...)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("skopeo %s: %v\n%s", strings.Join(all, " "), err, out)
				}
				return strings.TrimSpace(string(out))
			}
			docker := r.Addr + "/some/image:docker"
			crane("append", "-f", layerTar(t, 3<<20), "-t", docker)
			want := crane("digest", docker)
			crane("copy", docker, r.Addr+"/other/image:copy") // mounts
			if got := crane("digest", r.Addr+"/other/image:copy"); got != want {
				t.Errorf("crane copied %s as %s", want, got)
			}
			layout := "oci:" + filepath.Join(t.TempDir(), "layout") + ":x"
			skopeo("copy", "docker://"+docker, layout)
			oci := r.Addr + "/some/image:oci"
			skopeo("copy", layout, "docker://"+oci)
			if got := skopeo("inspect", "--format", "{{.Digest}}", "docker://"+oci); got != crane("digest", oci) {
				t.Errorf("skopeo sees %s", got)
			}
			index, back := r.Addr+"/some/image:index", r.Addr+"/back:index"
			crane("index", "append", "-m", docker, "-m", oci, "-t", index)
			crane("copy", index, back)
			if a, b := crane("digest", index), crane("digest", back); a != b {
				t.Errorf("an index changed on its way: %s, %s", a, b)
			}
			crane("validate", "--remote", docker)
			crane("validate", "--remote", back)
			if got := crane("ls", r.Addr+"/some/image"); got != "docker\nindex\noci" {
				t.Errorf("tags: %q", got)
			}
			if got := crane("catalog", r.Addr); got != "back\nother/image\nsome/image" {
				t.Errorf("repositories: %q", got)
			}
			if res := proatest.Crane(t, env, "delete", docker); res.Code == 0 || !strings.Contains(res.Stderr, "--allow-delete") {
				t.Errorf("delete: %+v", res)
			}
			if err := r.Stop(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			r.Check()
		})
	}
}

// pusher pushes images until it is told to stop or its registry goes away,
// and remembers what it was told is stored.
type pusher struct {
	addr, repo string
	rnd        *rand.Rand

	mu    sync.Mutex
	acked map[string]digest.Digest // tag -> manifest
	blobs map[digest.Digest]bool
	done  int
}

func (p *pusher) run(ctx context.Context, prefix string) {
	for n := 0; ctx.Err() == nil; n++ {
		if p.push(ctx, fmt.Sprintf("%s-%d", prefix, n)) != nil {
			return
		}
	}
}

func (p *pusher) push(ctx context.Context, tag string) error {
	blob := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(p.rnd.Uint32())
		}
		return b
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	// One layer is common to all pushers, one is large enough to be cut.
	for i, b := range [][]byte{[]byte("{}"), []byte("common"), blob(1 + p.rnd.IntN(2<<20)), blob(100)} {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
		if err := p.pushBlob(ctx, d.Digest, b, i == 2); err != nil {
			return err
		}
		if i == 0 {
			m.Config = d
		} else {
			m.Layers = append(m.Layers, d)
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := p.send(ctx, "PUT", "/v2/"+p.repo+"/manifests/"+tag, raw, http.StatusCreated); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked[tag] = digest.FromBytes(raw)
	return nil
}

func (p *pusher) pushBlob(ctx context.Context, d digest.Digest, b []byte, chunked bool) error {
	if !chunked {
		_, err := p.send(ctx, "POST", "/v2/"+p.repo+"/blobs/uploads/?digest="+d.String(), b, http.StatusCreated)
		return p.has(d, err)
	}
	at, err := p.send(ctx, "POST", "/v2/"+p.repo+"/blobs/uploads/", nil, http.StatusAccepted)
	if err == nil {
		at, err = p.send(ctx, "PATCH", at, b[:len(b)/2], http.StatusAccepted)
	}
	if err == nil {
		_, err = p.send(ctx, "PUT", at+"?digest="+d.String(), b[len(b)/2:], http.StatusCreated)
	}
	return p.has(d, err)
}

func (p *pusher) has(d digest.Digest, err error) error {
	if err == nil {
		p.mu.Lock()
		p.blobs[d] = true
		p.mu.Unlock()
	}
	return err
}

func (p *pusher) send(ctx context.Context, method, path string, body []byte, want int) (location string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+p.addr+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		text, _ := io.ReadAll(resp.Body)
		return "", fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
	}
	return resp.Header.Get("Location"), nil
}

// verify checks that all of what was acknowledged can be had, whole.
func (p *pusher) verify(t *testing.T) {
	t.Helper()
	get := func(path string) []byte {
		resp, err := http.Get("http://" + p.addr + "/v2/" + p.repo + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("acknowledged and not there: %s: %s %v", path, resp.Status, err)
		}
		return b
	}
	for d := range p.blobs {
		if got := digest.FromBytes(get("/blobs/" + d.String())); got != d {
			t.Errorf("blob %s has become %s", d, got)
		}
	}
	for tag, d := range p.acked {
		if got := digest.FromBytes(get("/manifests/" + tag)); got != d {
			t.Errorf("tag %s: pushed %s, there is %s", tag, d, got)
		}
	}
}

func pushers(r *proatest.Registry, n int) (list []*pusher) {
	for i := range n {
		list = append(list, &pusher{addr: r.Addr, repo: fmt.Sprintf("repo%d/x", i), rnd: rand.New(rand.NewPCG(7, uint64(i))), acked: map[string]digest.Digest{}, blobs: map[digest.Digest]bool{}})
	}
	return list
}

// during runs all pushers until something has been done for some time, does
// it, and waits until they have noticed.
func during(t *testing.T, list []*pusher, prefix string, wait time.Duration, do func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range list {
		wg.Go(func() { p.run(ctx, prefix) })
	}
	time.Sleep(wait)
	do()
	wg.Wait()
	http.DefaultClient.CloseIdleConnections()
}

// Killed with SIGKILL in the middle of pushes, twenty times: no half blob is
// seen, no tag leads to nothing, all that was acknowledged is there, and the
// same push succeeds.
func TestRegistryKilledInPushes(t *testing.T) {
	r := proatest.NewRegistry(t, "--keep-unused", "1h")
	list := pushers(r, 3)
	rnd := rand.New(rand.NewPCG(20, 20))
	for round := range 20 {
		during(t, list, fmt.Sprint("round", round), time.Duration(10+rnd.IntN(120))*time.Millisecond, r.Kill)
		r.Check()
		r.Start()
		for _, p := range list {
			p.verify(t)
			if err := p.push(context.Background(), fmt.Sprint("again", round)); err != nil {
				t.Errorf("the push after: %v", err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	acked := 0
	for _, p := range list {
		acked += len(p.acked)
	}
	t.Logf("%d images were acknowledged", acked)
	if acked < 20*4 {
		t.Errorf("only %d images got through: the kills came too early to prove much", acked)
	}
	if err := r.Stop(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	// Half uploads were kept for their clients; without any, only what tags lead to stays.
	if res := r.Command("gc", "--untagged"); res.Code != 0 {
		t.Errorf("gc: %s%s", res.Stdout, res.Stderr)
	}
	r.Check()
	if left, _ := os.ReadDir(filepath.Join(r.Root, "uploads")); len(left) != 0 {
		t.Errorf("%d uploads are left", len(left))
	}
	r.Start()
	for _, p := range list {
		p.blobs = nil // of images that were never whole
		p.verify(t)
	}
}

// The power fails in the middle of pushes: the file system loses all that was
// not synced. What the registry has acknowledged is there after it.
func TestRegistryPowerCut(t *testing.T) {
	proatest.NeedRoot(t)
	// The mounts lie in a namespace of this thread, which ends with the subtest.
	t.Run("ext4", func(t *testing.T) {
		runtime.LockOSThread()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(syscall.Unshare(syscall.CLONE_NEWNS))
		must(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
		dir := t.TempDir()
		disk, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
		must(os.WriteFile(disk, nil, 0o600))
		must(os.Truncate(disk, 512<<20))
		must(os.Mkdir(mnt, 0o700))
		command := func(name string, args ...string) {
			t.Helper()
			if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
				t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
			}
		}
		command("mkfs.ext4", "-q", disk)
		mount := func() { command("mount", "-o", "loop", disk, mnt) }
		mount()
		mounted := true
		t.Cleanup(func() {
			if mounted {
				_ = syscall.Unmount(mnt, syscall.MNT_DETACH)
			}
		})
		r := proatest.RegistryIn(t, filepath.Join(mnt, "registry"))
		r.Start()
		list := pushers(r, 3)
		for round := range 6 {
			during(t, list, fmt.Sprint("round", round), time.Duration(150+100*round)*time.Millisecond, func() {
				f, err := os.Open(mnt)
				must(err)
				defer f.Close()
				noLogFlush := uint32(2)
				_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), ext4Shutdown, uintptr(unsafe.Pointer(&noLogFlush)))
				if errno != 0 {
					t.Fatalf("cannot cut the power: %v", errno)
				}
			})
			r.Kill()
			command("umount", mnt)
			mount()
			r.Check()
			r.Start()
			for _, p := range list {
				p.verify(t)
				must(p.push(context.Background(), fmt.Sprint("again", round)))
			}
			if t.Failed() {
				t.FailNow()
			}
		}
		if err := r.Stop(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		command("umount", mnt)
		mounted = false
		acked := 0
		for _, p := range list {
			acked += len(p.acked)
		}
		t.Logf("%d images were acknowledged", acked)
		if acked < 6*4 {
			t.Errorf("only %d images got through: the cuts came too early to prove much", acked)
		}
	})
}

// ext4Shutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32).
const ext4Shutdown = 2<<30 | 4<<16 | 'X'<<8 | 125

// SIGTERM lets a push end that is under way; an upload that a restart cut can be resumed.
func TestRegistryDrainsAndResumes(t *testing.T) {
	r := proatest.NewRegistry(t)
	p := pushers(r, 1)[0]
	ctx := context.Background()
	half, err := p.send(ctx, "POST", "/v2/a/blobs/uploads/", nil, 202)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.send(ctx, "PATCH", half, []byte("hello, "), 202); err != nil {
		t.Fatal(err)
	}
	at, err := p.send(ctx, "POST", "/v2/a/blobs/uploads/", nil, 202)
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("x"), 1<<20)
	slow, feed := io.Pipe()
	answer := make(chan error, 1)
	go func() {
		req, _ := http.NewRequest("PUT", "http://"+r.Addr+at+"?digest="+digest.FromBytes(content).String(), slow)
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != 201 {
				err = fmt.Errorf("status %s", resp.Status)
			}
		}
		answer <- err
	}()
	if _, err := feed.Write(content[:1<<19]); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- r.Stop() }()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(r.Log(), "registry stops"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not notice SIGTERM")
		}
	}
	if _, err := feed.Write(content[1<<19:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := <-answer; err != nil {
		t.Errorf("a push that was under way: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("it ended with %v", err)
	}
	r.Start()
	if _, err := p.send(ctx, "HEAD", "/v2/a/blobs/"+digest.FromBytes(content).String(), nil, 200); err != nil {
		t.Error(err)
	}
	if _, err := p.send(ctx, "PUT", half+"?digest="+digest.FromString("hello, world").String(), []byte("world"), 201); err != nil {
		t.Errorf("the upload from before: %v", err)
	}
}
