package engine

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The spec of a record is what its golden file says, byte for byte. After a
// wanted change: go test -run Golden -update, and read the diff.
func TestSpecGolden(t *testing.T) {
	yes, pids, mask := true, int64(50), uint32(0o027)
	for name, c := range map[string]struct {
		cfg  container.Config
		host container.HostConfig
		kind isolation.Kind
	}{
		"plain": {cfg: container.Config{Cmd: []string{"true"}}},
		"rich": {
			cfg: container.Config{
				Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"A=1"}, Tty: true, OpenStdin: true, User: "app:grp",
				WorkingDir: "/w/../x", Hostname: "box", Domainname: "example.org",
			},
			host: container.HostConfig{
				CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"CHOWN"}, SecurityOpt: []string{"no-new-privileges"}, GroupAdd: []string{"99", "wheel"},
				ReadonlyRootfs: true, AutoRemove: true, Init: &yes, ShmSize: 1 << 20, OomScoreAdj: 100, ConsoleSize: [2]uint{24, 80}, Umask: &mask,
				Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}, Tmpfs: map[string]string{"/run": "size=64k"},
				LogConfig: container.LogConfig{Config: map[string]string{"max-size": "1m", "max-file": "2"}},
				Resources: container.Resources{
					Memory: 64 << 20, NanoCPUs: 5e8, CPUShares: 512, CpusetCpus: "0", PidsLimit: &pids,
					Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 1024, Hard: -1}, {Name: "core"}},
				},
			},
		},
		"privileged": {
			cfg:  container.Config{Cmd: []string{"sh"}},
			host: container.HostConfig{Privileged: true, NetworkMode: "host", PidMode: "host", IpcMode: "host", CgroupnsMode: "host", UTSMode: "host"},
		},
		"vm": {
			cfg:  container.Config{Cmd: []string{"serve"}},
			host: container.HostConfig{Runtime: "vm", Resources: container.Resources{Memory: 256 << 20}},
			kind: isolation.VM,
		},
	} {
		t.Run(name, func(t *testing.T) {
			kind := c.kind
			if kind == "" {
				kind = isolation.Container
			}
			host := withDefaults(&c.host, kind)
			if err := checkHost(&c.cfg, host, kind); err != nil {
				t.Fatal(err)
			}
			rec := &record{ID: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", Created: time.Unix(0, 0), Config: &c.cfg, Host: host, Kind: kind}
			if c.cfg.Hostname == "" {
				c.cfg.Hostname = short(rec.ID)
			}
			rec.UserNS = kind == isolation.Container && hostUserNS(host) == ""
			p := parts{
				root: 5, upper: "/data/rw", dir: "/run/x", logPath: "/data/x-json.log", parent: "/proa", hostname: "thehost",
				network: isolation.Network{Mode: isolation.NetworkMode(host.NetworkMode)}, ids: isolation.IDMap{{Host: 1879048192, Size: 65536}},
			}
			plans, err := planMounts(&c.cfg, host, false, noOthers)
			if err != nil {
				t.Fatal(err)
			}
			rec.Mounts = plans
			for _, m := range plans {
				p.mounts = append(p.mounts, tmpfsMount(m))
			}
			spec, err := buildSpec(rec, p)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(spec, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", "spec-"+name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("the spec differs from %s:\n%s", file, got)
			}
		})
	}
}
