package flat

import (
	"archive/tar"
	"bufio"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// debianLike writes a layer with the shape of a minimal Debian root: 170 MB in
// 8,740 entries, 800 of them directories, 1,000 symlinks.
func debianLike(b *testing.B) string {
	b.Helper()
	p := filepath.Join(b.TempDir(), "root.tar")
	f, err := os.Create(p)
	must(b, err)
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(out)
	r := rand.New(rand.NewPCG(1, 2))
	body := make([]byte, 16<<20)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	dirs := []string{"usr"}
	total := int64(0)
	put := func(m member, n int64) {
		m.Size = n
		must(b, w.WriteHeader(&m.Header))
		_, err := w.Write(body[:n])
		must(b, err)
		total += n
	}
	for i := range 800 {
		d := fmt.Sprintf("%s/dir-%d", dirs[r.IntN(min(len(dirs), 40))], i)
		dirs = append(dirs, d)
		put(dirm(d), 0)
	}
	for i := range 6940 {
		n := min(int64(math.Exp(r.NormFloat64()*1.9+8.1)), 6<<20)
		if total > 160<<20 {
			n = 100
		}
		put(reg(fmt.Sprintf("%s/some-file-name-%d.txt", dirs[r.IntN(len(dirs))], i), ""), n)
	}
	for i := range 1000 {
		put(sym(fmt.Sprintf("%s/link-%d", dirs[r.IntN(len(dirs))], i), "../some/target/of-a-link"), 0)
	}
	must(b, w.Close())
	must(b, out.Flush())
	return p
}

func BenchmarkWrite(b *testing.B) {
	p := debianLike(b)
	if s := os.Getenv("FLAT_TAR"); s != "" {
		p = s
	}
	st, err := os.Stat(p)
	must(b, err)
	b.SetBytes(st.Size())
	for b.Loop() {
		dir := b.TempDir()
		_, err := Write(b.Context(), open(b, p), dir, Limits{})
		must(b, err)
		b.StopTimer()
		must(b, os.RemoveAll(dir))
		b.StartTimer()
	}
}

func BenchmarkMerge(b *testing.B) {
	dir := b.TempDir()
	l, err := Write(b.Context(), open(b, debianLike(b)), dir, Limits{})
	must(b, err)
	for b.Loop() {
		must(b, Merge([]*Layer{l}, filepath.Join(dir, "index")))
	}
}

func BenchmarkMount(b *testing.B) {
	needRoot(b)
	dir := b.TempDir()
	files := image(b, dir, []string{debianLike(b)})
	for _, s := range strategies(b) {
		b.Run(s, func(b *testing.B) {
			m, err := Open(dir, s)
			must(b, err)
			at := filepath.Join(b.TempDir(), "mnt")
			must(b, os.Mkdir(at, 0o700))
			t0 := time.Now()
			must(b, m.Mount(files, at))
			b.ReportMetric(float64(time.Since(t0).Microseconds())/1000, "first-ms")
			must(b, m.Unmount(at))
			for b.Loop() {
				must(b, m.Mount(files, at))
				must(b, m.Unmount(at))
			}
		})
	}
}
