package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"proa/internal/client"
)

// updateFlags are limits as they were given; "" is left as it is.
type updateFlags struct {
	memory, swap, reservation, cpus, restart string
	pids                                     int64
	res                                      container.Resources
}

func (a *app) updateCmd() *cobra.Command {
	var f updateFlags
	cmd := &cobra.Command{Use: "update [flags] CONTAINER...", Short: "Change limits and the restart policy of containers", Args: cobra.MinimumNArgs(1)}
	s := cmd.Flags()
	s.StringVarP(&f.memory, "memory", "m", "", "memory limit (128m, 2g)")
	s.StringVar(&f.swap, "memory-swap", "", "limit of memory and swap together; -1 is unlimited")
	s.StringVar(&f.reservation, "memory-reservation", "", "memory that is kept for it under pressure")
	s.StringVar(&f.cpus, "cpus", "", "number of CPUs (1.5)")
	s.Int64VarP(&f.res.CPUShares, "cpu-shares", "c", 0, "relative CPU weight")
	s.Int64Var(&f.res.CPUPeriod, "cpu-period", 0, "CFS period in microseconds")
	s.Int64Var(&f.res.CPUQuota, "cpu-quota", 0, "CFS quota in microseconds")
	s.StringVar(&f.res.CpusetCpus, "cpuset-cpus", "", "CPUs it may use (0-1,3)")
	s.StringVar(&f.res.CpusetMems, "cpuset-mems", "", "memory nodes it may use")
	s.Int64Var(&f.pids, "pids-limit", 0, "limit of processes and threads; -1 is unlimited")
	s.StringVar(&f.restart, "restart", "", "restart policy: no, on-failure[:N], always, unless-stopped")
	refuseFlag(s, "blkio-weight", "limits of block devices are not supported")
	refuseFlag(s, "cpu-rt-period", "real-time scheduling is not supported")
	refuseFlag(s, "cpu-rt-runtime", "real-time scheduling is not supported")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u, err := f.config(cmd.Flags())
		if err != nil {
			return err
		}
		c, err := a.client(cmd.Context())
		if err != nil {
			return err
		}
		return a.update(cmd.Context(), c, u, args)
	}
	return cmd
}

func (a *app) update(ctx context.Context, c *client.Client, u container.UpdateConfig, args []string) error {
	return a.each(args, func(id string) error {
		warnings, err := c.ContainerUpdate(ctx, id, u)
		for _, w := range warnings {
			fmt.Fprintln(a.err, "warning:", w)
		}
		return err
	})
}

func (f *updateFlags) config(s *pflag.FlagSet) (u container.UpdateConfig, err error) {
	given := false
	s.Visit(func(flag *pflag.Flag) { given = given || flag.Name != "host" })
	if !given {
		return u, errors.New("you must provide one or more flags when using this command")
	}
	u.Resources = f.res
	for _, b := range []struct {
		flag, value string
		into        *int64
	}{{"--memory", f.memory, &u.Memory}, {"--memory-swap", f.swap, &u.MemorySwap}, {"--memory-reservation", f.reservation, &u.MemoryReservation}} {
		if b.value == "-1" && b.into == &u.MemorySwap {
			*b.into = -1
		} else if b.value != "" {
			if *b.into, err = units.RAMInBytes(b.value); err != nil {
				return u, fmt.Errorf("cannot read %s %q: it must be a size such as 128m or 2g", b.flag, b.value)
			}
		}
	}
	if f.cpus != "" {
		n, err := strconv.ParseFloat(f.cpus, 64)
		if err != nil || n <= 0 || n > 1<<20 {
			return u, fmt.Errorf("cannot read --cpus %q: it must be a positive number such as 1.5", f.cpus)
		}
		u.NanoCPUs = int64(math.Round(n * 1e9))
	}
	if s.Changed("pids-limit") {
		u.PidsLimit = &f.pids
	}
	if f.restart != "" {
		u.RestartPolicy, err = parseRestart(f.restart)
	}
	return u, err
}
