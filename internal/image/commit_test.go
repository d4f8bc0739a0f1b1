package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// A commit is its parent and one more layer; it can be saved and loaded again,
// and a failed one leaves nothing.
func TestCommit(t *testing.T) {
	ctx := context.Background()
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "base:1")))
	parent := get(t, s, "base:1")
	more := tarOf(t, file{name: "more", body: strings.Repeat("m", 5000)})
	run := dockerspec.DockerOCIImageConfig{}
	run.Cmd = []string{"/more"}
	o := CommitOptions{Parent: parent.Target, Name: "made:1", Author: "Ada", Message: "words", Command: "sh -c x", Config: run}
	before := tree(t, s)

	broken := errors.New("the guest is gone")
	for what, c := range map[string]struct {
		stream io.Reader
		name   string
		is     func(error) bool
	}{
		"a stream that fails":  {io.MultiReader(bytes.NewReader(more[:3000]), iotest.ErrReader(broken)), "", func(err error) bool { return errors.Is(err, broken) }},
		"a stream that is cut": {bytes.NewReader(more[:3000]), "", errdefs.IsInvalidArgument},
		"a bad name":           {bytes.NewReader(more), "UPPER", errdefs.IsInvalidArgument},
	} {
		bad := o
		if c.name != "" {
			bad.Name = c.name
		}
		if _, err := s.Commit(ctx, c.stream, bad); !c.is(err) {
			t.Errorf("%s: %v", what, err)
		}
		expectTree(t, s, before)
	}

	img, err := s.Commit(ctx, bytes.NewReader(more), o)
	if err != nil {
		t.Fatal(err)
	}
	diffs, history := img.Config.RootFS.DiffIDs, img.Config.History
	if len(diffs) != len(parent.Config.RootFS.DiffIDs)+1 || diffs[0] != parent.Config.RootFS.DiffIDs[0] {
		t.Errorf("layers %v", diffs)
	}
	last := history[len(history)-1]
	if len(history) != len(parent.Config.History)+1 || last.CreatedBy != "sh -c x" || last.Author != "Ada" || last.Comment != "words" || last.EmptyLayer {
		t.Errorf("history %+v", history)
	}
	if img.Config.Author != "Ada" || img.Comment != "words" || img.DockerConfig.Cmd[0] != "/more" || img.Config.Architecture != parent.Config.Architecture {
		t.Errorf("%+v", img)
	}
	var saved bytes.Buffer
	if err := s.Save(ctx, &saved, []string{"made:1"}); err != nil {
		t.Fatal(err)
	}
	other := openTest(t)
	load(t, other, saved.Bytes())
	if got := get(t, other, "made:1"); got.ID != img.ID || got.Target.Digest != img.Target.Digest {
		t.Errorf("elsewhere it is %s, here %s", got.ID, img.ID)
	}

	// Nothing written: no layer, and a history that says so.
	o.Name = ""
	empty, err := s.Commit(ctx, bytes.NewReader(make([]byte, 1024)), o)
	if err != nil {
		t.Fatal(err)
	}
	if h := empty.Config.History; len(empty.Config.RootFS.DiffIDs) != len(parent.Config.RootFS.DiffIDs) || !h[len(h)-1].EmptyLayer {
		t.Errorf("%+v", empty.Config)
	}
	for _, ref := range []string{"made:1", empty.ID.String()} {
		if _, err := s.Remove(ctx, ref, true, true); err != nil {
			t.Fatal(err)
		}
	}
	expectTree(t, s, before)
}
