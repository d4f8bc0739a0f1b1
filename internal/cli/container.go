package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sort"
	"strings"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
	"proa/internal/filters"
)

// many is a command that does one thing to each named container.
func (a *app) many(use, short string, do func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " CONTAINER...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return a.each(args, func(id string) error { return do(ctx, c, id) })
		}),
	}
}

func (a *app) startCmd() *cobra.Command {
	var attach, interactive bool
	cmd := a.many("start", "Start containers that were made or have ended", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerStart(ctx, id)
	})
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "show its output and wait for its end")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "connect standard input")
	plain := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !attach && !interactive {
			return plain(cmd, args)
		}
		if len(args) != 1 {
			return errors.New("cannot attach to more than one container")
		}
		c, err := a.client(cmd.Context())
		if err != nil {
			return err
		}
		return a.attachTo(context.WithoutCancel(cmd.Context()), c, args[0], interactive, true, "ctrl-p,ctrl-q", true)
	}
	return cmd
}

func (a *app) attachCmd() *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	cmd := &cobra.Command{
		Use: "attach CONTAINER", Short: "Connect to a running container's main process", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			return a.attachTo(context.WithoutCancel(cmd.Context()), c, args[0], !noStdin, false, keys, sigProxy)
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not connect standard input")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the process")
	cmd.Flags().StringVar(&keys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave a terminal")
	return cmd
}

// attachTo joins the main process, starting it first where asked.
func (a *app) attachTo(ctx context.Context, c *client.Client, id string, stdin, start bool, detachKeys string, sigProxy bool) error {
	keys, err := parseDetachKeys(detachKeys)
	if err != nil {
		return err
	}
	info, err := c.ContainerInspect(ctx, id)
	if err != nil {
		return err
	}
	if !start && !info.State.Running {
		return failure.Hint(fmt.Errorf("cannot attach to %q: it is not running", id), "proa start -a "+id)
	}
	s := &session{
		app: a, c: c, tty: info.Config.Tty, keys: keys,
		stdin: stdin && info.Config.OpenStdin, stdout: true, stderr: true,
		resize: func(rows, cols int) { _ = c.ContainerResize(ctx, info.ID, rows, cols) },
	}
	conn, err := c.ContainerAttach(ctx, info.ID, s.stdin, true, true, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	cond := container.WaitConditionNotRunning
	if start {
		cond = container.WaitConditionNextExit
		if info.HostConfig.AutoRemove {
			cond = container.WaitConditionRemoved
		}
	}
	wait, err := c.ContainerWait(ctx, info.ID, cond)
	if err != nil {
		return err
	}
	if sigProxy {
		defer a.forwardSignals(func(sig string) { _ = c.ContainerKill(ctx, info.ID, sig) }, s.tty)()
	}
	if err := s.begin(conn); err != nil {
		return err
	}
	defer s.restore()
	if start {
		if err := c.ContainerStart(ctx, info.ID); err != nil {
			s.restore()
			return startFailed(err)
		}
	}
	s.sizeTerminal()
	detached, err := s.end()
	s.restore()
	if detached || err != nil {
		return err
	}
	r, err := wait()
	if err != nil {
		return err
	}
	if r.StatusCode != 0 {
		return failure.Exit(int(r.StatusCode), nil)
	}
	return nil
}

func stopFlags(cmd *cobra.Command) func() client.StopOptions {
	var signal string
	var timeout int
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "signal to send first")
	cmd.Flags().IntVarP(&timeout, "time", "t", 0, "seconds until it is killed (default: its own, 10); -1 waits for ever")
	cmd.Flags().IntVar(&timeout, "timeout", 0, "same as --time")
	_ = cmd.Flags().MarkHidden("timeout")
	return func() client.StopOptions {
		o := client.StopOptions{Signal: signal}
		if cmd.Flags().Changed("time") || cmd.Flags().Changed("timeout") {
			o.Timeout = &timeout
		}
		return o
	}
}

func (a *app) stopCmd() *cobra.Command {
	var opts func() client.StopOptions
	cmd := a.many("stop", "Ask containers to end, and end them after a while", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerStop(ctx, id, opts())
	})
	opts = stopFlags(cmd)
	return cmd
}

func (a *app) restartCmd() *cobra.Command {
	var opts func() client.StopOptions
	cmd := a.many("restart", "Stop and start containers", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerRestart(ctx, id, opts())
	})
	opts = stopFlags(cmd)
	return cmd
}

func (a *app) killCmd() *cobra.Command {
	var signal string
	cmd := a.many("kill", "Send a signal to containers", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerKill(ctx, id, signal)
	})
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal by name or number")
	return cmd
}

func (a *app) pauseCmd() *cobra.Command {
	return a.many("pause", "Freeze every process of containers", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerPause(ctx, id)
	})
}

func (a *app) unpauseCmd() *cobra.Command {
	return a.many("unpause", "Let frozen containers go on", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerUnpause(ctx, id)
	})
}

func (a *app) rmCmd() *cobra.Command {
	var force, volumes bool
	cmd := a.many("rm", "Remove containers and what they wrote", func(ctx context.Context, c *client.Client, id string) error {
		err := c.ContainerRemove(ctx, id, force, volumes)
		if force && client.IsNotFound(err) {
			return nil
		}
		return err
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill a running one first")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove its anonymous volumes as well")
	return cmd
}

func (a *app) renameCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Give a container another name", Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return c.ContainerRename(ctx, args[0], args[1])
		}),
	}
}

func (a *app) waitCmd() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait for containers to end and print their exit codes", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			failed := false
			for _, id := range args {
				wait, err := c.ContainerWait(ctx, id, container.WaitConditionNotRunning)
				var r container.WaitResponse
				if err == nil {
					r, err = wait()
				}
				if err != nil {
					failure.Report(a.err, "proa", err)
					failed = true
					continue
				}
				fmt.Fprintln(a.out, r.StatusCode)
			}
			if failed {
				return failure.Exit(1, nil)
			}
			return nil
		}),
	}
}

func (a *app) logsCmd() *cobra.Command {
	var follow, timestamps bool
	var tail, since, until string
	cmd := &cobra.Command{Use: "logs CONTAINER", Short: "Show what a container wrote", Args: cobra.ExactArgs(1)}
	fl := cmd.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on as more comes")
	fl.BoolVarP(&timestamps, "timestamps", "t", false, "put the time before each line")
	fl.StringVarP(&tail, "tail", "n", "all", "number of last lines")
	fl.StringVar(&since, "since", "", "only from this time on (RFC 3339, unix seconds, or 10m ago)")
	fl.StringVar(&until, "until", "", "only up to this time")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		info, err := c.ContainerInspect(ctx, args[0])
		if err != nil {
			return err
		}
		q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
		if follow {
			q.Set("follow", "1")
		}
		if timestamps {
			q.Set("timestamps", "1")
		}
		for k, v := range map[string]string{"since": since, "until": until} {
			if v != "" {
				t, err := unixTime(v)
				if err != nil {
					return err
				}
				q.Set(k, t)
			}
		}
		r, err := c.ContainerLogs(ctx, info.ID, q)
		if err != nil {
			return err
		}
		defer r.Close()
		if info.Config.Tty {
			_, err = io.Copy(a.out, r)
		} else {
			err = client.Demux(r, a.out, a.err)
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	return cmd
}

func (a *app) psCmd() *cobra.Command {
	var all, quiet, noTrunc, size, latest bool
	var last int
	var format string
	var wanted []string
	cmd := &cobra.Command{Use: "ps", Short: "List containers, whichever wall they are behind", Args: cobra.NoArgs}
	fl := cmd.Flags()
	fl.BoolVarP(&all, "all", "a", false, "those that do not run as well")
	fl.BoolVarP(&quiet, "quiet", "q", false, "ids only")
	fl.BoolVar(&noTrunc, "no-trunc", false, "whole ids and commands")
	fl.BoolVarP(&size, "size", "s", false, "what each wrote on disk")
	fl.BoolVarP(&latest, "latest", "l", false, "the one made last")
	fl.IntVarP(&last, "last", "n", 0, "the last N made")
	fl.StringVar(&format, "format", "", "table, json, or a Go template")
	fl.StringArrayVarP(&wanted, "filter", "f", nil, "only those that match KEY=VALUE")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		f, err := parseFilters(&filters.Containers, wanted)
		if err != nil {
			return err
		}
		if latest {
			last = 1
		}
		list, err := c.ContainerList(ctx, all || last > 0, size, last, f)
		if err != nil {
			return err
		}
		rows := make([]row, 0, len(list))
		for _, s := range list {
			rows = append(rows, containerRow(s, noTrunc))
		}
		if quiet {
			for _, r := range rows {
				fmt.Fprintln(a.out, r["ID"])
			}
			return nil
		}
		cols := []column{
			{"ID", "CONTAINER ID"}, {"Image", "IMAGE"}, {"Isolation", "WALL"}, {"Command", "COMMAND"}, {"RunningFor", "CREATED"},
			{"Status", "STATUS"}, {"Ports", "PORTS"}, {"Names", "NAMES"},
			{"State", "-STATE"}, {"Labels", "-LABELS"}, {"CreatedAt", "-CREATED AT"}, {"Networks", "-NETWORKS"}, {"Mounts", "-MOUNTS"},
		}
		sizeHeading := "-SIZE"
		if size {
			sizeHeading = "SIZE"
		}
		return printRows(a.out, format, append(cols, column{"Size", sizeHeading}), rows)
	})
	return cmd
}

func containerRow(s client.Summary, noTrunc bool) row {
	id, command := s.ID, s.Command
	if !noTrunc {
		id = shortID(id)
		if r := []rune(command); len(r) > 20 {
			command = string(r[:19]) + "…"
		}
	}
	names := make([]string, 0, len(s.Names))
	for _, n := range s.Names {
		names = append(names, strings.TrimPrefix(n, "/"))
	}
	labels := make([]string, 0, len(s.Labels))
	for k, v := range s.Labels {
		labels = append(labels, k+"="+v)
	}
	sort.Strings(labels)
	var nets, mounts []string
	if s.NetworkSettings != nil {
		for n := range s.NetworkSettings.Networks {
			nets = append(nets, n)
		}
		sort.Strings(nets)
	}
	for _, m := range s.Mounts {
		if m.Name != "" {
			mounts = append(mounts, m.Name)
		} else {
			mounts = append(mounts, m.Source)
		}
	}
	wall := s.Proa.Isolation
	if wall == "" {
		wall = "container"
	}
	image := s.Image
	if strings.HasPrefix(image, "sha256:") && !noTrunc {
		image = shortID(image)
	}
	return row{
		"ID": id, "Image": image, "Isolation": wall, "Command": fmt.Sprintf("%q", command), "RunningFor": ago(s.Created),
		"CreatedAt": unixString(s.Created), "Status": s.Status, "State": string(s.State), "Ports": portList(s.Ports),
		"Names": strings.Join(names, ","), "Labels": strings.Join(labels, ","), "Networks": strings.Join(nets, ","), "Mounts": strings.Join(mounts, ","),
		"Size": humanSize(s.SizeRw) + " (virtual " + humanSize(s.SizeRootFs) + ")",
	}
}

// portList is Docker's column: 0.0.0.0:8080->80/tcp, 443/tcp.
func portList(ports []container.PortSummary) string {
	out := make([]string, 0, len(ports))
	for _, p := range ports {
		s := fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)
		if p.PublicPort != 0 {
			ip := p.IP.String()
			if p.IP.Is6() {
				ip = "[" + ip + "]"
			}
			s = fmt.Sprintf("%s:%d->%s", ip, p.PublicPort, s)
		}
		out = append(out, s)
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

func (a *app) portCmd() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTO]]", Short: "Show where a container's ports are published", Args: cobra.RangeArgs(1, 2),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			info, err := c.ContainerInspect(ctx, args[0])
			if err != nil {
				return err
			}
			var lines []string
			for port, bindings := range info.NetworkSettings.Ports {
				if len(args) == 2 && port.String() != args[1] && port.String() != args[1]+"/tcp" {
					continue
				}
				for _, b := range bindings {
					line := b.HostIP.String() + ":" + b.HostPort
					if b.HostIP.Is6() {
						line = "[" + b.HostIP.String() + "]:" + b.HostPort
					}
					if len(args) == 1 {
						line = port.String() + " -> " + line
					}
					lines = append(lines, line)
				}
			}
			if len(args) == 2 && len(lines) == 0 {
				return fmt.Errorf("port %s of %s is not published", args[1], args[0])
			}
			sort.Strings(lines)
			for _, l := range lines {
				fmt.Fprintln(a.out, l)
			}
			return nil
		}),
	}
}

func (a *app) topCmd() *cobra.Command {
	return &cobra.Command{
		Use: "top CONTAINER [PS OPTIONS]", Short: "List the processes of a container", Args: cobra.MinimumNArgs(1), DisableFlagParsing: true,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			top, err := c.ContainerTop(ctx, args[0], strings.Join(args[1:], " "))
			if err != nil {
				return err
			}
			cols := make([]column, 0, len(top.Titles))
			for _, t := range top.Titles {
				cols = append(cols, column{strings.Map(letters, t), t})
			}
			rows := make([]row, 0, len(top.Processes))
			for _, p := range top.Processes {
				r := row{}
				for i, v := range p {
					if i < len(cols) {
						r[cols[i].key] = v
					}
				}
				rows = append(rows, r)
			}
			return printRows(a.out, "", cols, rows)
		}),
	}
}

// letters keeps what a template key may hold.
func letters(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
		return r
	}
	return 'x'
}

func (a *app) statsCmd() *cobra.Command {
	var all, noStream, noTrunc bool
	var format string
	cmd := &cobra.Command{Use: "stats [CONTAINER...]", Short: "Show what containers use, live"}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that do not run as well")
	cmd.Flags().BoolVar(&noStream, "no-stream", false, "one reading only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "whole ids")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a Go template")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		for {
			ids := args
			if len(ids) == 0 {
				list, err := c.ContainerList(ctx, all, false, 0, nil)
				if err != nil {
					return err
				}
				for _, s := range list {
					ids = append(ids, s.ID)
				}
			}
			rows, err := readStats(ctx, c, ids, noTrunc)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if !noStream && isStdoutTerminal(a.out) {
				fmt.Fprint(a.out, "\033[H\033[2J")
			}
			if err := printRows(a.out, format, []column{
				{"ID", "CONTAINER ID"}, {"Name", "NAME"}, {"CPUPerc", "CPU %"}, {"MemUsage", "MEM USAGE / LIMIT"}, {"MemPerc", "MEM %"},
				{"NetIO", "NET I/O"}, {"BlockIO", "BLOCK I/O"}, {"PIDs", "PIDS"},
			}, rows); err != nil || noStream {
				return err
			}
		}
	})
	return cmd
}

// readStats asks for all readings at once; the engine takes one second for
// each to have a CPU figure.
func readStats(ctx context.Context, c *client.Client, ids []string, noTrunc bool) ([]row, error) {
	rows, errs := make([]row, len(ids)), make([]error, len(ids))
	done := make(chan struct{})
	for i, id := range ids {
		go func() {
			defer func() { done <- struct{}{} }()
			r, err := c.ContainerStats(ctx, id, false)
			if err != nil {
				errs[i] = err
				return
			}
			defer r.Close()
			var s container.StatsResponse
			if errs[i] = json.NewDecoder(r).Decode(&s); errs[i] == nil {
				rows[i] = statsRow(s, noTrunc)
			}
		}()
	}
	for range ids {
		<-done
	}
	return rows, errors.Join(errs...)
}

func statsRow(s container.StatsResponse, noTrunc bool) row {
	cpu := 0.0
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	if host := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage); host > 0 && used > 0 {
		cpu = used / host * float64(max(1, s.CPUStats.OnlineCPUs)) * 100
	}
	mem := s.MemoryStats.Usage
	for _, k := range []string{"total_inactive_file", "inactive_file"} {
		if v, ok := s.MemoryStats.Stats[k]; ok {
			if v < mem {
				mem -= v
			}
			break
		}
	}
	perc := 0.0
	if s.MemoryStats.Limit > 0 {
		perc = float64(mem) / float64(s.MemoryStats.Limit) * 100
	}
	var rx, tx, rd, wr uint64
	for _, n := range s.Networks {
		rx, tx = rx+n.RxBytes, tx+n.TxBytes
	}
	for _, b := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(b.Op) {
		case "read":
			rd += b.Value
		case "write":
			wr += b.Value
		}
	}
	id := s.ID
	if !noTrunc {
		id = shortID(id)
	}
	return row{
		"ID": id, "Container": id, "Name": strings.TrimPrefix(s.Name, "/"), "CPUPerc": fmt.Sprintf("%.2f%%", cpu),
		"MemUsage": units.BytesSize(float64(mem)) + " / " + units.BytesSize(float64(s.MemoryStats.Limit)), "MemPerc": fmt.Sprintf("%.2f%%", perc),
		"NetIO": humanSize(int64(rx)) + " / " + humanSize(int64(tx)), "BlockIO": humanSize(int64(rd)) + " / " + humanSize(int64(wr)),
		"PIDs": fmt.Sprint(s.PidsStats.Current),
	}
}

// containerCmd holds Docker's long forms.
func (a *app) containerCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "container", Short: "Containers, by the long names of the commands"}
	ls := a.psCmd()
	ls.Use, ls.Aliases = "ls", []string{"list", "ps"}
	cmd.AddCommand(a.runCmd(), a.createCmd(), a.startCmd(), a.stopCmd(), a.restartCmd(), a.killCmd(), a.pauseCmd(), a.unpauseCmd(), a.rmCmd(),
		a.renameCmd(), a.waitCmd(), a.attachCmd(), a.execCmd(), a.logsCmd(), a.topCmd(), a.statsCmd(), a.portCmd(), ls,
		a.cpCmd(), a.commitCmd(), a.diffCmd(), a.exportCmd(),
		a.inspectOf("container", "inspect"), a.pruneCmd("containers that do not run", &filters.ContainerPrune, func(ctx context.Context, c *client.Client, f client.Filters, _ bool) ([]string, uint64, error) {
			r, err := c.ContainerPrune(ctx, f)
			return r.ContainersDeleted, r.SpaceReclaimed, err
		}, false))
	return cmd
}
