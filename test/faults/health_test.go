package faults

import (
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// The faults of health checks, behind both isolations (moby daemon/health.go;
// what is kept over a restart was seen on 20.10.24).
func TestFaultsOfHealth(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	t.Run("D25StartInterval", func(t *testing.T) { testStartInterval(t, e) })
	t.Run("D34LogSurvivesRestart", func(t *testing.T) { testHealthLog(t, e, "container") })
	t.Run("D34LogSurvivesRestartOfVM", func(t *testing.T) { testHealthLog(t, e, "vm") })
	t.Run("PauseEndsTheCheck", func(t *testing.T) { testHealthPause(t, e) })
}

type health struct {
	Status        string
	FailingStreak int
	Log           []struct {
		ExitCode int
		Output   string
	}
}

func healthOf(t *testing.T, e *proatest.Engine, id string) health {
	t.Helper()
	var c struct{ State struct{ Health health } }
	request(t, e.Socket, "GET", "/containers/"+id+"/json", "").decode(t, &c)
	return c.State.Health
}

// A start interval longer than the start period does not put the first failure
// that counts off (moby PR 52317).
func testStartInterval(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "slow", `"Image":"bb:1","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"none"},
		"Healthcheck":{"Test":["CMD","false"],"Interval":100000000,"StartInterval":3600000000000,"StartPeriod":1000000000,"Retries":2}`)
	eventually(t, "it is unhealthy", func() bool { return healthOf(t, e, id).Status == "unhealthy" })
	post(t, e, "/containers/"+id+"/kill", "", 204)
}

func testHealthLog(t *testing.T, e *proatest.Engine, isolation string) {
	id := running(t, e, "log-"+isolation, `"Image":"bb:1","Cmd":["sh","-c","echo > /first; sleep 1000"],"StopSignal":"KILL","HostConfig":{"Isolation":"`+isolation+`","NetworkMode":"none"},
		"Healthcheck":{"Test":["CMD-SHELL","cat /run/said; head -c 5000 /dev/zero | tr '\\0' x"],"Interval":100000000,"Retries":2}`)
	eventually(t, "five results", func() bool { return len(healthOf(t, e, id).Log) == 5 })
	if h := healthOf(t, e, id); h.Status != "healthy" || len(h.Log[4].Output) != 4096+3 || !strings.HasSuffix(h.Log[4].Output, "x...") {
		t.Errorf("%s, output of %d bytes", h.Status, len(h.Log[4].Output))
	}
	post(t, e, "/containers/"+id+"/stop", "", 204)
	if h := healthOf(t, e, id); len(h.Log) != 5 {
		t.Errorf("stopped: %d results", len(h.Log))
	}
	post(t, e, "/containers/"+id+"/start", "", 204)
	if h := healthOf(t, e, id); len(h.Log) != 5 {
		t.Errorf("started again: %d results, %s", len(h.Log), h.Status)
	}
	eventually(t, "it is healthy again", func() bool { return healthOf(t, e, id).Status == "healthy" })
	post(t, e, "/containers/"+id+"/kill", "", 204)
}

// A check that hangs in a paused container gives no result, and does not keep
// the next one from running.
func testHealthPause(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "paused", `"Image":"bb:1","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"none"},
		"Healthcheck":{"Test":["CMD-SHELL","if [ -e /go ]; then exit 0; fi; touch /checking; sleep 600"],"Interval":100000000,"Timeout":600000000000,"Retries":1}`)
	eventually(t, "a check is under way", func() bool { return e.Docker("exec", id, "test", "-e", "/checking").Code == 0 })
	e.MustDocker("exec", id, "touch", "/go")
	post(t, e, "/containers/"+id+"/pause", "", 204)
	post(t, e, "/containers/"+id+"/unpause", "", 204)
	eventually(t, "it is healthy", func() bool { return healthOf(t, e, id).Status == "healthy" })
	if log := healthOf(t, e, id).Log; slices.ContainsFunc(log, func(r struct {
		ExitCode int
		Output   string
	}) bool {
		return r.ExitCode != 0
	}) {
		t.Errorf("results %+v", log)
	}
	post(t, e, "/containers/"+id+"/kill", "", 204)
}
