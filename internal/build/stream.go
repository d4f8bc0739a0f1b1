package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"proa/internal/build/words"
)

// stream writes Docker's JSON messages of a build. It is safe for concurrent use.
type stream struct {
	w     http.ResponseWriter
	quiet bool

	mu      sync.Mutex
	started bool
	enc     *json.Encoder
	held    []string // of a quiet build: what is shown if it fails
	size    int      // of held, in bytes
}

func (s *stream) send(v any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", "application/json")
		s.w.WriteHeader(http.StatusOK)
		s.enc = json.NewEncoder(s.w)
	}
	_ = s.enc.Encode(v)
	_ = http.NewResponseController(s.w).Flush()
}

func (s *stream) print(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if !s.quiet {
		s.send(map[string]string{"stream": line})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held, s.size = append(s.held, line), s.size+len(line)
	for s.size > mostHeld { // the end of a long output says more than its beginning
		s.size -= len(s.held[0])
		s.held = s.held[1:]
	}
}

// mostHeld bounds what a quiet build keeps for its failure, in bytes.
const mostHeld = 1 << 20

func (s *stream) aux(id string, v any) {
	if !s.quiet {
		s.send(map[string]any{"id": id, "aux": v})
	}
}

// fail says what went wrong: as a status where nothing was said yet, else as
// the last message. A quiet build shows now what it has kept, as Docker does.
func (s *stream) fail(err error) {
	text := explain(err)
	s.mu.Lock()
	started, held := s.started, s.held
	s.held = nil
	s.mu.Unlock()
	if !started && len(held) == 0 {
		fail(s.w, http.StatusInternalServerError, fmt.Errorf("%s", text))
		return
	}
	for _, line := range held {
		s.send(map[string]string{"stream": line})
	}
	s.send(struct {
		Detail map[string]string `json:"errorDetail"`
		Error  string            `json:"error"`
	}{map[string]string{"message": text}, text})
}

// explain gives an error with the lines of the Dockerfile that it is about.
func explain(err error) string {
	var b bytes.Buffer
	b.WriteString(words.Plain(err))
	for i, src := range errdefs.Sources(err) {
		if i == 0 {
			b.WriteString("\n")
		}
		_ = src.Print(&b)
	}
	return strings.TrimRight(b.String(), "\n")
}

// done says which image came out.
func (s *stream) done(id string, tags []string) {
	if id == "" {
		return // nothing but the cache was asked for
	}
	if s.quiet {
		s.send(map[string]string{"stream": id + "\n"})
		return
	}
	s.send(map[string]any{"aux": map[string]string{"ID": id}})
	s.print("Successfully built %.12s\n", digest.Digest(id).Encoded())
	for _, t := range tags {
		s.print("Successfully tagged %s\n", familiar(t))
	}
}

// steps turns BuildKit's vertices into the lines that the classic builder
// printed: one for each step when it begins, its output, and what came of it.
// Nothing is said before the first step: a build that fails earlier has a status.
type steps struct {
	s      *stream
	seen   map[digest.Digest]bool
	told   map[digest.Digest]bool
	begun  bool
	before []string // said once the first step has begun
}

func newSteps(s *stream) *steps {
	return &steps{s: s, seen: map[digest.Digest]bool{}, told: map[digest.Digest]bool{}}
}

var (
	// stepName is "[stage 2/3] RUN make" or "[2/3] RUN make".
	stepName = regexp.MustCompile(`(?s)^\[(?:(.*) )?(\d+)/(\d+)\] (.*)$`)
	// fromName is what looks for the image of a FROM, before any step.
	fromName = regexp.MustCompile(`^\[internal\] load metadata for (\S+)$`)
)

// Docker's colours of what a step writes to stderr.
const red, plain = "\x1b[91m", "\x1b[0m"

func (t *steps) update(st *client.SolveStatus) {
	for _, v := range st.Vertexes {
		m := stepName.FindStringSubmatch(v.Name)
		if v.Started != nil && !t.seen[v.Digest] && m != nil {
			t.seen[v.Digest] = true
			stage := ""
			if m[1] != "" {
				stage = " (" + m[1] + ")"
			}
			t.begin(fmt.Sprintf("Step %s/%s%s : %s\n", m[2], m[3], stage, m[4]))
		}
		if m := fromName.FindStringSubmatch(v.Name); m != nil && v.Error != "" && len(t.seen) == 0 && !t.told[v.Digest] {
			t.told[v.Digest] = true
			t.begin("Step 1 : FROM " + familiar(m[1]) + "\n") // the step that failed: Docker names it
		}
		if v.Completed != nil && t.seen[v.Digest] && !t.told[v.Digest] {
			t.told[v.Digest] = true
			if v.Cached {
				t.say(" ---> Using cache\n")
			}
		}
	}
	for _, l := range st.Logs {
		if text := string(l.Data); l.Stream == 2 {
			t.say(red + text + plain)
		} else {
			t.say(text)
		}
	}
	for _, w := range st.Warnings {
		t.say("[Warning] " + string(w.Short) + "\n")
	}
}

// begin prints a step and, behind the first, what had to wait for it.
func (t *steps) begin(line string) {
	t.s.print("%s", line)
	for _, text := range t.before {
		t.s.print("%s", text)
	}
	t.before = nil
	t.begun = true
}

// say prints what is no step.
func (t *steps) say(text string) {
	if !t.begun {
		t.before = append(t.before, text)
		return
	}
	t.s.print("%s", text)
}

// familiar is a name as people write it.
func familiar(name string) string {
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		return reference.FamiliarString(named)
	}
	return name
}
