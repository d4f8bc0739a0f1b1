package failure

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type knowing struct{}

func (knowing) Error() string { return "no way" }
func (knowing) Hint() string  { return "go round" }

func TestReport(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code int
		said string
	}{
		"nothing":             {nil, 0, ""},
		"plain":               {errors.New("it broke\n"), 1, "p: it broke\n"},
		"code":                {fmt.Errorf("cannot: %w", Exit(125, errors.New("no"))), 125, "p: cannot: no\n"},
		"silent":              {Exit(3, nil), 3, ""},
		"hint":                {Hint(errors.New("no name"), "give one"), 1, "p: no name\nhint: give one\n"},
		"hint and code":       {Exit(125, Hint(errors.New("no name"), "give one")), 125, "p: no name\nhint: give one\n"},
		"outer hint wins":     {Hint(fmt.Errorf("b: %w", Hint(errors.New("a"), "inner")), "outer"), 1, "p: b: a\nhint: outer\n"},
		"no hint":             {Hint(errors.New("a"), ""), 1, "p: a\n"},
		"error's own hint":    {fmt.Errorf("cannot go: %w", knowing{}), 1, "p: cannot go: no way\nhint: go round\n"},
		"kind":                {fmt.Errorf("the root is in use: %w", errdefs.ErrUnavailable), 1, "p: the root is in use\n"},
		"kinds":               {fmt.Errorf("%w: %w", fmt.Errorf("a: %w", errdefs.ErrDataLoss), errdefs.ErrInvalidArgument), 1, "p: a\n"},
		"kind with a hint":    {Hint(fmt.Errorf("taken: %w", errdefs.ErrConflict), "rename it"), 1, "p: taken\nhint: rename it\n"},
		"words, not a kind":   {errors.New("the answer was: unavailable"), 1, "p: the answer was: unavailable\n"},
		"control characters":  {Hint(errors.New("one\n\x1b[2Jtwo"), "\x07"), 1, "p: one\n" + `\x1b[2Jtwo` + "\nhint: " + `\a` + "\n"},
		"a kind in the midst": {fmt.Errorf("x: %w: later", errdefs.ErrNotFound), 1, "p: x: not found: later\n"},
	} {
		var out strings.Builder
		if code := Report(&out, "p", c.err); code != c.code || out.String() != c.said {
			t.Errorf("%s: code %d, said %q; want %d, %q", name, code, out.String(), c.code, c.said)
		}
	}
}

func TestHintKeepsTheError(t *testing.T) {
	cause := errors.New("cause")
	err := Exit(7, Hint(fmt.Errorf("x: %w", cause), "next"))
	if code, ok := Code(err); !ok || code != 7 || !errors.Is(err, cause) || Next(err) != "next" {
		t.Errorf("code %d %v, cause kept %v, next %q", code, ok, errors.Is(err, cause), Next(err))
	}
	if _, ok := Code(cause); ok || Hint(nil, "next") != nil {
		t.Error("a plain error has no code, and no error no hint")
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"plain é":        "plain é",
		"\x1b]0;owned\a": `\x1b]0;owned\a`,
		"a\nb\tc":        `a\nb\tc`,
		"\u009b31m":      `\u009b31m`,
		"\x9b31m\xff":    "\ufffd31m\ufffd",
	} {
		if got := Visible(in, ""); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := Visible("a\nb\tc\x1b", "\n\t"); got != "a\nb\tc"+`\x1b` {
		t.Errorf("what is kept: %q", got)
	}
}
