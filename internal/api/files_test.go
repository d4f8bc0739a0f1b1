package api

import (
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// endless gives its text over and over again, and counts what was taken.
type endless struct {
	text  string
	taken int64
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.text[int(e.taken)%len(e.text)]
		e.taken++
	}
	return len(p), nil
}

// CWE-770: a guest that answers without end is cut off, before it has filled
// the engine's memory.
func TestAnswersAboutFilesAreBounded(t *testing.T) {
	e := &endless{text: "a"}
	if _, err := readStat(io.MultiReader(strings.NewReader(`{"name":"`), e)); !errdefs.IsResourceExhausted(err) || e.taken > maxStat {
		t.Errorf("one endless path: %v after %d bytes", err, e.taken)
	}
	e = &endless{text: "{}\n"}
	if got, err := readChanges(e); !errdefs.IsResourceExhausted(err) || got != nil {
		t.Errorf("endless changes: %d, %v", len(got), err)
	}
	if st, err := readStat(strings.NewReader(`{"name":"x","size":3}` + "\n")); err != nil || st.Name != "x" || st.Size != 3 {
		t.Errorf("%+v %v", st, err)
	}
	if got, err := readChanges(strings.NewReader(`{"path":"/a","kind":1}` + "\n" + `{"path":"/b","kind":2}` + "\n")); err != nil || len(got) != 2 || got[1].Path != "/b" || got[1].Kind != 2 {
		t.Errorf("%+v %v", got, err)
	}
}
