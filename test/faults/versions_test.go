package faults

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// TestFaultsOfVersions holds the rows about what differs from version to
// version of the API: Docker's changelog and moby's routers at 1.56, and
// 20.10.24 for 1.41 and below (test/shapes compares all keys with it).
func TestFaultsOfVersions(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	ask := func(t *testing.T, minor int, method, path, body string) (answer, map[string]any) {
		t.Helper()
		a := request(t, e.Socket, method, fmt.Sprintf("/v1.%d%s", minor, path), body)
		var m map[string]any
		if strings.HasPrefix(a.body, "{") {
			a.decode(t, &m)
		}
		return a, m
	}
	at := func(v any, path string) any {
		for _, k := range strings.Split(path, ".") {
			m, _ := v.(map[string]any)
			v = m[k]
		}
		return v
	}
	has := func(v any, path string) bool {
		i := strings.LastIndexByte(path, '.')
		if i >= 0 {
			v = at(v, path[:i])
		}
		m, _ := v.(map[string]any)
		_, ok := m[path[i+1:]]
		return ok
	}

	// moby container/container_routes.go, handleMACAddressBC.
	t.Run("A8", func(t *testing.T) {
		const mac = "02:42:ac:11:00:0a"
		body := func(more string) string {
			return `{"Image":"bb:1","Cmd":["true"],"MacAddress":"` + mac + `"` + more + `}`
		}
		for _, c := range []struct {
			minor         int
			more          string
			status        int
			warns, refuse string
		}{
			{41, "", 201, "", ""},
			{43, `,"HostConfig":{"NetworkMode":"bridge"}`, 201, "", ""},
			{43, `,"HostConfig":{"NetworkMode":"host"}`, 400, "", "conflicting options: mac-address and the network mode"},
			{44, "", 201, "The container-wide MacAddress field is now deprecated.", ""},
			{51, `,"NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:42:ac:11:00:0b"}}}`, 400, "", "the container-wide MAC address must match"},
			{52, "", 400, "", "container-wide MAC address no longer supported; use endpoint-specific MAC address instead"},
		} {
			a, m := ask(t, c.minor, "POST", "/containers/create", body(c.more))
			if a.status != c.status || c.refuse != "" && !strings.Contains(a.body, c.refuse) || c.warns == "" && c.status == 201 && len(m["Warnings"].([]any)) > 0 ||
				!strings.Contains(a.body, c.warns) {
				t.Errorf("1.%d %s: %d %s", c.minor, c.more, a.status, a.body)
			}
			if a.status != 201 {
				continue
			}
			id := m["Id"].(string)
			_, m = ask(t, 43, "GET", "/containers/"+id+"/json", "")
			if at(m, "Config.MacAddress") != mac {
				t.Errorf("1.%d: inspect at 1.43 has MacAddress %v", c.minor, at(m, "Config.MacAddress"))
			}
			if _, m = ask(t, 52, "GET", "/containers/"+id+"/json", ""); has(m, "Config.MacAddress") || at(m, "NetworkSettings.Networks.bridge.MacAddress") != mac {
				t.Errorf("1.%d: inspect at 1.52: %v", c.minor, m["NetworkSettings"])
			}
		}
	})

	t.Run("A8 at start", func(t *testing.T) {
		a, _ := ask(t, 43, "POST", "/containers/create?name=a8", `{"Image":"bb:1","Cmd":["cat","/sys/class/net/eth0/address"],"MacAddress":"02:42:ac:11:00:0a"}`)
		if a.status != 201 {
			t.Fatalf("create: %d %s", a.status, a.body)
		}
		if r := e.Proa("start", "-a", "a8"); r.Out() != "02:42:ac:11:00:0a" {
			t.Errorf("eth0 has %q: %s", r.Out(), r.Stderr)
		}
	})

	// moby image/image_routes.go.
	t.Run("A10", func(t *testing.T) {
		for path, gone := range map[string]int{
			"Parent": 52, "Comment": 52, "DockerVersion": 52, "Author": 52, "Config.OnBuild": 52, "Config.Volumes": 52, "Config.User": 52,
			"Config.Hostname": 50, "Config.Tty": 50, "Container": 45, "ContainerConfig": 45, "VirtualSize": 44,
		} {
			for _, minor := range []int{24, gone - 1} {
				if _, m := ask(t, minor, "GET", "/images/bb:1/json", ""); !has(m, path) {
					t.Errorf("1.%d has no %s", minor, path)
				}
			}
		}
		for path, came := range map[string]int{"Descriptor": 48} {
			if _, m := ask(t, came-1, "GET", "/images/bb:1/json", ""); has(m, path) {
				t.Errorf("1.%d has %s", came-1, path)
			}
			if _, m := ask(t, came, "GET", "/images/bb:1/json", ""); !has(m, path) {
				t.Errorf("1.%d has no %s", came, path)
			}
		}
		if a, _ := ask(t, 50, "GET", "/images/json", ""); !strings.Contains(a.body, `"Containers":-1`) {
			t.Errorf("1.50: %s", a.body)
		}
	})

	// moby system/system_routes.go, backFillLegacy.
	t.Run("A11", func(t *testing.T) {
		until := time.Now().Add(time.Second).Unix()
		for minor, want := range map[int]bool{51: true, 52: false} {
			a := request(t, e.Socket, "GET", fmt.Sprintf("/v1.%d/events?since=1&until=%d", minor, until), "")
			if a.status != 200 || !strings.Contains(a.body, `"Type":"container"`) {
				t.Fatalf("%d %s", a.status, a.body)
			}
			for _, line := range strings.Split(a.body, "\n") {
				var m map[string]any
				if err := json.Unmarshal([]byte(line), &m); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				is := m["status"] == m["Action"] && m["id"] == at(m, "Actor.ID")
				if m["Type"] == "container" {
					is = is && m["from"] == at(m, "Actor.Attributes.image")
				}
				if (m["Type"] == "container" || m["Type"] == "image") && is != want {
					t.Errorf("1.%d: %s", minor, line)
				}
			}
		}
	})

	// moby system/system_routes.go, getDiskUsage.
	t.Run("A14", func(t *testing.T) {
		for _, c := range []struct {
			minor    int
			query    string
			old, now bool
		}{{51, "", true, false}, {52, "", true, true}, {56, "", true, true}, {56, "?verbose=1", false, true}} {
			_, m := ask(t, c.minor, "GET", "/system/df"+c.query, "")
			if has(m, "Images") != c.old || has(m, "BuildCache") != c.old || has(m, "ImageUsage") != c.now {
				t.Errorf("1.%d %s: %v", c.minor, c.query, m)
			}
		}
		if _, m := ask(t, 42, "GET", "/system/df?type=volume", ""); has(m, "Images") || !has(m, "Volumes") {
			t.Errorf("type=volume: %v", m)
		}
		if a, _ := ask(t, 42, "GET", "/system/df?type=nosuch", ""); a.status != 400 {
			t.Errorf("type=nosuch: %d", a.status)
		}
	})

	// 20.10.24; moby container/container_routes.go.
	t.Run("C11", func(t *testing.T) {
		for minor, want := range map[int]bool{51: false, 52: true} {
			if a, _ := ask(t, minor, "GET", "/containers/json?all=1", ""); strings.Contains(a.body, `"Health"`) != want {
				t.Errorf("1.%d: %s", minor, a.body)
			}
		}
	})

	t.Run("C20", func(t *testing.T) {
		make := func(minor int, body string) string {
			a, m := ask(t, minor, "POST", "/containers/create", body)
			if a.status != 201 {
				t.Fatalf("create: %d %s", a.status, a.body)
			}
			return m["Id"].(string)
		}
		for minor, mode := range map[int]string{39: "shareable", 40: "private"} { // (9)
			id := make(minor, `{"Image":"bb:1","Cmd":["true"],"Env":["X=a&b<c>"]}`)
			a, m := ask(t, 41, "GET", "/containers/"+id+"/json", "")
			if at(m, "HostConfig.IpcMode") != mode {
				t.Errorf("1.%d: IpcMode %v", minor, at(m, "HostConfig.IpcMode"))
			}
			if !strings.Contains(a.body, "X=a&b<c>") { // (6)
				t.Errorf("escaped: %s", a.body)
			}
			if a, _ := ask(t, 39, "POST", "/containers/"+id+"/update", `{"PidsLimit":7}`); a.status != 200 {
				t.Errorf("update: %d %s", a.status, a.body)
			}
			if _, m := ask(t, 41, "GET", "/containers/"+id+"/json", ""); fmt.Sprint(at(m, "HostConfig.PidsLimit")) == "7" {
				t.Error("1.39: update has set PidsLimit")
			}
		}
		_, m := ask(t, 41, "GET", "/version", "") // (10)
		if m["GitCommit"] == nil || m["BuildTime"] == nil {
			t.Errorf("version: %v", m)
		}
		if _, m = ask(t, 49, "GET", "/info", ""); !has(m, "BridgeNfIptables") {
			t.Error("1.49 has no BridgeNfIptables")
		}
		if _, m = ask(t, 50, "GET", "/info", ""); has(m, "BridgeNfIptables") || at(m, "RegistryConfig.IndexConfigs") == nil { // A19 (5)
			t.Errorf("1.50: %v", m)
		}
	})

	// 20.10.24's strslice.StrSlice; the API's reference says a string or a list.
	t.Run("D20", func(t *testing.T) {
		for _, body := range []string{
			`{"Image":"bb:1","Cmd":"date"}`, `{"Image":"bb:1","Cmd":["date"],"Entrypoint":""}`, `{"Image":"bb:1","Cmd":"date","Shell":"/bin/sh"}`,
			`{"Image":"bb:1","Cmd":"date","HostConfig":{"CapAdd":"NET_ADMIN","CapDrop":"MKNOD"}}`,
		} {
			for _, minor := range []int{24, 41, 56} {
				a, m := ask(t, minor, "POST", "/containers/create", body)
				if a.status != 201 {
					t.Errorf("1.%d %s: %d %s", minor, body, a.status, a.body)
					continue
				}
				if _, m = ask(t, minor, "GET", "/containers/"+m["Id"].(string)+"/json", ""); m["Path"] != "date" {
					t.Errorf("1.%d %s: runs %v", minor, body, m["Path"])
				}
			}
		}
		a, _ := ask(t, 56, "POST", "/containers/create?name=d20", `{"Image":"bb:1","Cmd":"date"}`)
		if a.status != 201 {
			t.Fatalf("create: %d %s", a.status, a.body)
		}
		if a, _ := ask(t, 56, "POST", "/commit?container=d20&repo=d20", `{"Cmd":"sh"}`); a.status != 201 {
			t.Errorf("commit: %d %s", a.status, a.body)
		}
	})

	// 20.10.24 and moby: a count without a name is for clients before 25.
	t.Run("D21", func(t *testing.T) {
		if a, _ := ask(t, 41, "POST", "/containers/create", `{"Image":"bb:1","Cmd":["true"],"HostConfig":{"RestartPolicy":{"Name":"","MaximumRetryCount":3}}}`); a.status != 201 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}
