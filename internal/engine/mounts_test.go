package engine

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

func noOthers(string) ([]MountPlan, error) { return nil, noSuch("x") }

func TestParseBind(t *testing.T) {
	for s, want := range map[string]MountPlan{
		"/src:/dst":                  {Type: "bind", Source: "/src", Target: "/dst", MakeSource: true},
		"/src/../x:/dst:ro,Z,rslave": {Type: "bind", Source: "/x", Target: "/dst", MakeSource: true, Readonly: true, Propagation: "rslave", Text: "ro,Z,rslave"},
		"vol:/dst:nocopy,rw":         {Type: "volume", Volume: "vol", Target: "/dst", NoCopy: true, Text: "nocopy,rw"},
		"/dst":                       {Type: "volume", Target: "/dst"},
		"/a:/b:delegated,z":          {Type: "bind", Source: "/a", Target: "/b", MakeSource: true, Text: "delegated,z"},
	} {
		got, err := parseBind(s)
		if err != nil || got.Text != want.Text || got.Type != want.Type || got.Source != want.Source || got.Target != want.Target || got.Readonly != want.Readonly ||
			got.Volume != want.Volume || got.NoCopy != want.NoCopy || got.Propagation != want.Propagation || got.MakeSource != want.MakeSource {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", ":", "/a:", ":/b", "/a:/b:ro:rw", "/a:/b:ro,rw", "/a:/b:bogus", "/a:/b:nocopy", "v:/b:rslave", "/a:/b:shared"} {
		if p, err := parseBind(s); err == nil {
			t.Errorf("%q is read as %+v", s, p)
		}
	}
}

func TestPlanMounts(t *testing.T) {
	c := &container.Config{Volumes: map[string]struct{}{"/data": {}, "/taken": {}}}
	h := &container.HostConfig{
		Binds:  []string{"/host:/taken/deep", "vol:/taken"},
		Mounts: []mount.Mount{{Type: "tmpfs", Target: "/mem", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 4096, Mode: 0o700}}},
		Tmpfs:  map[string]string{"/run": "size=1m,mode=755,exec"},
	}
	plans, err := planMounts(c, h, false, noOthers)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, p := range plans {
		targets = append(targets, p.Target)
		switch p.Target {
		case "/data":
			if !p.Anonymous || len(p.Volume) != 64 {
				t.Errorf("the image's volume: %+v", p)
			}
		case "/run":
			if p.Size != 1<<20 || p.Mode != 0o755 || p.Options != "nodev,exec,nosuid" {
				t.Errorf("tmpfs: %+v", p)
			}
		case "/mem":
			if p.Size != 4096 || p.Mode != 0o700 || p.Options != "nodev,noexec,nosuid" {
				t.Errorf("tmpfs mount: %+v", p)
			}
		}
	}
	if got := strings.Join(targets, " "); got != "/data /mem /run /taken /taken/deep" {
		t.Errorf("order: %s", got)
	}
	if vm, err := planMounts(c, &container.HostConfig{}, true, noOthers); err != nil || len(vm) != 0 {
		t.Errorf("a VM gets the image's volumes: %v, %v", vm, err)
	}
	for what, h := range map[string]*container.HostConfig{
		"Duplicate":         {Binds: []string{"/a:/x", "/b:/x/"}},
		"can't be '/'":      {Binds: []string{"/a:/x/.."}},
		"absolute":          {Tmpfs: map[string]string{"rel": ""}},
		"tmpfs option":      {Tmpfs: map[string]string{"/x": "bogus=1"}},
		"not supported":     {Mounts: []mount.Mount{{Type: "npipe", Target: "/x"}}},
		"Source":            {Mounts: []mount.Mount{{Type: "bind", Target: "/x"}}},
		"VolumeOptions":     {Mounts: []mount.Mount{{Type: "bind", Source: "/a", Target: "/x", VolumeOptions: &mount.VolumeOptions{}}}},
		"subpath":           {Mounts: []mount.Mount{{Type: "volume", Source: "v", Target: "/x", VolumeOptions: &mount.VolumeOptions{Subpath: "../y"}}}},
		"No such":           {VolumesFrom: []string{"other"}},
		"mount propagation": {Mounts: []mount.Mount{{Type: "bind", Source: "/a", Target: "/x", BindOptions: &mount.BindOptions{Propagation: "rshared"}}}},
	} {
		if _, err := planMounts(&container.Config{}, h, false, noOthers); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want %q: %v", what, err)
		}
	}
}

func TestVolumesFrom(t *testing.T) {
	other := []MountPlan{
		{Type: "volume", Volume: "v", Target: "/v", Anonymous: true},
		{Type: "bind", Source: "/b", Target: "/b"},
		{Type: "tmpfs", Target: "/t"},
	}
	h := &container.HostConfig{VolumesFrom: []string{"o:ro"}, Binds: []string{"/mine:/b"}}
	plans, err := planMounts(&container.Config{}, h, false, func(string) ([]MountPlan, error) { return other, nil })
	if err != nil || len(plans) != 2 {
		t.Fatalf("%+v, %v", plans, err)
	}
	if p := plans[0]; p.Target != "/b" || p.Source != "/mine" || p.Readonly {
		t.Errorf("a bind of one's own does not win: %+v", p)
	}
	if p := plans[1]; !p.Readonly || !p.NoCopy || !p.Anonymous { // it goes with the last container that has it
		t.Errorf("the other's volume: %+v", p)
	}
}

func FuzzParseBind(f *testing.F) {
	for _, s := range []string{"/a:/b", "v:/b:ro", "/b", "::", "/a:/b:ro,z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		plans, err := planMounts(&container.Config{}, &container.HostConfig{Binds: []string{s}}, false, noOthers)
		if err != nil {
			return
		}
		for _, p := range plans {
			if p.Target == "/" || !strings.HasPrefix(p.Target, "/") || strings.Contains(p.Target+"/", "/../") {
				t.Errorf("%q mounts at %q", s, p.Target)
			}
		}
	})
}
