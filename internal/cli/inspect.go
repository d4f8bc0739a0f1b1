package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/template"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) inspectCmd() *cobra.Command { return a.inspectOf("", "inspect") }

// inspectOf prints everything about objects of one type, or of any type.
func (a *app) inspectOf(only, use string) *cobra.Command {
	var format, kind, platform string
	var size bool
	cmd := &cobra.Command{
		Use: use + " NAME...", Short: "Show everything about an object as JSON", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if only != "" {
				kind = only
			}
			var values []inspected
			failed := false
			for _, name := range args {
				v, err := inspect(ctx, c, kind, name, size, platform)
				if err != nil {
					failure.Report(a.err, "proa", err)
					failed = true
					continue
				}
				values = append(values, v)
			}
			if err := printInspected(a.out, format, values); err != nil {
				return err
			}
			if failed {
				return failure.Exit(1, nil)
			}
			return nil
		}),
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a Go template")
	if only == "" || only == "container" {
		cmd.Flags().BoolVarP(&size, "size", "s", false, "with sizes on disk")
	}
	if only == "image" {
		cmd.Flags().StringVar(&platform, "platform", "", "show the image for this platform, os/arch[/variant]")
	}
	if only == "" {
		cmd.Flags().StringVar(&kind, "type", "", "container, image, volume or network")
	}
	return cmd
}

// inspected is one object: its answer, and the type that it decodes into.
type inspected struct {
	raw   json.RawMessage
	typed any
}

// printInspected prints objects as Docker's inspect does. A template sees the
// fields by their Go types first, so that what is absent is nil and not an
// error, and the answer itself after that: a key that neither has is an error
// (docker/cli cli/command/inspect).
func printInspected(w io.Writer, format string, values []inspected) error {
	raws := make([]json.RawMessage, 0, len(values))
	for _, v := range values {
		raws = append(raws, v.raw)
	}
	if format == "" || format == "json" {
		return printInspect(w, format, raws)
	}
	t, err := template.New("").Funcs(templateFuncs).Parse(format)
	if err != nil {
		return fmt.Errorf("cannot read --format: %w", err)
	}
	for _, v := range values {
		var b bytes.Buffer
		if json.Unmarshal(v.raw, v.typed) == nil && t.Execute(&b, v.typed) == nil {
			fmt.Fprintln(w, b.String())
			continue
		}
		var loose any
		dec := json.NewDecoder(bytes.NewReader(v.raw))
		dec.UseNumber()
		if err := dec.Decode(&loose); err != nil {
			return err
		}
		b.Reset()
		if err := t.Option("missingkey=error").Execute(&b, loose); err != nil {
			return failure.Hint(fmt.Errorf("cannot apply --format: %w", err), "leave out -f to see every key")
		}
		fmt.Fprintln(w, b.String())
	}
	return nil
}

// inspect finds an object by name among the types, in Docker's order; platform
// is for images alone.
func inspect(ctx context.Context, c *client.Client, kind, name string, size bool, platform string) (inspected, error) {
	var last error
	for _, try := range []struct {
		kind, path string
		typed      any
	}{
		{"container", "/containers/" + url.PathEscape(name) + "/json", &container.InspectResponse{}},
		{"image", "/images/" + name + "/json", &image.InspectResponse{}},
		{"volume", "/volumes/" + url.PathEscape(name), &volume.Volume{}},
		{"network", "/networks/" + url.PathEscape(name), &network.Inspect{}},
	} {
		if kind != "" && kind != try.kind {
			continue
		}
		var v json.RawMessage
		var q url.Values
		if size && try.kind == "container" {
			q = url.Values{"size": {"1"}}
		}
		if platform != "" {
			q = url.Values{}
			if err := client.Platforms(q, "platform", []string{platform}); err != nil {
				return inspected{}, err
			}
		}
		err := c.Do(ctx, http.MethodGet, try.path, q, nil, &v)
		if err == nil {
			return inspected{v, try.typed}, nil
		}
		if kind != "" || !client.IsNotFound(err) {
			return inspected{}, err
		}
		last = err
	}
	if last == nil {
		return inspected{}, fmt.Errorf("cannot inspect type %q: it must be container, image, volume or network", kind)
	}
	return inspected{}, fmt.Errorf("no such object: %s", name)
}
