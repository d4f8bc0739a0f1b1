package words

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/suggest"

	"proa/internal/image/remote"
	"proa/internal/image/remote/pick"
)

// atMost is how long a hint may be looked for: the client waits for it.
const atMost = 5 * time.Second

// hint finds out what to try next: it looks at the instruction that an error
// is about and at what the client has of the things that it names. Of an error's
// words it reads a registry's status alone; "" where there is nothing to say.
func (t *Teller) hint(ctx context.Context, b build, err error) string {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		if hint := exitHint(exit.ExitCode); hint != "" {
			return hint
		}
	}
	if errors.Is(err, syscall.EFBIG) && t.TooLarge != nil {
		return t.TooLarge()
	}
	var tag *pick.TagError
	var platform *pick.PlatformError
	if errors.As(err, &tag) || errors.As(err, &platform) {
		return "" // which says what there is
	}
	all := errdefs.Sources(err)
	login := loginHint(err)
	if len(all) == 0 {
		return login
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
			if _, _, perr := instructions.Parse(ast.AST, nil); perr != nil {
				return "" // the line cannot be read, so its image is not what is wrong
			}
			if near, ok := suggest.Search(n.Next.Value, stages, false); ok {
				return fmt.Sprintf("no stage and no image is called %q; there is a stage %q", n.Next.Value, near)
			}
			if login != "" {
				return login
			}
			return t.imageHint(ctx, n.Next.Value)
		}
		cmd, perr := instructions.ParseInstruction(n)
		if perr != nil {
			return ""
		}
		switch c := cmd.(type) {
		case *instructions.CopyCommand:
			if c.From != "" {
				if slices.ContainsFunc(stages, func(s string) bool { return strings.EqualFold(s, c.From) }) {
					return fmt.Sprintf("a build with --target %s -o DIR writes what that stage has into a directory", c.From)
				}
				if h := stageHint(c.From, stages); h != "" {
					return h
				}
				if login != "" {
					return login
				}
				return t.imageHint(ctx, c.From)
			}
			return t.missingHint(ctx, b, c.SourcePaths)
		case *instructions.AddCommand:
			return t.missingHint(ctx, b, c.SourcePaths)
		case *instructions.RunCommand:
			if err := c.Expand(func(s string) (string, error) { return s, nil }); err != nil {
				return ""
			}
			return t.mountHint(ctx, b, c, stages)
		}
	}
	return ""
}

// loginHint is for what a registry refuses to whom it does not know.
func loginHint(err error) string {
	host := ""
	var answer *remote.StatusError
	if errors.As(err, &answer) && (answer.Status == http.StatusUnauthorized || answer.Status == http.StatusForbidden) {
		host = answer.Host
	} else if m := refused.FindStringSubmatch(err.Error()); m != nil && (strings.HasPrefix(m[2], "401") || strings.HasPrefix(m[2], "403")) {
		host = m[1]
	} else {
		return ""
	}
	host = strings.TrimSuffix(" "+strings.TrimPrefix(host, "registry-1."), " docker.io")
	return fmt.Sprintf("proa login%s, or docker login%s", host, host)
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
func (t *Teller) imageHint(ctx context.Context, image string) string {
	named, perr := reference.ParseNormalizedNamed(image)
	if perr != nil {
		return "" // a variable, or what the error says already
	}
	here := t.localNames(ctx)
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
func (t *Teller) localNames(ctx context.Context) []string {
	list, err := t.Images.List(ctx)
	if err != nil {
		return nil // a hint is a courtesy
	}
	var out []string
	for _, i := range list {
		named, err := reference.ParseNormalizedNamed(i.Name)
		if err != nil {
			continue
		}
		if _, ok := named.(reference.Tagged); !ok {
			continue
		}
		if out = append(out, reference.FamiliarString(named)); len(out) > maxNames {
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
func (t *Teller) mountHint(ctx context.Context, b build, c *instructions.RunCommand, stages []string) string {
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
			if t.lacksSecret(ctx, b, id) {
				return fmt.Sprintf("the step needs a secret that was not given: --secret id=%s,src=FILE", id)
			}
		case m.Type == instructions.MountTypeSSH && m.Required && t.lacksAgent(ctx, b, m.CacheID):
			return "the step needs an SSH agent: --ssh default"
		case m.From != "":
			if h := stageHint(m.From, stages); h != "" {
				return h
			}
		}
	}
	return ""
}

// lacksSecret tells whether the client was not given the secret: it is asked.
func (t *Teller) lacksSecret(ctx context.Context, b build, id string) bool {
	caller, err := t.Sessions.Get(ctx, b.session, true)
	if err != nil || caller == nil {
		return false // it is not known
	}
	_, err = secrets.GetSecret(ctx, caller, id)
	return errors.Is(err, secrets.ErrNotFound)
}

// lacksAgent tells whether the client forwards no SSH agent of that id.
func (t *Teller) lacksAgent(ctx context.Context, b build, id string) bool {
	caller, err := t.Sessions.Get(ctx, b.session, true)
	if err != nil || caller == nil {
		return false
	}
	return sshforward.CheckSSHID(ctx, caller, id) != nil && ctx.Err() == nil
}
