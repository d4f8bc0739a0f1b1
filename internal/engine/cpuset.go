package engine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"proa/internal/sys/cgroup"
)

// maxCPUs bounds a list, so that "1-9223372036854775807" costs no memory
// (CVE-2018-20699 of Docker, which has the same figure).
const maxCPUs = 8192

// checkCpusets refuses CPUs and memory nodes that the host does not have, with
// Docker's messages. The host is only asked when something is wanted.
func checkCpusets(cpus, mems string) error {
	if cpus == "" && mems == "" {
		return nil
	}
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	haveCPUs, haveMems, err := host.Cpuset()
	if err != nil {
		return err
	}
	if haveCPUs == "" {
		return invalid("cannot honour CpusetCpus and CpusetMems: this host has no cpuset control group")
	}
	for _, c := range []struct{ field, want, have, what string }{
		{"cpus", cpus, haveCPUs, "CPUs"},
		{"mems", mems, haveMems, "memory nodes"},
	} {
		want, err := parseCpuset(c.want)
		if err != nil {
			return invalid("Invalid value %s for cpuset %s: %w", c.want, c.field, err)
		}
		have, err := parseCpuset(c.have)
		if err != nil {
			return fmt.Errorf("cannot read which %s the host has: %w", c.what, err)
		}
		for n := range want {
			if !have[n] {
				return invalid("Requested %s are not available - requested %s, available: %s", c.what, c.want, c.have)
			}
		}
	}
	return nil
}

// parseCpuset reads "0-3,7" of cpuset(7), without its other forms, as Docker does.
func parseCpuset(list string) (map[int]bool, error) {
	out := map[int]bool{}
	if list == "" {
		return out, nil
	}
	for part := range strings.SplitSeq(list, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 63)
		b, err2 := strconv.ParseUint(hi, 10, 63)
		if errors.Is(err1, strconv.ErrRange) || errors.Is(err2, strconv.ErrRange) || err1 == nil && err2 == nil && max(a, b) > maxCPUs {
			return nil, fmt.Errorf("value of out range, maximum is %d", maxCPUs)
		}
		if err1 != nil || err2 != nil || b < a {
			return nil, fmt.Errorf("invalid format: %s", list)
		}
		for n := a; n <= b; n++ {
			out[int(n)] = true
		}
	}
	return out, nil
}
