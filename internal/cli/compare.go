package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	units "github.com/docker/go-units"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/compare"
	"proa/internal/failure"
)

func (a *app) compareCmd() *cobra.Command {
	var memory, format string
	var against []string
	o := compare.Options{}
	cmd := &cobra.Command{
		Use:   "compare [flags] IMAGE [-- COMMAND [ARG...]]",
		Short: "Race an image as a container and as a virtual machine, and show what each costs",
		Long: `Runs COMMAND (or the image's own) in turn behind both walls, with the same limits, and
prints one table and one sentence. Every figure is measured in these runs. Nothing stays behind.`,
		Example: "  proa compare IMAGE -- sh -c 'make -j2'\n  proa compare --runs 9 --memory 1g --cpus 1 IMAGE -- ./bench",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return failure.Exit(125, failure.Hint(errors.New("no image given"), "proa compare [flags] IMAGE [-- COMMAND]; `proa images` lists what is here"))
			}
			return nil
		},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		o.Image, o.Command = args[0], args[1:]
		if o.Memory, err = units.RAMInBytes(memory); err != nil || o.Memory <= 0 {
			return failure.Exit(125, fmt.Errorf("cannot read --memory %q: it must be a size such as 128m or 2g", memory))
		}
		switch {
		case o.Runs < 1:
			return failure.Exit(125, fmt.Errorf("cannot compare with --runs %d: at least one run is needed", o.Runs))
		case o.CPUs < 0:
			return failure.Exit(125, fmt.Errorf("cannot compare with --cpus %v: it must not be negative", o.CPUs))
		case format != "table" && format != "json":
			return failure.Exit(125, fmt.Errorf("cannot print --format %q: it must be table or json", format))
		}
		for _, host := range against {
			c, err := client.New(host)
			if err != nil {
				return failure.Exit(125, err)
			}
			o.Against = append(o.Against, c)
		}
		c, err := a.client(cmd.Context())
		if err != nil {
			return failure.Exit(125, err)
		}
		if err := a.imageForCompare(cmd.Context(), c, o.Image); err != nil {
			return failure.Exit(125, err)
		}
		return a.compare(cmd.Context(), c, o, format)
	}
	f := cmd.Flags()
	f.IntVar(&o.Runs, "runs", 5, "runs of each contender")
	f.StringVarP(&memory, "memory", "m", "512m", "memory limit of each (128m, 2g); of a VM the guest's memory")
	f.Float64Var(&o.CPUs, "cpus", 0, "number of CPUs of each (1.5); 0: all of the host")
	f.StringVar(&format, "format", "table", "table or json")
	f.StringArrayVar(&against, "against", nil, "race also the engine at this HOST, docker or another proad (unix:///run/docker.sock)")
	return cmd
}

// imageForCompare fetches an image that is not here, as a run does.
func (a *app) imageForCompare(ctx context.Context, c *client.Client, image string) error {
	err := c.Do(ctx, http.MethodGet, "/images/"+image+"/json", nil, nil, nil)
	if !client.IsNotFound(err) {
		return err
	}
	fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", familiarTag(image))
	return a.pullFor(ctx, c, &runFlags{}, image)
}

// compare runs the race; ctrl-C ends it and removes what it made.
func (a *app) compare(ctx context.Context, c *client.Client, o compare.Options, format string) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, syscall.SIGINT)
	defer signal.Stop(interrupts)
	show := &progress{}
	if f, ok := a.err.(*os.File); ok && isTerminal(f) {
		show.w = f
	}
	go func() {
		select {
		case <-interrupts:
			signal.Stop(interrupts) // a second one ends the program
			stop(errInterrupted)
			show.line("interrupted; what was made is being removed")
		case <-ctx.Done():
		}
	}()
	o.Progress = func(done, total int, next string) { show.line(fmt.Sprintf("%3d%%  %s", done*100/max(1, total), next)) }
	report, err := compare.Race(ctx, c, o)
	show.clear()
	switch {
	case errors.Is(err, errInterrupted):
		return failure.Exit(130, err)
	case err != nil:
		return startFailed(err)
	}
	if format == "json" {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(report)
	}
	return report.Table(a.out)
}

var errInterrupted = errors.New("interrupted")

// progress is one line of a terminal that is written over and over. Without a
// terminal it is silent.
type progress struct {
	mu sync.Mutex
	w  io.Writer
}

func (p *progress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil {
		fmt.Fprint(p.w, "\r\x1b[K"+text)
	}
}

// clear leaves nothing of the line, and no line comes after it.
func (p *progress) clear() {
	p.line("")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w = nil
}
