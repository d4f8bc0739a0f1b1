package faults

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"proa/test/proatest"
)

// The command line of proa beside docker's of version 29, against one engine.
func TestFaultsOfCommandLine(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	t.Run("D37SameAsDocker", func(t *testing.T) { testSameAsDocker(t, e) })
	t.Run("D37SameContainer", func(t *testing.T) { testSameContainer(t, e) })
	t.Run("D37RunFlags", func(t *testing.T) { testRunFlags(t, e) })
	t.Run("D37Refused", func(t *testing.T) { testRefusedFlags(t, e) })
	t.Run("D37Build", func(t *testing.T) { testBuildFlags(t, e) })
	t.Run("D37Update", func(t *testing.T) { testUpdate(t, e) })
	t.Run("D37SystemPrune", func(t *testing.T) { testPruneOfAll(t, e) })
	t.Run("D38SCTPAndVersion", func(t *testing.T) { testSCTPAndVersion(t, e) })
}

// Each line has the same exit code and output in both command lines.
func testSameAsDocker(t *testing.T, e *proatest.Engine) {
	e.MustDocker("create", "--name", "same", "--network", "none", "-l", "a=b", "bb:1", "true")
	defer e.Docker("rm", "-f", "same")
	for _, line := range []string{
		"inspect -f {{.Nosuch}} same",
		"inspect -f {{.Name}} same",
		"inspect -f {{.State.Health}} same",
		"inspect -f {{if~.State.Health}}yes{{else}}no{{end}} same",
		"inspect -f {{.Config.Labels.nosuch}} same",
		"inspect -f {{.Config.Labels.a}} same",
		"inspect -f {{json~.HostConfig.LogConfig}} same",
		"inspect -f {{.SizeRw}} same",
		"inspect -s -f {{if~.SizeRw}}sized{{else}}none{{end}} same",
		"inspect --size -f {{json~.SizeRw}} same",
		"container inspect -s -f {{.ID}} same",
		"inspect nosuch",
		"image inspect -f {{.Nosuch}} bb:1",
		"rmi -f nosuch",
		"rmi nosuch",
		"rm -f nosuch",
		"network ls --format {{.Name}}",
		"network ls -q",
		"network ls --no-trunc -q",
		"network ls -f name=host --format {{.Name}}/{{.Driver}}/{{.Scope}}/{{.Internal}}",
		"network ls --filter nosuch=1",
		"network inspect -f {{.Name}} bridge host",
		"network inspect nosuch",
		"start --detach-keys ctrl-x nosuch",
		"stop --timeout 0 same",
		"stop -t 0 same",
		"restart --timeout x same",
		"update same",
		"logs --details same",
		"logs -n -1 same",
	} {
		args := strings.Fields(line)
		for i, a := range args {
			args[i] = strings.ReplaceAll(a, "~", " ")
		}
		d, p := e.Docker(args...), e.Proa(args...)
		if (d.Code == 0) != (p.Code == 0) || d.Code < 125 && p.Code < 125 && d.Code != p.Code {
			t.Errorf("%s: proa %d %s; docker %d %s", line, p.Code, p.Stderr, d.Code, d.Stderr)
		}
		if d.Code == 0 && strings.TrimSpace(d.Stdout) != strings.TrimSpace(p.Stdout) {
			t.Errorf("%s: proa %q; docker %q", line, p.Stdout, d.Stdout)
		}
	}
}

func testRunFlags(t *testing.T, e *proatest.Engine) {
	dir := t.TempDir()
	file := filepath.Join(dir, "labels")
	if err := os.WriteFile(file, []byte("# a comment\n\nfrom=file\nbare\nboth=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{
		"--annotation", "x=y", "--label-file", file, "--label", "both=flag", "--health-cmd", "true", "--health-start-interval", "2s",
		"--volume-driver", "local", "--umask", "027", "-v", "/data", "bb:1", "true",
	}
	format := `{{json .HostConfig.Annotations}} {{json .Config.Labels}} {{json .Config.Healthcheck}} {{.HostConfig.VolumeDriver}} {{.HostConfig.Umask}}`
	var out []string
	for i, cli := range []func(...string) proatest.Result{e.Docker, e.Proa} {
		name := []string{"flags-docker", "flags-proa"}[i]
		if r := cli(append([]string{"create", "--name", name}, flags...)...); r.Code != 0 {
			t.Fatalf("create: %+v", r)
		}
		out = append(out, e.MustDocker("inspect", "-f", format, name))
		e.MustDocker("rm", name)
	}
	if out[0] != out[1] || !strings.Contains(out[0], `"both":"flag"`) || !strings.Contains(out[0], `"StartInterval":2000000000`) {
		t.Errorf("docker %s\nproa   %s", out[0], out[1])
	}
	for _, cli := range []func(...string) proatest.Result{e.Docker, e.Proa} {
		if r := cli("run", "--rm", "--network", "none", "--health-cmd", "x", "--no-healthcheck", "bb:1", "true"); r.Code != 125 || !strings.Contains(r.Stderr, "--no-healthcheck conflicts with --health-* options") {
			t.Errorf("--no-healthcheck: %+v", r)
		}
	}
}

// What docker has and the engine cannot honour is refused by its name.
func testRefusedFlags(t *testing.T, e *proatest.Engine) {
	for _, flag := range []string{
		"--gpus=all", "--link=a:b", "--blkio-weight=10", "--device-read-bps=/dev/sda:1mb", "--cpu-rt-runtime=1", "--ip6=::1", "--storage-opt=size=1G",
		"--memory-swappiness=1", "--use-api-socket", "--device-cgroup-rule=c 1:1 r", "--link-local-ip=169.254.1.1", "--io-maxiops=1",
	} {
		name, _, _ := strings.Cut(flag, "=")
		if r := e.Proa("create", flag, "bb:1"); r.Code != 125 || !strings.Contains(r.Stderr, name) || !strings.Contains(r.Stderr, "proa cannot honour it") {
			t.Errorf("%s: %+v", flag, r)
		}
	}
}

func testBuildFlags(t *testing.T, e *proatest.Engine) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dockerfile"), []byte("FROM bb:1\nLABEL e=f\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := e.Proa("build", "-q", "--label", "d", "--label", "g=", "-t", "lower:1", dir); r.Code != 0 {
		t.Fatalf("build: %+v", r)
	}
	if got := e.MustDocker("image", "inspect", "-f", "{{json .Config.Labels}}", "lower:1"); strings.TrimSpace(got) != `{"d":"","e":"f","g":""}` {
		t.Errorf("labels %s", got)
	}
}

func testUpdate(t *testing.T, e *proatest.Engine) {
	e.MustDocker("create", "--name", "u1", "--network", "none", "bb:1", "true")
	defer e.Docker("rm", "-f", "u1")
	r := e.Proa("update", "--memory", "64m", "--memory-swap", "-1", "--cpus", "0.5", "--restart", "on-failure:3", "--pids-limit", "99", "u1")
	got := e.MustDocker("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.MaximumRetryCount}} {{.HostConfig.PidsLimit}}", "u1")
	if r.Code != 0 || r.Out() != "u1" || strings.TrimSpace(got) != "67108864 -1 500000000 3 99" {
		t.Errorf("update: %+v; %s", r, got)
	}
	if r := e.Proa("update", "-m", "64m", "nosuch"); r.Code != 1 || !strings.Contains(r.Stderr, "No such container: nosuch") {
		t.Errorf("update of nosuch: %+v", r)
	}
}

func testPruneOfAll(t *testing.T, e *proatest.Engine) {
	id := strings.TrimSpace(e.MustDocker("create", "--network", "none", "bb:1", "true"))
	if r := e.Proa("system", "prune"); r.Code == 0 || !strings.Contains(r.Stderr, "all networks not used by at least one container") {
		t.Errorf("without an answer: %+v", r)
	}
	if r := e.Proa("system", "prune", "-f", "--volumes", "--filter", "until=1h"); r.Code == 0 || !strings.Contains(r.Stderr, `The "until" filter is not supported with "--volumes"`) {
		t.Errorf("until with volumes: %+v", r)
	}
	if r := e.Proa("system", "prune", "-f", "--filter", "label=nosuch"); r.Code != 0 || strings.Contains(r.Stdout, id) {
		t.Errorf("by a label: %+v", r)
	}
	r := e.Proa("system", "prune", "-f", "--volumes")
	if r.Code != 0 || !strings.Contains(r.Stdout, "Deleted Containers:\n"+id+"\n") || !strings.Contains(r.Stdout, "Total reclaimed space: ") {
		t.Errorf("prune: %+v", r)
	}
	if r := e.Proa("network", "prune", "-f"); r.Code != 0 {
		t.Errorf("network prune: %+v", r)
	}
}

func testSCTPAndVersion(t *testing.T, e *proatest.Engine) {
	r := e.Proa("create", "-P", "--expose", "9899/sctp", "--name", "sctp", "bb:1", "true")
	if r.Code != 0 || !strings.Contains(r.Stderr, "port 9899/sctp is not published") {
		t.Errorf("-P: %+v", r)
	}
	e.MustDocker("rm", "sctp")
	if v := e.MustDocker("version", "-f", "{{.Server.Version}}"); !regexp.MustCompile(`^\d+\.\d+\.\d+([-+]|$)`).MatchString(strings.TrimSpace(v)) {
		t.Errorf("the engine's version is %q", v)
	}
}
