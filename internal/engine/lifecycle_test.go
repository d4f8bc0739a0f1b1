package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
)

func TestTransitions(t *testing.T) {
	all := []State{Created, Running, Paused, Restarting, Removing, Exited, Dead}
	for _, from := range all {
		if _, ok := next[from]; !ok {
			t.Errorf("%s leads nowhere", from)
		}
		for _, to := range all {
			err := from.canBecome("0123456789abcdef", to)
			if (err == nil) != slices.Contains(next[from], to) {
				t.Errorf("%s -> %s: %v", from, to, err)
			}
			if err == nil {
				continue
			}
			var te *TransitionError
			if !errors.As(err, &te) || te.From != from || te.To != to || !errdefs.IsConflict(err) {
				t.Errorf("%s -> %s: %#v", from, to, err)
			}
			if !strings.Contains(err.Error(), string(from)) || !strings.Contains(err.Error(), string(to)) {
				t.Errorf("the error does not name both states: %v", err)
			}
		}
	}
	for _, never := range []struct{ from, to State }{{Removing, Running}, {Dead, Running}, {Created, Paused}, {Exited, Paused}, {Running, Created}} {
		if never.from.canBecome("x", never.to) == nil {
			t.Errorf("%s can become %s", never.from, never.to)
		}
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 12 {
		got = append(got, b.after(time.Second))
	}
	want := []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000}
	for i := range want {
		if got[i] != want[i]*time.Millisecond {
			t.Errorf("pause %d: %v, want %v", i, got[i], want[i]*time.Millisecond)
		}
	}
	if d := b.after(steady); d != firstBackoff {
		t.Errorf("after a steady run: %v", d)
	}
}

func TestRestartPolicies(t *testing.T) {
	pol := func(name string, n int) container.RestartPolicy {
		return container.RestartPolicy{Name: container.RestartPolicyMode(name), MaximumRetryCount: n}
	}
	for _, c := range []struct {
		p                container.RestartPolicy
		code, count      int
		byUser, alive    bool
		atEnd, atBooting bool
	}{
		{pol("no", 0), 1, 0, false, true, false, false},
		{pol("", 0), 1, 0, false, true, false, false},
		{pol("always", 0), 0, 9, false, true, true, true},
		{pol("always", 0), 0, 0, true, false, false, true}, // as Docker: a new engine starts it again
		{pol("unless-stopped", 0), 0, 0, false, true, true, true},
		{pol("unless-stopped", 0), 0, 0, true, false, false, false},
		{pol("on-failure", 0), 0, 0, false, true, false, false},
		{pol("on-failure", 0), 1, 99, false, true, true, true},
		{pol("on-failure", 3), 1, 2, false, true, true, true},
		{pol("on-failure", 3), 1, 3, false, true, false, false},
		{pol("on-failure", 0), 1, 0, false, false, true, false}, // it had failed long before the engine went down
		{pol("on-failure", 0), 1, 0, true, true, false, false},
	} {
		if got := wantsRestart(c.p, c.code, c.count, c.byUser); got != c.atEnd {
			t.Errorf("%+v at the end: %v", c, got)
		}
		if got := wantsBoot(c.p, c.code, c.count, c.byUser, c.alive); got != c.atBooting {
			t.Errorf("%+v at an engine's start: %v", c, got)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	for s, want := range map[string]string{"": "\x10\x11", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-a,x": "\x01x", "ctrl-@,ctrl-[": "\x00\x1b", "DEL": "\x7f"} {
		if got, err := detachKeys(s); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-pp"} {
		if k, err := detachKeys(s); err == nil {
			t.Errorf("%q is read as %q", s, k)
		}
	}
}

// typed gives one element per read, as a terminal does.
type typed []string

func (p *typed) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	*p = (*p)[1:]
	return n, nil
}

func TestEscape(t *testing.T) {
	for _, c := range []struct {
		in       typed
		out      string
		detached bool
	}{
		{typed{"a", "b"}, "ab", false},
		{typed{"a", "\x10", "\x11", "lost"}, "a", true},
		{typed{"\x10", "x"}, "\x10x", false},
		{typed{"\x10", "\x10", "\x11"}, "\x10", true},
		{typed{"\x10", "pasted text"}, "\x10pasted text", false},
		{typed{"\x10\x11"}, "\x10\x11", false}, // pasted, not typed
		{typed{"\x11", "\x10", "q"}, "\x11\x10q", false},
	} {
		in := slices.Clone(c.in)
		got, err := io.ReadAll(&escape{r: &in, keys: []byte("\x10\x11")})
		if string(got) != c.out || errors.Is(err, errDetached) != c.detached {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
}

func TestNextHealth(t *testing.T) {
	start := time.Now()
	h := &container.HealthConfig{Retries: 2, StartPeriod: 10 * time.Second}
	at := func(sec, code int) *container.HealthcheckResult {
		return &container.HealthcheckResult{Start: start.Add(time.Duration(sec) * time.Second), ExitCode: code}
	}
	var s *container.Health
	step := func(sec, code int, want container.HealthStatus, streak int) {
		t.Helper()
		s = nextHealth(s, at(sec, code), h, start)
		if s.Status != want || s.FailingStreak != streak {
			t.Errorf("after %d s with %d: %s, %d", sec, code, s.Status, s.FailingStreak)
		}
	}
	step(1, 1, container.Starting, 0) // within the start period
	step(11, 1, container.Starting, 1)
	step(12, 1, container.Unhealthy, 2)
	step(13, 0, container.Healthy, 0)
	step(14, 1, container.Healthy, 1)
	step(15, 1, container.Unhealthy, 2)
	for range 10 {
		s = nextHealth(s, at(16, 0), h, start)
	}
	if len(s.Log) != healthLogEntries {
		t.Errorf("%d results are kept", len(s.Log))
	}
}

// moby daemon/health.go (PR 52317): the start interval ends with the start period.
func TestFaultD25StartInterval(t *testing.T) {
	h := &container.HealthConfig{Interval: time.Minute, StartInterval: 30 * time.Second, StartPeriod: 2 * time.Second}
	starting, healthy := &container.Health{Status: container.Starting}, &container.Health{Status: container.Healthy}
	for _, c := range []struct {
		h     *container.HealthConfig
		now   *container.Health
		since time.Duration
		want  time.Duration
	}{
		{h, starting, 0, 2 * time.Second},
		{h, starting, 1500 * time.Millisecond, 500 * time.Millisecond},
		{h, starting, 2 * time.Second, time.Minute},
		{h, healthy, time.Second, time.Minute},
		{&container.HealthConfig{StartPeriod: time.Minute}, starting, time.Second, healthStartInterval},
		{&container.HealthConfig{StartPeriod: time.Minute}, starting, 58 * time.Second, 2 * time.Second},
		{&container.HealthConfig{StartInterval: time.Second}, starting, 0, healthInterval},
		{&container.HealthConfig{}, starting, 0, healthInterval},
	} {
		if got := healthPause(c.h, c.now, c.since); got != c.want {
			t.Errorf("%+v after %v as %s: %v; want %v", *c.h, c.since, c.now.Status, got, c.want)
		}
	}
}

func TestClaimRange(t *testing.T) {
	dir := t.TempDir()
	u, g := filepath.Join(dir, "subuid"), filepath.Join(dir, "subgid")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write(u, "# people\nann:100000:65536\nbob:2013265920:65536\nbroken:line\n")
	// subgid is missing, as where nobody made users with ranges.
	ids, err := ClaimRange([]string{u, g}, "proa", 65536)
	if err != nil {
		t.Fatal(err)
	}
	if ids != (isolation.IDRange{Host: firstID + 65536, Size: 65536}) {
		t.Errorf("range %+v", ids)
	}
	text, _ := os.ReadFile(u)
	if string(text) != "# people\nann:100000:65536\nbob:2013265920:65536\nbroken:line\nproa:2013331456:65536\n" {
		t.Errorf("subuid is now:\n%s", text)
	}
	if fi, _ := os.Stat(u); fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", fi.Mode())
	}
	if text, _ := os.ReadFile(g); string(text) != "proa:2013331456:65536\n" {
		t.Errorf("subgid is now:\n%s", text)
	}
	if again, err := ClaimRange([]string{u, g}, "proa", 65536); err != nil || again != ids {
		t.Errorf("a second start: %+v, %v", again, err)
	}
	// Somebody was given our range meanwhile: take another one.
	write(g, "eve:2013331000:65536\nproa:2013331456:65536\n")
	other, err := ClaimRange([]string{u, g}, "proa", 65536)
	if err != nil || other.Host != 2013331000+65536 {
		t.Errorf("with a collision: %+v, %v", other, err)
	}
	if err := ReleaseRange([]string{u, g}, "proa"); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{u, g} {
		if text, _ := os.ReadFile(f); strings.Contains(string(text), "proa") {
			t.Errorf("%s still has:\n%s", f, text)
		}
	}
}

func FuzzParseRanges(f *testing.F) {
	f.Add("a:1:2\nb:4294967295:4294967295\n#x:1:1\n")
	f.Add("proa-wide:2147483648:65536\na:2147483648:1\nb:2013265920:100000\n")
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(t.TempDir(), "subuid")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := ClaimIDs([]string{file}, "proa", 1<<20)
		if err != nil {
			return
		}
		for i, r := range m {
			if others(text, r) || meets(r, m[:i]) || r.Host+(r.Size-1) < r.Host {
				t.Errorf("%q: %v is not free", text, r)
			}
		}
	})
}

// others says whether a range meets one that another owner than proa has.
func others(text string, r isolation.IDRange) bool {
	for line := range strings.Lines(text) {
		if name, other, ok := rangeLine(line); ok && other.Size > 0 && !strings.HasPrefix(name, "proa") && meets(r, []isolation.IDRange{other}) {
			return true
		}
	}
	return false
}
