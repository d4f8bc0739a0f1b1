package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) inspectCmd() *cobra.Command { return a.inspectOf("", "inspect") }

// inspectOf prints everything about objects of one type, or of any type.
func (a *app) inspectOf(only, use string) *cobra.Command {
	var format, kind string
	var size bool
	cmd := &cobra.Command{
		Use: use + " NAME...", Short: "Show everything about an object as JSON", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if only != "" {
				kind = only
			}
			var values []json.RawMessage
			failed := false
			for _, name := range args {
				v, err := inspect(ctx, c, kind, name)
				if err != nil {
					failure.Report(a.err, "proa", err)
					failed = true
					continue
				}
				values = append(values, v)
			}
			if err := printInspect(a.out, format, values); err != nil {
				return err
			}
			if failed {
				return failure.Exit(1, nil)
			}
			return nil
		}),
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a Go template")
	cmd.Flags().BoolVarP(&size, "size", "s", false, "with sizes on disk")
	if only == "" {
		cmd.Flags().StringVar(&kind, "type", "", "container, image, volume or network")
	}
	return cmd
}

// inspect finds an object by name among the types, in Docker's order.
func inspect(ctx context.Context, c *client.Client, kind, name string) (json.RawMessage, error) {
	var last error
	for _, try := range []struct{ kind, path string }{
		{"container", "/containers/" + url.PathEscape(name) + "/json"},
		{"image", "/images/" + name + "/json"},
		{"volume", "/volumes/" + url.PathEscape(name)},
		{"network", "/networks/" + url.PathEscape(name)},
	} {
		if kind != "" && kind != try.kind {
			continue
		}
		var v json.RawMessage
		err := c.Do(ctx, http.MethodGet, try.path, nil, nil, &v)
		if err == nil {
			return v, nil
		}
		if kind != "" || !client.IsNotFound(err) {
			return nil, err
		}
		last = err
	}
	if last == nil {
		return nil, fmt.Errorf("cannot inspect type %q: it must be container, image, volume or network", kind)
	}
	return nil, fmt.Errorf("no such object: %s", name)
}
