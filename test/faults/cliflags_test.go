package faults

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// The same flags of create make the same container, whichever command line
// reads them, or both refuse them.
func testSameContainer(t *testing.T, e *proatest.Engine) {
	dir := t.TempDir()
	env := filepath.Join(dir, "env")
	if err := os.WriteFile(env, []byte("\xef\xbb\xbf# comment\n  A=1\nB=two words \nHOME_NOT_SET\nD=\n\nE==x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"-itd", "-it", "-e A=1 -e B= -e NOSUCH_VARIABLE -e C=a=b", "--env-file " + env, "-e =x", "--env-file /nosuch", "-l a -l b= -l c=d=e", "-l =x",
		"-p 80", "-p 8080:80", "-p 8080:80/udp", "-p 127.0.0.1:8080:80", "-p 127.0.0.1::80", "-p [::1]:81:80", "-p 8000-8002:80-82", "-p 8000-8001:80-82",
		"-p 8000-8002:80", "-p a:b", "-p 80/icmp", "-p 1.2.3:80:80", "-p 0:80", "-p 70000:80", "--expose 80-82/udp --expose 90", "--expose x", "-P",
		"-v /data", "-v vol:/data:ro", "-v /tmp:/data:ro,rslave", "-v /tmp:/data:rw:x:y", "-v :/data", "-v /tmp:", "-v ./x:/data",
		"--mount type=tmpfs,dst=/x,tmpfs-size=1m,tmpfs-mode=700", "--mount type=bind,src=/tmp,dst=/x,readonly", "--mount type=volume,src=v,dst=/x,volume-nocopy",
		"--mount dst=/x", "--mount type=nosuch,dst=/x", "--mount type=bind,dst=/x", "--mount type=volume,src=v", "--mount type=bind,src=/tmp,dst=/x,bind-propagation=rslave",
		"--mount type=tmpfs,dst=/x,src=/y", "--mount type=bind,src=/tmp,dst=/x,ro=false", "--mount type=bind,src=/tmp,dst=/x,nosuch=1", "--mount type=volume,src=v,dst=/x,volume-label=a=b",
		"--tmpfs /x", "--tmpfs /x:size=1m,mode=700", "--tmpfs x", "--ulimit nofile=10", "--ulimit nofile=10:20", "--ulimit nofile=20:10", "--ulimit nosuch=1", "--ulimit core=-1",
		"-m 64m", "-m 64x", "-m 1k", "--memory-swap -1 -m 64m", "--cpus 0.5", "--cpus x", "--cpus 0", "--shm-size 1m", "--pids-limit 0", "--pids-limit -1", "--pids-limit 7",
		"--restart always", "--restart on-failure:3", "--restart on-failure:x", "--restart nosuch", "--restart no", "--restart unless-stopped",
		"--entrypoint sh", "--entrypoint=", "-w /x", "-w x", "-u 1:2", "-h box", "--dns 1.1.1.1 --dns-search a.b --dns-option ndots:2", "--dns x", "--add-host a:1.2.3.4", "--add-host a=1.2.3.4", "--add-host a",
		"--add-host a:host-gateway", "--stop-timeout 3", "--stop-timeout 0", "--stop-timeout -1", "--stop-signal TERM", "--init", "--read-only", "--privileged", "--cap-add ALL --cap-drop MKNOD",
		"--security-opt no-new-privileges", "--security-opt no-new-privileges:true", "--security-opt seccomp=unconfined", "--security-opt nosuch", "--device /dev/null", "--device /dev/null:/dev/x:r", "--device /dev/null:rw",
		"--sysctl net.ipv4.ip_forward=1", "--sysctl x", "--log-opt max-size=1m", "--log-opt max-size", "--log-driver none", "--network none", "--network host", "--network nosuch", "--ipc private", "--pid host",
		"--health-cmd x --health-interval 1s --health-retries 2", "--health-interval 5us", "--health-retries -1", "--health-cmd x --health-timeout -1s", "--no-healthcheck", "--group-add 7 --oom-score-adj 5",
		"--cgroupns host", "--userns host", "--rm --restart always", "--nosuch", "-a stdout", "-a nosuch", "--mac-address 02:42:ac:11:00:09", "--mac-address x", "--annotation a", "--annotation a=b", "--umask 9", "--umask 22",
		"--pull nosuch", "--platform linux/amd64", "--name /slash", "--name a/b", "--cidfile /tmp", "--domainname d", "--runtime nosuch", "--cpu-shares 7 --cpu-period 50000 --cpu-quota 25000 --cpuset-cpus 0",
	} {
		var got []string
		var codes []int
		var errs []string
		for _, cli := range []func(...string) proatest.Result{e.Docker, e.Proa} {
			r := cli(append(append([]string{"create"}, strings.Fields(line)...), "bb:1", "true", "--", "-x")...)
			codes, errs = append(codes, r.Code), append(errs, r.Stderr)
			if r.Code != 0 {
				got = append(got, "")
				continue
			}
			got = append(got, shape(t, e, strings.TrimSpace(r.Stdout)))
			e.MustDocker("rm", "-v", strings.TrimSpace(r.Stdout))
		}
		if codes[0] != codes[1] {
			t.Errorf("%s: docker %d %s, proa %d %s", line, codes[0], errs[0], codes[1], errs[1])
		} else if got[0] != got[1] {
			t.Errorf("%s:\ndocker %s\nproa   %s", line, got[0], got[1])
		}
	}
}

// shape is what was asked of a container, without what each one has for itself.
func shape(t *testing.T, e *proatest.Engine, id string) string {
	t.Helper()
	var c map[string]any
	request(t, e.Socket, "GET", "/containers/"+id+"/json", "").decode(t, &c)
	out := map[string]any{"Args": c["Args"], "Path": c["Path"], "HostConfig": c["HostConfig"]}
	config := c["Config"].(map[string]any)
	if h, _ := config["Hostname"].(string); strings.HasPrefix(id, h) {
		delete(config, "Hostname")
	}
	slices.SortFunc(config["Env"].([]any), func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	host := c["HostConfig"].(map[string]any)
	maps.DeleteFunc(host, func(_ string, v any) bool { list, is := v.([]any); return v == nil || is && len(list) == 0 })
	out["Config"] = config
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
