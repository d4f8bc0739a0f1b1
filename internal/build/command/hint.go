package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/suggest"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"

	proaclient "proa/internal/client"
)

// hintFor finds out what to try next: it looks at the instruction that an
// error is about and at the files that it names. Of an error's words it reads
// a registry's status alone; "" where there is nothing to say.
func hintFor(ctx context.Context, f *buildFlags, src *source, err error) string {
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		if hint := exitHint(exit.ExitCode); hint != "" {
			return hint
		}
	}
	if m := refused.FindStringSubmatch(err.Error()); m != nil && (strings.HasPrefix(m[2], "401") || strings.HasPrefix(m[2], "403")) {
		return strings.TrimSuffix("proa login "+strings.TrimPrefix(m[1], "registry-1."), " docker.io")
	}
	all := errdefs.Sources(err)
	if len(all) == 0 {
		return ""
	}
	at := all[len(all)-1]
	if at.Info == nil || len(at.Ranges) == 0 || at.Ranges[0].Start == nil {
		return ""
	}
	ast, perr := parser.Parse(bytes.NewReader(at.Info.Data))
	if perr != nil {
		return "" // the error says itself what is wrong with the line
	}
	line := int(at.Ranges[0].Start.Line)
	if syntax, _, where, ok := parser.DetectSyntax(at.Info.Data); ok && len(where) > 0 && where[0].Start.Line == line {
		return fmt.Sprintf("the line # syntax fetches a frontend, here %s; without it the one of this builder is used, and docker/dockerfile:1 names that one", syntax)
	}
	stages := stageNames(ast.AST)
	for _, n := range ast.AST.Children {
		if line < n.StartLine || line > n.EndLine {
			continue
		}
		if strings.EqualFold(n.Value, "from") && n.Next != nil {
			if near, ok := suggest.Search(n.Next.Value, stages, false); ok {
				return fmt.Sprintf("no stage and no image is called %q; there is a stage %q", n.Next.Value, near)
			}
			return imageHint(ctx, f, n.Next.Value)
		}
		cmd, perr := instructions.ParseInstruction(n)
		if perr != nil {
			return ""
		}
		switch c := cmd.(type) {
		case *instructions.CopyCommand:
			if c.From != "" {
				if slices.ContainsFunc(stages, func(s string) bool { return strings.EqualFold(s, c.From) }) {
					return fmt.Sprintf("proa build --target %s -o DIR CONTEXT writes what that stage has into a directory", c.From)
				}
				if h := stageHint(c.From, stages); h != "" {
					return h
				}
				return imageHint(ctx, f, c.From)
			}
			return missingHint(ctx, src, c.SourcePaths)
		case *instructions.AddCommand:
			return missingHint(ctx, src, c.SourcePaths)
		case *instructions.RunCommand:
			if err := c.Expand(func(s string) (string, error) { return s, nil }); err != nil {
				return ""
			}
			return mountHint(f, c, stages)
		}
	}
	return ""
}

// exitHint knows the exit codes by which a shell or the kernel says why.
func exitHint(code uint32) string {
	switch code {
	case 126:
		return "a program of this step cannot be executed: it needs the x bit, and to be made for this platform"
	case 127:
		return "a program that this step names is not in the image: install it in a step above, or COPY it"
	case 137:
		return "the step was killed (SIGKILL), as the kernel does where memory runs out: see its limit, and that of the host"
	}
	return ""
}

// imageHint helps where the image of a FROM cannot be had: it knows those that
// are here.
func imageHint(ctx context.Context, f *buildFlags, image string) string {
	named, perr := reference.ParseNormalizedNamed(image)
	if perr != nil {
		return "" // a variable, or what the error says already
	}
	here := localNames(ctx, f)
	if slices.Contains(here, reference.FamiliarString(reference.TagNameOnly(named))) {
		return "leave --platform out to use the one that is here; one of the other platform comes by proa load or from a registry"
	}
	if near := nearImage(reference.FamiliarName(named), here); near != "" {
		return fmt.Sprintf("no image is called %q here; there is %q", image, near)
	}
	return "is the name right? What is here needs no registry: proa images lists it, and proa load brings an image from a file"
}

// nearImage finds among the names that are here one of the same repository, or
// of one whose name differs by a letter or two.
func nearImage(name string, here []string) string {
	repo := func(ref string) string { return ref[:max(strings.LastIndex(ref, ":"), 0)] }
	for _, ref := range here {
		if repo(ref) == name {
			return ref
		}
	}
	if len(name) < 3 {
		return "" // every short name is near to every other
	}
	repos := make([]string, 0, len(here))
	for _, ref := range here {
		repos = append(repos, repo(ref))
	}
	if near, ok := suggest.Search(name, repos, true); ok {
		return here[slices.Index(repos, near)]
	}
	return ""
}

// maxNames is how many images are looked through for a near name.
const maxNames = 1000

// localNames are the names of the engine's images, as people write them.
func localNames(ctx context.Context, f *buildFlags) []string {
	c, err := proaclient.New(f.engine())
	if err != nil {
		return nil
	}
	list, err := c.ImageList(ctx, false, nil)
	if err != nil {
		return nil // a hint is a courtesy
	}
	var out []string
	for _, i := range list {
		if out = append(out, i.RepoTags...); len(out) > maxNames {
			break
		}
	}
	return out
}

func stageNames(ast *parser.Node) []string {
	var out []string
	for _, n := range ast.Children {
		if !strings.EqualFold(n.Value, "from") {
			continue
		}
		var words []string
		for a := n.Next; a != nil; a = a.Next {
			words = append(words, a.Value)
		}
		if len(words) == 3 && strings.EqualFold(words[1], "as") {
			out = append(out, words[2])
		}
	}
	return out
}

func stageHint(from string, stages []string) string {
	if near, ok := suggest.Search(from, stages, false); ok {
		return fmt.Sprintf("no stage is called %q; there is %q", from, near)
	}
	return ""
}

// mountHint knows secrets that were not given and stages that do not exist.
func mountHint(f *buildFlags, c *instructions.RunCommand, stages []string) string {
	for _, m := range instructions.GetMounts(c) {
		switch {
		case m.Type == instructions.MountTypeSecret && m.Required:
			id := m.CacheID
			if id == "" && m.Source != "" {
				id = path.Base(m.Source)
			}
			if id == "" && m.Target != "" {
				id = path.Base(m.Target)
			}
			if !given(f.secrets, id) {
				return fmt.Sprintf("the step needs a secret that was not given: --secret id=%s,src=FILE", id)
			}
		case m.Type == instructions.MountTypeSSH && m.Required && len(f.ssh) == 0:
			return "the step needs an SSH agent: --ssh default"
		case m.From != "":
			if h := stageHint(m.From, stages); h != "" {
				return h
			}
		}
	}
	return ""
}

// given tells whether one of the --secret flags has this id.
func given(secrets []string, id string) bool {
	for _, s := range secrets {
		if attrs, err := fields(s); err == nil && attrs["id"] == id {
			return true
		}
	}
	return false
}

// missingHint looks for the first source that is not in the context, and for
// what lies near it.
func missingHint(ctx context.Context, src *source, sources []string) string {
	if src.files == nil {
		return ""
	}
	for _, name := range sources {
		if strings.ContainsAny(name, "*?[$") || strings.Contains(name, "://") {
			continue
		}
		rel := strings.TrimPrefix(path.Clean("/"+name), "/")
		if rel == "" {
			continue
		}
		here, near := look(ctx, src.files, rel)
		if here {
			if pattern := ignoredBy(src, rel); pattern != "" {
				return fmt.Sprintf("%s is in the context, and the line %q of .dockerignore leaves it out", name, pattern)
			}
			continue
		}
		if near != "" {
			return fmt.Sprintf("the context has no %s; there is %s", name, near)
		}
		return fmt.Sprintf("the context has no %s; paths begin at the context's directory, and nothing outside of it can be copied", name)
	}
	return ""
}

// maxLook is how many names are compared for a near one.
const maxLook = 20_000

// look tells whether rel exists, and the nearest path if not: the same name in
// another directory, or a name that differs by a letter or two.
func look(ctx context.Context, files fsutil.FS, rel string) (here bool, near string) {
	dir, base := path.Dir(rel), path.Base(rel)
	var siblings []string
	elsewhere, n := "", 0
	stop := errors.New("enough")
	_ = files.Walk(ctx, "", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read cannot be suggested
		}
		if n++; n > maxLook {
			return stop
		}
		if p == rel {
			here = true
			return stop
		}
		if path.Dir(p) == dir {
			siblings = append(siblings, p)
		}
		if elsewhere == "" && strings.EqualFold(path.Base(p), base) {
			elsewhere = p
		}
		return nil
	})
	if here {
		return true, ""
	}
	if s, ok := suggest.Search(rel, siblings, true); ok {
		return false, s
	}
	return false, elsewhere
}

// ignoredBy finds the line of .dockerignore that leaves rel out.
func ignoredBy(src *source, rel string) string {
	name := ".dockerignore"
	files := src.files
	if own := src.attrs["filename"]; own != "" && src.mounts["dockerfile"] != nil {
		if r, err := src.mounts["dockerfile"].Open(own + ".dockerignore"); err == nil {
			r.Close()
			name, files = own+".dockerignore", src.mounts["dockerfile"]
		}
	}
	r, err := files.Open(name)
	if err != nil {
		return ""
	}
	defer r.Close()
	lines, err := ignorefile.ReadAll(r)
	if err != nil {
		return ""
	}
	if out, err := patternmatcher.MatchesOrParentMatches(rel, lines); err != nil || !out {
		return ""
	}
	for i := len(lines) - 1; i >= 0; i-- {
		if out, err := patternmatcher.MatchesOrParentMatches(rel, lines[i:i+1]); err == nil && out {
			return lines[i]
		}
	}
	return ""
}
