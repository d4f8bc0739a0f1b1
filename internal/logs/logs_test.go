package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

func newLog(t testing.TB, maxBytes int64, maxFiles int) (*Writer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x-json.log")
	w, err := Create(isolation.Log{Driver: "json-file", Path: path, MaxBytes: maxBytes, MaxFiles: maxFiles})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w, path
}

func texts(t testing.TB, path string, o ReadOptions) []string {
	t.Helper()
	o.Stdout, o.Stderr = true, true
	var out []string
	for l, err := range Read(t.Context(), path, o) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(l.Text))
	}
	return out
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Fatalf("%s:\n got %.300q\nwant %.300q", what, got, want)
	}
}

// The bytes are those of Docker's json-file driver.
func TestGolden(t *testing.T) {
	w, path := newLog(t, 0, 1)
	out, errs := w.Stream("stdout"), w.Stream("stderr")
	_, _ = io.WriteString(out, "plain\nquote \" back \\ tab \t cr \r esc \x1b del \x7f <&>\n")
	_, _ = io.WriteString(errs, "ünï 日本 \u2028 \u2029 bad \xff\xfe end\n")
	_, _ = io.WriteString(out, "no newline")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	want := []string{
		`{"log":"plain\n","stream":"stdout","time":"`,
		`{"log":"quote \" back \\ tab \u0009 cr \r esc \u001b del ` + "\x7f" + ` \u003c\u0026\u003e\n","stream":"stdout","time":"`,
		`{"log":"ünï 日本 \u2028 \u2029 bad \ufffd\ufffd end\n","stream":"stderr","time":"`,
		`{"log":"no newline","stream":"stdout","time":"`,
	}
	equal(t, "number of records", len(lines), len(want))
	for i, l := range lines {
		rest, ok := strings.CutPrefix(l, want[i])
		if !ok {
			t.Fatalf("record %d is %s", i, l)
		}
		stamp, ok := strings.CutSuffix(rest, `"}`)
		if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !ok || at.Location() != time.UTC || time.Since(at) > time.Minute {
			t.Fatalf("time %q: %v", stamp, err)
		}
		var v map[string]string
		if err := json.Unmarshal([]byte(l), &v); err != nil || len(v) != 3 {
			t.Fatalf("record %d is no JSON: %v", i, err)
		}
	}
	equal(t, "read back", texts(t, path, ReadOptions{Tail: -1}), []string{
		"plain\n", "quote \" back \\ tab \t cr \r esc \x1b del \x7f <&>\n", "ünï 日本 \u2028 \u2029 bad \ufffd\ufffd end\n", "no newline",
	})
}

// Lines over 16 KiB are cut as Docker cuts them, however the bytes arrive, and
// keep the time of their first piece.
func TestLongLines(t *testing.T) {
	long := strings.Repeat("abcdefghijklmnop", 2500) // 40,000
	exact := strings.Repeat("x", maxLine)
	for _, size := range []int{1, 7, 4096, maxLine, 1 << 20} {
		w, path := newLog(t, 0, 1)
		s := w.Stream("stdout")
		for in := []byte(long + "\nshort\n" + exact + "\nlast"); len(in) > 0; {
			n := min(size, len(in))
			_, _ = s.Write(in[:n])
			in = in[n:]
		}
		_ = w.Close()
		equal(t, fmt.Sprint("pieces of ", size), texts(t, path, ReadOptions{Tail: -1}), []string{
			long[:maxLine], long[maxLine : 2*maxLine], long[2*maxLine:] + "\n", "short\n", exact, "\n", "last",
		})
		var times []time.Time
		for l := range Read(t.Context(), path, ReadOptions{Tail: -1, Stdout: true}) {
			times = append(times, l.Time)
		}
		if !times[0].Equal(times[1]) || !times[0].Equal(times[2]) || times[3].Before(times[2]) || !times[4].Equal(times[5]) {
			t.Fatalf("times %v", times)
		}
	}
}

func TestChoice(t *testing.T) {
	w, path := newLog(t, 2000, 100)
	out, errs := w.Stream("stdout"), w.Stream("stderr")
	var mid time.Time
	for i := range 200 {
		if i == 100 {
			time.Sleep(2 * time.Millisecond)
			mid = time.Now()
			time.Sleep(2 * time.Millisecond)
		}
		_, _ = fmt.Fprintf(out, "o%d\n", i)
		_, _ = fmt.Fprintf(errs, "e%d\n", i)
	}
	if _, err := os.Stat(path + ".5"); err != nil {
		t.Fatal("nothing was rotated: ", err)
	}
	all := texts(t, path, ReadOptions{Tail: -1})
	equal(t, "all", len(all), 400)
	for _, n := range []int{0, 1, 2, 30, 31, 399, 400, 401, 1000} {
		equal(t, fmt.Sprint("tail ", n), texts(t, path, ReadOptions{Tail: n}), all[max(0, 400-n):])
	}
	equal(t, "since", texts(t, path, ReadOptions{Tail: -1, Since: mid}), all[200:])
	equal(t, "until", texts(t, path, ReadOptions{Tail: -1, Until: mid}), all[:200])
	equal(t, "tail and since", texts(t, path, ReadOptions{Tail: 300, Since: mid}), all[200:])
	n := 0
	for l, err := range Read(t.Context(), path, ReadOptions{Tail: -1, Stderr: true}) {
		if err != nil || l.Stream != "stderr" {
			t.Fatal(l, err)
		}
		if n++; n == 7 {
			break // a reader may stop
		}
	}
	equal(t, "missing log", len(texts(t, path+"-not", ReadOptions{Tail: -1})), 0)
}

func TestRotationKeepsItsBounds(t *testing.T) {
	for _, files := range []int{1, 2, 5} {
		w, path := newLog(t, 1000, files)
		s := w.Stream("stdout")
		for i := range 1000 {
			_, _ = fmt.Fprintf(s, "line %d\n", i)
		}
		names, _ := filepath.Glob(path + "*")
		equal(t, "files", len(names), files)
		for _, n := range names {
			if st, err := os.Stat(n); err != nil || st.Size() > 1100 {
				t.Fatalf("%s: %d bytes, %v", n, st.Size(), err)
			}
		}
		got := texts(t, path, ReadOptions{Tail: -1})
		for i, l := range got {
			equal(t, "line", l, fmt.Sprintf("line %d\n", 1000-len(got)+i))
		}
		if len(got) < 10*files {
			t.Fatalf("%d files hold only %d lines", files, len(got))
		}
	}
}

// A crash tears the last record; the next writer continues, and nothing else is lost.
func TestTornRecord(t *testing.T) {
	w, path := newLog(t, 0, 1)
	s := w.Stream("stdout")
	_, _ = io.WriteString(s, "one\ntwo\n")
	_ = w.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"log":"thr`)
	f.Close()
	equal(t, "torn", texts(t, path, ReadOptions{Tail: -1}), []string{"one\n", "two\n"})
	w, err = Create(isolation.Log{Driver: "json-file", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w.Stream("stderr"), "four\n")
	_ = w.Close()
	equal(t, "continued", texts(t, path, ReadOptions{Tail: -1}), []string{"one\n", "two\n", "four\n"})

	if _, err := Create(isolation.Log{Driver: "syslog", Path: path}); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("driver syslog: %v", err)
	}
	none, err := Create(isolation.Log{Driver: "none"})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := none.Stream("stdout").Write([]byte("x\n")); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if err := none.Close(); err != nil {
		t.Fatal(err)
	}
}

// A rotation that a crash cut short leaves a number free; readers step over it.
func TestInterruptedRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rec := func(s string) string {
		return fmt.Sprintf(`{"log":"%s\n","stream":"stdout","time":"2026-01-02T03:04:05.6Z"}`+"\n", s)
	}
	put("log.3", rec("a"))
	put("log.1", rec("b"))
	put("log", rec("c"))
	equal(t, "a gap", texts(t, path, ReadOptions{Tail: -1}), []string{"a\n", "b\n", "c\n"})
	g, err := open(path, 3)
	if err != nil || g == nil {
		t.Fatal(g, err)
	}
	defer g.close()
	next, err := successor(path, g)
	if err != nil || next == nil || next.disk.Name() != path+".1" {
		t.Fatalf("after .3 comes %v, %v", next, err)
	}
	next.close()
	os.Remove(path)
	equal(t, "no youngest", texts(t, path, ReadOptions{Tail: -1}), []string{"a\n", "b\n"})
}

// Readers that come, follow and go while 100,000 lines are written across
// hundreds of rotations: each sees a stretch without a gap or a double.
func TestFollowAcrossRotation(t *testing.T) {
	w, path := newLog(t, 48<<10, 10_000)
	followRotation(t, w, path, 100_000)
}

// Rotated files are compressed while readers stand in them (json-file option
// compress of 20.10.24).
func TestFaultD33Compress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x-json.log")
	l := isolation.Log{Driver: "json-file", Path: path, MaxBytes: 48 << 10, MaxFiles: 10_000, Compress: true}
	w, err := Create(l)
	if err != nil {
		t.Fatal(err)
	}
	followRotation(t, w, path, 30_000)
	packed, _ := filepath.Glob(path + ".*.gz")
	all, _ := filepath.Glob(path + "*")
	if len(packed) < 10 || len(all) != len(packed)+1 {
		t.Fatalf("%d files, %d compressed", len(all), len(packed))
	}
	f, err := os.Open(path + ".1.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := gzip.NewReader(f); err != nil {
		t.Fatal(err)
	}
	// The end of the log is in the plain file and the youngest compressed ones.
	equal(t, "tail", len(texts(t, path, ReadOptions{Tail: 3000})), 3000)
	// A crash leaves a file in both forms; it counts once, and goes on rotating.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	z := new(bytes.Buffer)
	zw := gzip.NewWriter(z)
	_, _ = zw.Write(b)
	_ = zw.Close()
	for i := len(packed); i > 0; i-- {
		_ = os.Rename(fmt.Sprint(path, ".", i, ".gz"), fmt.Sprint(path, ".", i+1, ".gz"))
	}
	if os.WriteFile(path+".1", b, 0o640) != nil || os.WriteFile(path+".1.gz", z.Bytes(), 0o640) != nil || os.Remove(path) != nil {
		t.Fatal("cannot lay out the files")
	}
	equal(t, "lines in both forms", len(texts(t, path, ReadOptions{Tail: -1})), 30_000)
	l.MaxFiles, l.Path = 3, filepath.Join(t.TempDir(), "few-json.log")
	path = l.Path
	if w, err = Create(l); err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stdout")
	for i := range 20_000 {
		fmt.Fprintf(s, "line %d\n", i)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if all, _ := filepath.Glob(path + "*"); len(all) != 3 {
		t.Errorf("files %q", all)
	}
	last := texts(t, path, ReadOptions{Tail: -1})
	equal(t, "last line", last[len(last)-1], "line 19999\n")
	for i := 1; i < len(last); i++ {
		var a, b int
		_, _ = fmt.Sscanf(last[i-1], "line %d", &a)
		if _, _ = fmt.Sscanf(last[i], "line %d", &b); b != a+1 {
			t.Fatalf("after line %d comes %d", a, b)
		}
	}
}

// A log that never blocks drops records when its buffer is full, and keeps
// what it took (moby daemon/logger/ring.go). A pipe without a reader stands
// for a disk that takes nothing.
func TestFaultD33NonBlocking(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x-json.log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	w, err := Create(isolation.Log{Driver: "json-file", Path: path, Buffer: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stdout")
	line := strings.Repeat("x", 999) + "\n"
	for range 5000 {
		_, _ = io.WriteString(s, line) // would never return
	}
	if w.Lost() < 4_000_000 {
		t.Errorf("%d bytes dropped", w.Lost())
	}
	got := make(chan int)
	go func() {
		n := 0
		for sc := bufio.NewScanner(pipe); sc.Scan(); n++ {
			if sc.Text() == "end" {
				break
			}
			var l Line
			if err := decode(sc.Bytes(), &l); err != nil || string(l.Text) != line {
				t.Errorf("torn record %q", sc.Text())
			}
		}
		got <- n
	}()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(pipe, "end\n")
	if n := <-got; n < 100 || n > 300 {
		t.Errorf("%d records of 5000 are in the log", n)
	}
}

// Attributes stand where Docker has them (moby jsonlog.JSONLogs), and come back.
func TestFaultD33Attributes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x-json.log")
	attrs := map[string]string{"b": `"<q>`, "a": "1", "stream": "stdout"}
	w, err := Create(isolation.Log{Driver: "json-file", Path: path, Attrs: attrs})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w.Stream("stderr"), "hi\n")
	_ = w.Close()
	b, _ := os.ReadFile(path)
	want := `{"log":"hi\n","stream":"stderr","attrs":{"a":"1","b":"\"\u003cq\u003e","stream":"stdout"},"time":"`
	if !bytes.HasPrefix(b, []byte(want)) {
		t.Errorf("record %s", b)
	}
	for l, err := range Read(t.Context(), path, ReadOptions{Tail: -1, Stdout: true, Stderr: true}) {
		if err != nil || string(l.Text) != "hi\n" || l.Stream != "stderr" || !maps.Equal(l.Attrs, attrs) {
			t.Errorf("%+v %v", l, err)
		}
	}
}

// A character at the border of 16 KiB stays whole, in pieces of any size.
func TestFaultD38Characters(t *testing.T) {
	for _, char := range []string{"é", "日", "🙂", "\xf0\x9f\x99x", "\xff"} {
		for before := maxLine - 4; before <= maxLine; before++ {
			for _, size := range []int{1, 3, 5000, 1 << 20} {
				w, path := newLog(t, 0, 1)
				s := w.Stream("stdout")
				text := strings.Repeat("a", before) + char + strings.Repeat("日", maxLine) + "\n"
				for in := text; in != ""; {
					n := min(size, len(in))
					_, _ = io.WriteString(s, in[:n])
					in = in[n:]
				}
				_ = w.Close()
				got := texts(t, path, ReadOptions{Tail: -1})
				equal(t, fmt.Sprintf("%q at %d in pieces of %d", char, before, size), strings.Join(got, ""), replaced([]byte(text)))
				for _, piece := range got {
					if len(piece) > maxLine+6 { // U+FFFD is longer than the byte that it stands for
						t.Fatalf("a piece of %d bytes", len(piece))
					}
				}
			}
		}
	}
}

// followRotation writes lines while readers of several kinds follow.
func followRotation(t *testing.T, w *Writer, path string, lines int) {
	done := make(chan struct{})
	var readers sync.WaitGroup
	read := func(stopAfter int, o ReadOptions) (first, last int) {
		o.Stdout, o.Follow, o.Done = true, true, done
		first, last = -1, -1
		for l, err := range Read(context.Background(), path, o) {
			var n int
			if _, serr := fmt.Sscanf(string(l.Text), "line %d\n", &n); err != nil || serr != nil {
				t.Errorf("%q: %v %v", l.Text, err, serr)
				return
			}
			if last >= 0 && n != last+1 {
				t.Errorf("after line %d comes %d", last, n)
				return
			}
			if first < 0 {
				first = n
			}
			if last = n; last-first == stopAfter {
				return
			}
		}
		return
	}
	for range 2 { // from beginning to end
		readers.Go(func() {
			if first, last := read(-1, ReadOptions{Tail: -1}); first != 0 || last != lines-1 {
				t.Errorf("saw lines %d to %d", first, last)
			}
		})
	}
	readers.Go(func() { // an engine that is killed and comes back: the tail overlaps by what it knows
		at := -1
		for at < lines-1 {
			first, last := read(rand.IntN(9000), ReadOptions{Tail: rand.IntN(2000)})
			if first < 0 {
				select {
				case <-done:
					return
				default:
				}
			}
			at = max(at, last)
		}
	})
	s := w.Stream("stdout")
	var b bytes.Buffer
	for i := 0; i < lines; {
		b.Reset()
		for range 1 + rand.IntN(60) {
			if i < lines {
				fmt.Fprintf(&b, "line %d\n", i)
				i++
			}
		}
		for p := b.Bytes(); len(p) > 0; { // pieces that end anywhere
			n := min(len(p), 1+rand.IntN(900))
			_, _ = s.Write(p[:n])
			p = p[n:]
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	close(done)
	readers.Wait()
	equal(t, "lines afterwards", len(texts(t, path, ReadOptions{Tail: -1})), lines)
}

func TestFollowWaitsAndEnds(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log") // does not exist yet
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		for l, err := range Read(ctx, path, ReadOptions{Tail: -1, Stdout: true, Follow: true}) {
			if err != nil {
				ended <- err
				return
			}
			got <- string(l.Text)
		}
		ended <- nil
	}()
	time.Sleep(20 * time.Millisecond)
	w, err := Create(isolation.Log{Driver: "json-file", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stdout")
	for range 3 {
		t0 := time.Now()
		_, _ = io.WriteString(s, "x\n")
		equal(t, "line", <-got, "x\n")
		if d := time.Since(t0); d > 500*time.Millisecond {
			t.Errorf("a followed line took %v", d)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("ended with %v", err)
	}
	// Until in the future ends a follower as well.
	equal(t, "until", len(texts(t, path, ReadOptions{Tail: -1, Follow: true, Until: time.Now().Add(50 * time.Millisecond)})), 3)
}

// A full disk: output goes on, whole records stay, the rest is counted.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Create(isolation.Log{Driver: "json-file", Path: path})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stdout")
	_, _ = io.WriteString(s, "one\n")
	good := w.file
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full: ", err)
	}
	w.file = full
	if n, err := io.WriteString(s, "two\n"); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	full.Close()
	w.file = good
	_, _ = io.WriteString(s, "three\n")
	if w.Lost() == 0 {
		t.Error("nothing is said to be lost")
	}
	_ = w.Close()
	equal(t, "rest", texts(t, path, ReadOptions{Tail: -1}), []string{"one\n", "three\n"})
}

func TestNoAllocationPerLine(t *testing.T) {
	w, _ := newLog(t, 1<<20, 3)
	s := w.Stream("stdout")
	p := []byte(strings.Repeat("a line of ordinary length, with \"quotes\"\n", 100))
	if n := testing.AllocsPerRun(200, func() { _, _ = s.Write(p) }); n > 1 {
		t.Errorf("%v allocations for a hundred lines", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	w, _ := newLog(b, 20<<20, 5)
	s := w.Stream("stdout")
	p := []byte(strings.Repeat("a line of ordinary length, with \"quotes\"\n", 400))
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		_, _ = s.Write(p)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05.6Z"}`))
	f.Add([]byte(`{"log":"\u003c\ud83d\ude00","stream":"stderr","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","log":"x","attrs":{"a":"b"},"stream":"stderr"}`))
	f.Fuzz(func(t *testing.T, rec []byte) {
		// What is decoded by hand means the same to encoding/json.
		var own, std Line
		if !decodeOwn(rec, &own) {
			_ = decode(rec, &std)
			return
		}
		var v struct {
			Log    string    `json:"log"`
			Stream string    `json:"stream"`
			Time   time.Time `json:"time"`
		}
		if err := json.Unmarshal(rec, &v); err != nil {
			t.Fatalf("only we can decode %q: %v", rec, err)
		}
		if v.Log != string(own.Text) || v.Stream != own.Stream || !v.Time.Equal(own.Time) {
			t.Fatalf("%q: %+v, %+v", rec, own, v)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a\nb\x00\xff<&>\u2028\n"), 3)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		w, path := newLog(t, 4096, 1000)
		s := w.Stream("stdout")
		size = max(1, size&0x7fff)
		for p := in; len(p) > 0; {
			n := min(size, len(p))
			_, _ = s.Write(p[:n])
			p = p[n:]
		}
		_ = w.Close()
		if got, want := strings.Join(texts(t, path, ReadOptions{Tail: -1}), ""), in; len(in) < maxLine && got != strings.ToValidUTF8(string(want), "\ufffd") && got != replaced(want) {
			t.Fatalf("in %q, out %q", want, got)
		}
	})
}

// replaced is b with each byte that is no UTF-8 replaced, as Docker does.
func replaced(b []byte) string { return string([]rune(string(b))) }
