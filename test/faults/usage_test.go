package faults

import (
	"strings"
	"testing"
)

// The arguments of docker top are honoured: titles and lines are those of the
// host's ps, which Docker runs (procps).
func testTop(t *testing.T, s *sides) {
	s.run(t, "topped", `{"Image":"bb:1","Cmd":["sleep","100"]}`)
	type list struct {
		Titles    []string
		Processes [][]string
	}
	for _, args := range []string{"", "-ef", "aux", "-o pid,comm", "-o pid,ppid,args", "-eo pid,nlwp,ni,stat,cmd", "ax", "-e", "-o pid,user=WHO"} {
		p, d := s.both(t, "GET", "/containers/topped/top?ps_args="+escape(args), "")
		var got, want list
		p.decode(t, &got)
		d.decode(t, &want)
		if strings.Join(got.Titles, " ") != strings.Join(want.Titles, " ") || len(got.Processes) != len(want.Processes) {
			t.Errorf("top %s: %s; dockerd: %s", args, p.body, d.body)
		}
		for i, title := range got.Titles {
			switch title {
			case "COMMAND", "CMD", "NLWP", "NI", "WHO", "USER", "TTY":
				if a, b := got.Processes[0][i], want.Processes[0][i]; a != b {
					t.Errorf("top %s: %s is %s; dockerd: %s", args, title, a, b)
				}
			}
		}
	}
	for _, args := range []string{"-o comm", "-o pid,ppid=PID", "-o pid,nosuch", "--nosuch"} {
		p, d := s.both(t, "GET", "/containers/topped/top?ps_args="+escape(args), "")
		if p.status != 400 || d.status < 400 {
			t.Errorf("top %s: %d %s; dockerd: %d %s", args, p.status, p.body, d.status, d.body)
		}
	}
	for name, cli := range s.clis() {
		if r := cli("top", "topped", "-o", "pid,comm"); r.Code != 0 || !strings.HasPrefix(r.Stdout, "PID") || strings.Contains(r.Stdout, "TTY") {
			t.Errorf("%s: top -o pid,comm: %s%s", name, r.Stdout, r.Stderr)
		}
	}
}

// Stats have the card of a container that has one, and no time of a reading
// that was not made.
func testStats(t *testing.T, s *sides) {
	type sample struct {
		Read     string
		Networks map[string]any
		CPU      struct {
			Usage struct {
				Per []uint64 `json:"percpu_usage"`
			} `json:"cpu_usage"`
		} `json:"cpu_stats"`
	}
	for _, mode := range []string{"none", "host", "bridge", "container:counted-bridge"} {
		name := "counted-" + strings.ReplaceAll(mode, ":", "-")
		s.made(t, name, `{"Image":"bb:1","Cmd":["sleep","100"],"HostConfig":{"NetworkMode":"`+mode+`"}}`)
		for _, state := range []string{"created", "running", "stopped"} {
			switch state {
			case "running":
				s.both(t, "POST", "/containers/"+name+"/start", "")
			case "stopped":
				if mode == "bridge" {
					continue // the next one needs it
				}
				s.both(t, "POST", "/containers/"+name+"/kill", "")
				s.both(t, "POST", "/containers/"+name+"/wait", "")
			}
			// one-shot is of API 1.41: a single reading, without waiting for a second one.
			p, d := s.both(t, "GET", "/v1.41/containers/"+name+"/stats?stream=0&one-shot=1", "")
			var got, want sample
			p.decode(t, &got)
			d.decode(t, &want)
			const never = "0001-01-01T00:00:00Z"
			if (got.Networks == nil) != (want.Networks == nil) || (got.Read == never) != (want.Read == never) {
				t.Errorf("%s, %s: %s; dockerd: %s", mode, state, p.body, d.body)
			}
		}
	}
}

// /dev/shm is mounted from shm, as programs look for it.
func testSharedMemory(t *testing.T, s *sides) {
	for name, run := range map[string]func(...string) string{"proa": s.proa.MustDocker, "dockerd": s.docker.MustDocker} {
		out := run("run", "--rm", "--shm-size", "1m", "--tmpfs", "/scratch", "bb:1", "sh", "-c", "grep -e /dev/shm -e /scratch /proc/mounts | cut -d' ' -f1-3")
		if out != "shm /dev/shm tmpfs\ntmpfs /scratch tmpfs" {
			t.Errorf("%s: %q", name, out)
		}
	}
}

// A container with a limit sees the four control groups that the JVM wants to
// find before it believes any limit, each with the container's own values, on a
// host with version 1 control groups; and stats count each CPU there.
func testLimitsInside(t *testing.T, s *sides) {
	if out := s.proa.MustProa("run", "--rm", "bb:1", "sh", "-c", "test -e /sys/fs/cgroup/cgroup.controllers && echo v2 || echo v1"); out == "v2" {
		return // one tree, which holds all
	}
	for _, limits := range []string{`"Memory":67108864`, `"NanoCpus":500000000`, `"CpusetCpus":"0"`, `"CpuShares":512`} {
		s.run(t, "limited", `{"Image":"bb:1","Cmd":["sleep","100"],"HostConfig":{`+limits+`}}`)
		const look = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus; grep -cx 1 cpuacct/cgroup.procs"
		got, want := s.proa.MustDocker("exec", "limited", "sh", "-c", look), s.docker.MustDocker("exec", "limited", "sh", "-c", look)
		if got != want {
			t.Errorf("%s: %q; dockerd: %q", limits, got, want)
		}
		p, d := s.both(t, "GET", "/v1.41/containers/limited/stats?stream=0&one-shot=1", "")
		if !strings.Contains(p.body, `"percpu_usage":[`) || !strings.Contains(d.body, `"percpu_usage":[`) {
			t.Errorf("%s: %s; dockerd: %s", limits, p.body, d.body)
		}
		s.both(t, "DELETE", "/containers/limited?force=1", "")
	}
}
