package engine

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
)

// Every field of Docker's HostConfig has a treatment, and every treatment a field.
func TestEveryKnobIsTreated(t *testing.T) {
	fields := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[container.HostConfig]()) {
		if f.Anonymous {
			continue
		}
		fields[f.Name] = true
		k, ok := knobs[f.Name]
		if !ok {
			t.Errorf("HostConfig.%s is neither honoured nor refused: decide in knobs", f.Name)
		}
		if k.do != honour && k.why == "" {
			t.Errorf("HostConfig.%s is not honoured and does not say why", f.Name)
		}
	}
	for name := range knobs {
		if !fields[name] {
			t.Errorf("knobs names %s, which HostConfig does not have", name)
		}
	}
}

// A refused field is refused by name as soon as it is set to anything.
func TestRefusedKnobsAreRefusedByName(t *testing.T) {
	for name, k := range knobs {
		if k.do != refuse {
			continue
		}
		var h container.HostConfig
		f := reflect.ValueOf(&h).Elem().FieldByName(name)
		switch f.Kind() {
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"size": "1G"}))
		case reflect.String:
			f.SetString("container:x")
		case reflect.Int64:
			f.SetInt(1)
		case reflect.Uint16, reflect.Uint64:
			f.SetUint(1)
		default:
			t.Fatalf("%s: the test does not know kind %s", name, f.Kind())
		}
		err := checkKnobs(&h)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s set: %v", name, err)
		}
	}
}

// What clients send when nothing was asked for must pass: docker sends empty
// lists and -1.
func TestWhatDockerSendsByDefaultPasses(t *testing.T) {
	minus, no := int64(-1), false
	h := &container.HostConfig{
		NetworkMode: "default",
		Resources: container.Resources{
			BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{}, DeviceRequests: nil, Devices: []container.DeviceMapping{},
			MemorySwappiness: &minus, OomKillDisable: &no,
		},
		StorageOpt: map[string]string{}, Links: []string{},
	}
	if err := checkHost(&container.Config{}, withDefaults(h, "container"), "container"); err != nil {
		t.Error(err)
	}
	if err := checkHost(&container.Config{}, withDefaults(h, "vm"), "vm"); err != nil {
		t.Errorf("vm: %v", err)
	}
}

func TestHostConfigRefusals(t *testing.T) {
	yes, many := true, int64(60)
	for name, h := range map[string]*container.HostConfig{
		"Minimum memory limit":          {Resources: container.Resources{Memory: 1 << 20}},
		"memoryswap limit should be":    {Resources: container.Resources{Memory: 64 << 20, MemorySwap: 32 << 20}},
		"always set the Memory limit":   {Resources: container.Resources{MemorySwap: 32 << 20}},
		"Nano CPUs cannot be used":      {Resources: container.Resources{NanoCPUs: 1e9, CPUQuota: 5000}},
		"range of CPUs":                 {Resources: container.Resources{NanoCPUs: 1e15}},
		"OomKillDisable":                {Resources: container.Resources{OomKillDisable: &yes}},
		"MemorySwappiness":              {Resources: container.Resources{MemorySwappiness: &many}},
		"cpuset cpus":                   {Resources: container.Resources{CpusetCpus: "0-x"}},
		"cgroup parent":                 {Resources: container.Resources{CgroupParent: "/a/../../b"}},
		"AutoRemove":                    {AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}},
		"unknown policy":                {RestartPolicy: container.RestartPolicy{Name: "sometimes"}},
		"empty string is not permitted": {Annotations: map[string]string{"": "x"}},
		"invalid network mode":          {NetworkMode: "container:"},
		"invalid PID mode":              {PidMode: "bogus"},
		"unknown capability":            {CapAdd: []string{"NOSUCH"}},
		`plugin "syslog" not found`:     {LogConfig: container.LogConfig{Type: "syslog"}},
		"max-size":                      {LogConfig: container.LogConfig{Config: map[string]string{"max-size": "many"}}},
		"unknown log opt":               {LogConfig: container.LogConfig{Config: map[string]string{"cache-disabled": "x"}}},
		"separate kernel namespace":     {Sysctls: map[string]string{"kernel.panic": "1"}},
		"host's network namespace":      {NetworkMode: "host", Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		"AppArmor":                      {SecurityOpt: []string{"apparmor=docker-default"}},
		"SELinux":                       {SecurityOpt: []string{"label=level:s0"}},
		"invalid --security-opt":        {SecurityOpt: []string{"nonsense"}},
		"bad format for add-host":       {ExtraHosts: []string{"nocolon"}},
		"invalid IP address":            {ExtraHosts: []string{"a:not-an-ip"}},
		"invalid ulimit type":           {Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "x"}}}},
		"ulimit soft limit":             {Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 2, Hard: 1}}}},
		"SHM size":                      {ShmSize: -1},
		"oom score adj":                 {OomScoreAdj: 1001},
	} {
		err := checkHost(&container.Config{}, withDefaults(h, "container"), "container")
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q: %v", name, err)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		runtime, isolation string
		want, wrong        string
	}{
		{"", "", "container", ""},
		{"", "default", "container", ""},
		{"vm", "", "vm", ""},
		{"vm", "default", "vm", ""},
		{"vm", "vm", "vm", ""},
		{"", "vm", "vm", ""},
		{"", "process", "container", ""},
		{"container", "vm", "", "conflicting options"},
		{"vm", "container", "", "conflicting options"},
		{"runsc", "", "", "unknown or invalid runtime name: runsc (known: container, vm)"},
		{"", "hyperv", "", "invalid isolation"},
	} {
		got, err := kindOf(&container.HostConfig{Runtime: c.runtime, Isolation: container.Isolation(c.isolation)}, "")
		if string(got) != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("runtime %q, isolation %q: %q, %v", c.runtime, c.isolation, got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	def, _ := capSet(nil, nil, false)
	if n := len(capNames(def)); n != 11 {
		t.Errorf("%d default capabilities: %v", n, capNames(def))
	}
	for _, missing := range []string{"CAP_MKNOD", "CAP_NET_RAW", "CAP_AUDIT_WRITE", "CAP_SYS_ADMIN"} {
		if strings.Contains(strings.Join(capNames(def), " "), missing) {
			t.Errorf("%s is among the default ones", missing)
		}
	}
	for _, c := range []struct {
		add, drop  []string
		privileged bool
		want       string
	}{
		{nil, []string{"ALL"}, false, ""},
		{[]string{"cap_net_raw"}, []string{"all"}, false, "CAP_NET_RAW"},
		{nil, []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT"}, false, "CAP_KILL"},
	} {
		got, err := capSet(c.add, c.drop, c.privileged)
		if s := strings.Join(capNames(got), " "); err != nil || s != c.want {
			t.Errorf("+%v -%v: %q, %v", c.add, c.drop, s, err)
		}
	}
	if all, _ := capSet([]string{"ALL"}, []string{"SYS_ADMIN"}, false); all != allCaps&^(1<<21) {
		t.Errorf("ALL without SYS_ADMIN: %x", all)
	}
	if _, err := capSet([]string{"ALL"}, []string{"ALL"}, false); err == nil {
		t.Error("ALL added and dropped")
	}
}
