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
	if !s.quiet {
		s.send(map[string]string{"stream": fmt.Sprintf(format, args...)})
	}
}

func (s *stream) aux(id string, v any) {
	if !s.quiet {
		s.send(map[string]any{"id": id, "aux": v})
	}
}

// fail says what went wrong: as a status where nothing was said yet, else as
// the last message.
func (s *stream) fail(err error) {
	text := explain(err)
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started && !s.quiet {
		fail(s.w, http.StatusInternalServerError, fmt.Errorf("%s", text))
		return
	}
	s.send(map[string]any{"error": text, "errorDetail": map[string]string{"message": text}})
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
		if named, err := reference.ParseNormalizedNamed(t); err == nil {
			t = reference.FamiliarString(named)
		}
		s.print("Successfully tagged %s\n", t)
	}
}

// steps turns BuildKit's vertices into the lines that the classic builder
// printed: one for each step when it begins, its output, and what came of it.
type steps struct {
	s    *stream
	seen map[digest.Digest]bool
	told map[digest.Digest]bool
	errs map[digest.Digest]bool
}

func newSteps(s *stream) *steps {
	return &steps{s: s, seen: map[digest.Digest]bool{}, told: map[digest.Digest]bool{}, errs: map[digest.Digest]bool{}}
}

// stepName is "[stage 2/3] RUN make" or "[2/3] RUN make".
var stepName = regexp.MustCompile(`(?s)^\[(?:(.*) )?(\d+)/(\d+)\] (.*)$`)

func (t *steps) update(st *client.SolveStatus) {
	for _, v := range st.Vertexes {
		m := stepName.FindStringSubmatch(v.Name)
		if v.Started != nil && !t.seen[v.Digest] && m != nil {
			t.seen[v.Digest] = true
			stage := ""
			if m[1] != "" {
				stage = " (" + m[1] + ")"
			}
			t.s.print("Step %s/%s%s : %s\n", m[2], m[3], stage, m[4])
		}
		if v.Completed != nil && t.seen[v.Digest] && !t.told[v.Digest] {
			t.told[v.Digest] = true
			if v.Cached {
				t.s.print(" ---> Using cache\n")
			}
		}
	}
	for _, l := range st.Logs {
		t.s.print("%s", l.Data)
	}
	for _, w := range st.Warnings {
		t.s.print("[Warning] %s\n", w.Short)
	}
}
