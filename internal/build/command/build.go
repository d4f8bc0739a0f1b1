package command

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/containerd/console"
	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	proaclient "proa/internal/client"
	"proa/internal/failure"
	"proa/internal/pace"
)

// IsolationHeader tells the engine behind which wall the RUN steps of a
// session or a build run.
const IsolationHeader = "Proa-Isolation"

// build is `proa build`.
func (a *app) build(ctx context.Context, args []string) error {
	pace.Hurry()
	f := &buildFlags{}
	cmd := &cobra.Command{
		Use:           "build [flags] PATH | URL | -",
		Short:         "Build an image from a Dockerfile",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failure.Hint(fmt.Errorf("build needs one context (a directory, a URL, or - for standard input), and %d were given", len(args)), "proa build -t NAME .")
			}
			return a.solve(cmd.Context(), f, args[0])
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().Bool("help", false, "show what build takes")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return failure.Exit(125, fmt.Errorf("%w\nSee 'proa build --help'", err))
	})
	parent := &cobra.Command{Use: "proa"}
	parent.AddCommand(cmd)
	parent.CompletionOptions.DisableDefaultCmd = true
	parent.SilenceErrors, parent.SilenceUsage = true, true
	parent.SetOut(a.out)
	parent.SetErr(a.err)
	parent.SetArgs(append([]string{"build"}, args...))
	return parent.ExecuteContext(ctx)
}

// dial reaches BuildKit's control API through the engine. It makes the
// connection at once, so that an engine that is not there, or has no builder,
// is told from a build that fails. A session goes through a cork.
func dial(ctx context.Context, host, isolation string, files *cork) (*client.Client, error) {
	c, err := proaclient.New(host)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	if isolation != "" {
		header.Set(IsolationHeader, isolation)
	}
	control := func(ctx context.Context) (net.Conn, error) { return c.Upgrade(ctx, "/grpc", "h2c", header) }
	first, err := control(ctx)
	if err != nil {
		return nil, err
	}
	made := make(chan net.Conn, 1)
	made <- first
	return client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		select {
		case conn := <-made:
			return conn, nil
		default: // the first one broke
			return control(ctx)
		}
	}), client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		h := header.Clone()
		for k, vs := range meta {
			for _, v := range vs {
				h.Add(k, v)
			}
		}
		conn, err := c.Upgrade(ctx, "/session", proto, h)
		if err != nil {
			return nil, err
		}
		return files.around(conn), nil
	}))
}

// solve runs one build.
func (a *app) solve(ctx context.Context, f *buildFlags, where string) error {
	src, err := a.openContext(ctx, f, where)
	if err != nil {
		return err
	}
	defer src.close()
	files := &cork{}
	opt, err := f.solveOpt(src, files)
	if err != nil {
		return err
	}
	c, err := dial(ctx, f.engine(), f.isolation, files)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := f.hosts(ctx, c, opt); err != nil {
		return err
	}
	attach, err := f.attachables(a)
	if err != nil {
		return err
	}
	opt.Session = append(opt.Session, attach...)
	display, live, err := a.display(f)
	if err != nil {
		return err
	}
	said, status := make(chan *client.SolveStatus), make(chan *client.SolveStatus)
	var resp *client.SolveResponse
	var step string
	var shown errgroup.Group
	shown.Go(func() error {
		step = follow(said, status)
		return nil
	})
	shown.Go(func() error {
		// Not with ctx: what a cancelled build has to say is shown as well.
		_, err := display.UpdateFrom(context.WithoutCancel(ctx), status)
		return err
	})
	resp, err = c.Solve(ctx, nil, *opt, said)
	if derr := shown.Wait(); err == nil && derr != nil {
		err = derr
	}
	if live {
		fmt.Fprint(a.err, afterLive)
	}
	src.warn(a.err)
	if err != nil {
		return a.failed(ctx, step, err)
	}
	return a.finish(f, resp.ExporterResponse)
}

// liveWidth is how many columns the live display needs: in fewer it has no room
// for the name of a step.
const liveWidth = 40

// display is where progress goes: a live one on a terminal, lines elsewhere.
// live says that it draws over what it has drawn.
func (a *app) display(f *buildFlags) (d progressui.Display, live bool, err error) {
	mode := progressui.DisplayMode(f.progress)
	if f.quiet {
		mode = progressui.QuietMode
	}
	var out io.Writer = a.err
	if file, ok := a.err.(console.File); ok {
		out = file
		c, err := console.ConsoleFromFile(file)
		live = err == nil && (mode == progressui.AutoMode || mode == progressui.DefaultMode || mode == progressui.TtyMode)
		if live && mode != progressui.TtyMode {
			if size, err := c.Size(); err == nil && size.Width > 0 && size.Width < liveWidth {
				mode, live = progressui.PlainMode, false
			}
		}
	}
	d, err = progressui.NewDisplay(out, mode)
	if err != nil {
		return d, false, failure.Hint(fmt.Errorf("cannot show progress as %q: %w", f.progress, err), "auto, plain, tty, quiet and rawjson are known; tty needs a terminal")
	}
	return d, live, nil
}

// afterLive resets colours, shows the cursor, and clears what stands below it:
// a cancelled build ends above lines that it had drawn.
const afterLive = "\x1b[0m\x1b[?25h\x1b[J"

// finish writes what was asked for about the result.
func (a *app) finish(f *buildFlags, resp map[string]string) error {
	id := resp[exptypes.ExporterImageConfigDigestKey]
	if id == "" {
		id = resp[exptypes.ExporterImageDigestKey]
	}
	if f.iidfile != "" {
		if id == "" {
			return failure.Hint(errors.New("cannot write --iidfile: the build made no image"), "leave --output out, or make it type=image")
		}
		if err := os.WriteFile(f.iidfile, []byte(id), 0o644); err != nil {
			return fmt.Errorf("cannot write --iidfile: %w", err)
		}
	}
	if f.metadata != "" {
		if err := writeMetadata(f.metadata, resp); err != nil {
			return fmt.Errorf("cannot write --metadata-file: %w", err)
		}
	}
	if f.quiet && id != "" {
		fmt.Fprintln(a.out, id)
	}
	return nil
}

// writeMetadata writes the exporter's answers; those that are JSON in base64
// are unpacked, as buildx does.
func writeMetadata(path string, resp map[string]string) error {
	out := map[string]any{}
	for k, v := range resp {
		out[k] = v
		raw, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			continue
		}
		var object map[string]any
		if json.Unmarshal(raw, &object) == nil && len(object) > 0 {
			out[k] = json.RawMessage(raw)
		}
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// credentials lets the builder ask this user's docker configuration.
func (a *app) credentials() session.Attachable {
	return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(config.LoadDefaultConfigFile(a.err)),
	})
}
