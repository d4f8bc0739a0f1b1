package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"

	"proa/internal/image/remote"
	"proa/internal/registry"
	"proa/internal/registry/store"
)

// faulty is the registry in the box behind a proxy that breaks things, and
// another host to which it sends people.
type faulty struct {
	t        *testing.T
	real     http.Handler
	main     *httptest.Server
	other    *httptest.Server
	host     string
	password string

	mu     sync.Mutex
	random *rand.Rand
	on     bool
	seen   map[string]int   // faults by kind
	sent   map[string]int64 // bytes of each blob that reached the wire before it was cut
	again  int64            // the most bytes of a blob that were asked for a second time
	resume int
	leaks  []string
}

var faultKinds = []string{"cut", "reset", "stall", "429", "500", "longer", "shorter", "bytes", "redirect", "lure", "no answer", "body cut"}

func newFaulty(t *testing.T, seed uint64) *faulty {
	f := &faulty{t: t, password: "right horse", random: rand.New(rand.NewPCG(seed, 1)), seen: map[string]int{}, sent: map[string]int64{}}
	st, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	line, err := registry.PasswordLine("ada", f.password)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	passwords, err := registry.OpenPasswords(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.real = registry.New(registry.Config{Store: st, Auth: passwords})
	f.main = httptest.NewServer(http.HandlerFunc(f.serve))
	f.other = httptest.NewServer(http.HandlerFunc(f.elsewhere))
	t.Cleanup(f.main.Close)
	t.Cleanup(f.other.Close)
	f.host = f.main.Listener.Addr().String()
	return f
}

// registryWithoutPassword is the registry in the box as anybody may use it.
func registryWithoutPassword(t *testing.T) http.Handler {
	t.Helper()
	st, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return registry.New(registry.Config{Store: st})
}

func (f *faulty) faults() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.seen {
		n += k
	}
	return n
}

func (f *faulty) switched(on bool) {
	f.mu.Lock()
	f.on = on
	clear(f.sent)
	f.mu.Unlock()
}

// pick decides about one request.
func (f *faulty) pick(q *http.Request) (kind string, at float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.on || f.random.IntN(3) != 0 {
		return "", 0
	}
	kinds := faultKinds[:10]
	if q.Method != "GET" && q.Method != "HEAD" {
		kinds = []string{"429", "500", "no answer", "body cut"}
	}
	kind = kinds[f.random.IntN(len(kinds))]
	f.seen[kind]++
	return kind, f.random.Float64()
}

// hop runs a request through the real registry.
func (f *faulty) hop(q *http.Request) *recorder {
	rec := &recorder{header: http.Header{}, status: 200}
	f.real.ServeHTTP(rec, q)
	return rec
}

func (f *faulty) serve(w http.ResponseWriter, q *http.Request) {
	blob := ""
	if q.Method == "GET" && strings.Contains(q.URL.Path, "/blobs/sha256:") {
		blob = q.URL.Path
		f.account(blob, q.Header.Get("Range"))
	}
	kind, at := f.pick(q)
	switch kind {
	case "429":
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(429)
		return
	case "500":
		w.WriteHeader(500)
		return
	case "redirect", "lure":
		http.Redirect(w, q, f.other.URL+q.URL.RequestURI()+"?"+kind, http.StatusTemporaryRedirect)
		return
	case "body cut":
		whole, _ := io.ReadAll(q.Body)
		part := whole[:int(at*float64(len(whole)))]
		q.Body = io.NopCloser(io.MultiReader(bytes.NewReader(part), broken{}))
		f.hop(q)
		panic(http.ErrAbortHandler)
	case "no answer":
		f.hop(q)
		panic(http.ErrAbortHandler)
	}
	if kind == "" && blob == "" {
		f.real.ServeHTTP(w, q)
		return
	}
	rec := f.hop(q)
	body := rec.body.Bytes()
	for k, v := range rec.header {
		w.Header()[k] = v
	}
	cut := int(at * float64(len(body)))
	switch kind {
	case "bytes":
		if len(body) > 0 {
			body[min(cut, len(body)-1)] ^= 0x55
		}
	case "longer":
		body = append(body, "and more"...)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	case "shorter":
		body = body[:cut]
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	if kind != "cut" && kind != "reset" && kind != "stall" {
		w.WriteHeader(rec.status)
		n, err := w.Write(body)
		if q.Method == "HEAD" {
			return
		}
		if err == nil && blob != "" && kind != "longer" {
			f.reached(blob, q, int64(n))
		}
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		f.t.Error(err)
		return
	}
	defer conn.Close()
	// What the kernel still holds when the connection is reset never arrives.
	_ = conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	fmt.Fprintf(conn, "HTTP/1.1 %d X\r\n", rec.status)
	_ = rec.header.Write(conn)
	fmt.Fprint(conn, "\r\n")
	if q.Method == "HEAD" {
		return
	}
	n, _ := conn.Write(body[:cut])
	if blob != "" && rec.status < 300 {
		f.reached(blob, q, int64(n))
	}
	switch kind {
	case "reset":
		_ = conn.(*net.TCPConn).SetLinger(0)
	case "stall":
		_, _ = io.Copy(io.Discard, conn) // until the client has had enough
	}
}

// reached notes how much of a blob went out. What the kernel takes for a client
// that has hung up already, having waited too long, reaches nobody.
func (f *faulty) reached(blob string, q *http.Request, n int64) {
	f.mu.Lock()
	if q.Context().Err() != nil {
		n = 0
	}
	f.sent[blob] = rangeStart(q.Header.Get("Range")) + n
	f.mu.Unlock()
}

func rangeStart(v string) int64 {
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "bytes="), "-")
	n, _ := strconv.ParseInt(v, 10, 64)
	return n
}

// account compares what is asked for with what went out before. A request from
// the beginning is a new attempt, after a wrong digest.
func (f *faulty) account(blob, asked string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if start := rangeStart(asked); start > 0 {
		f.resume++
		f.again = max(f.again, f.sent[blob]-start)
	}
}

// elsewhere is the other host. It must not see any credentials, and asks for them.
func (f *faulty) elsewhere(w http.ResponseWriter, q *http.Request) {
	if a := q.Header.Get("Authorization"); a != "" {
		f.mu.Lock()
		f.leaks = append(f.leaks, q.Method+" "+q.URL.String()+": "+a)
		f.mu.Unlock()
	}
	if strings.HasSuffix(q.URL.RawQuery, "lure") {
		w.Header().Set("WWW-Authenticate", `Basic realm="give me"`)
		w.WriteHeader(401)
		return
	}
	q.SetBasicAuth("ada", f.password) // as a store of blobs knows by the address what it may give
	rec := f.hop(q)
	for k, v := range rec.header {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.status)
	n, _ := w.Write(rec.body.Bytes())
	if strings.Contains(q.URL.Path, "/blobs/sha256:") && rec.status < 300 {
		f.reached(q.URL.Path, q, int64(n))
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Two hundred faults of every kind between stores and their registries: an
// image is right or not there, what was cut goes on where it ended, and no other
// host sees a credential. Four pairs go side by side, since most of the time
// something stands still.
func TestTwoHundredFaults(t *testing.T) {
	t.Parallel()
	const lanes = 4
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("PROA_TEST_SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("PROA_TEST_SEED=%d repeats this", seed)
	var (
		wait   sync.WaitGroup
		mu     sync.Mutex
		seen   = map[string]int{}
		ends   = map[string]int{}
		resume int
		again  int64
	)
	for lane := range uint64(lanes) {
		wait.Go(func() {
			t.Run(fmt.Sprint("pair ", lane), func(t *testing.T) {
				f := newFaulty(t, seed+lane)
				got := f.torment(200 / lanes)
				mu.Lock()
				defer mu.Unlock()
				f.mu.Lock()
				defer f.mu.Unlock()
				for k, n := range got {
					ends[k] += n
				}
				for k, n := range f.seen {
					seen[k] += n
				}
				resume += f.resume
				again = max(again, f.again)
			})
		})
	}
	wait.Wait()
	t.Logf("faults %v, ends %v, %d resumed, at most %d bytes asked for again", seen, ends, resume, again)
	if again > 1<<20 {
		t.Errorf("%d bytes were asked for again", again)
	}
	if resume < 5 || ends["pulled"] == 0 || ends["pushed"] == 0 {
		t.Errorf("the test does not test: %d resumed, %v", resume, ends)
	}
}

// torment pulls through half of so many faults, pushes through the others, and
// says how that ended.
func (f *faulty) torment(faults int) map[string]int {
	t := f.t
	s := openPuller(t, t.TempDir())
	auth := remote.Credentials{Username: "ada", Password: f.password}
	ctx := context.Background()
	img := sample{names: []string{f.host + "/big"}}
	for n := range uint64(3) {
		img.layers = append(img.layers, tarOf(t, file{name: fmt.Sprintf("file%d", n), body: noise(n, 3<<20)}))
	}
	load(t, s, ociArchive(t, gzipped, img))
	want := get(t, s, f.host+"/big").Target.Digest
	if _, err := s.Push(ctx, f.host+"/big", PushOptions{Auth: auth}); err != nil {
		t.Fatal(err)
	}
	whole := tree(t, s)
	ends := map[string]int{}
	for f.faults() < faults/2 {
		f.switched(false)
		if _, err := s.Remove(ctx, f.host+"/big", true, true); err != nil {
			t.Fatal(err)
		}
		f.switched(true)
		s.cfg.Registries = hasty()
		got, err := s.Pull(ctx, f.host+"/big", PullOptions{Auth: auth})
		s.cfg.Registries = impatient()
		switch {
		case err == nil:
			ends["pulled"]++
			if got.Digest != want || !slices.Equal(tree(t, s), whole) {
				t.Errorf("pulled %s as %v", got.Digest, tree(t, s))
			}
		case errdefs.IsUnavailable(err), errdefs.IsDataLoss(err), errors.As(err, new(*DigestError)), errdefs.IsUnauthorized(err):
			ends["failed"]++
			if left := tree(t, s); len(left) != 0 {
				t.Errorf("after %v: left %v", err, left)
			}
		default:
			ends["failed"]++
			t.Logf("an end of another kind: %v", err)
			if left := tree(t, s); len(left) != 0 {
				t.Errorf("after %v: left %v", err, left)
			}
		}
		verify(t, s)
		f.switched(false)
		if _, err := s.Pull(ctx, f.host+"/big", PullOptions{Auth: auth}); err != nil {
			t.Fatalf("without faults: %v", err)
		}
	}
	for n := 0; f.faults() < faults; n++ {
		f.switched(true)
		name := fmt.Sprintf("%s/copy/%d", f.host, n)
		if err := s.Tag(ctx, f.host+"/big", name); err != nil {
			t.Fatal(err)
		}
		// Nothing to mount from: everything is sent.
		s.cfg.Registries = hasty()
		forgetSources(t, s)
		_, err := s.Push(ctx, name, PushOptions{Auth: auth})
		f.switched(false)
		if err != nil {
			ends["not pushed"]++
			continue
		}
		ends["pushed"]++
		fresh := openPuller(t, t.TempDir())
		got, err := fresh.Pull(ctx, name, PullOptions{Auth: auth})
		if err != nil || got.Digest != want {
			t.Fatalf("pushed under faults, it came back as %v, %v", got, err)
		}
		verify(t, fresh)
		closeTest(t, fresh)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.leaks {
		t.Errorf("another host saw credentials: %s", l)
	}
	return ends
}

// hasty is a client that gives up what stands still for a moment.
func hasty() *remote.Client {
	return remote.New(remote.Config{CertsDir: "/nonexistent", Stall: time.Second, Pause: time.Millisecond, MaxPause: 5 * time.Millisecond})
}

// forgetSources drops what is known of where blobs are, so that nothing can be
// mounted.
func forgetSources(t *testing.T, s *Store) {
	t.Helper()
	var all []content.Info
	if err := s.blobs.Walk(in(context.Background()), func(i content.Info) error {
		maps.DeleteFunc(i.Labels, func(k, _ string) bool { return strings.HasPrefix(k, sourceLabel) })
		all = append(all, i)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if _, err := s.blobs.Update(in(context.Background()), i, "labels"); err != nil {
			t.Fatal(err)
		}
	}
}
