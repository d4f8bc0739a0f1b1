package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"proa/test/proatest"
)

// Every command of proa, as scripts that can be read aloud: testdata/script.
// All use one engine and the image bb; each has names of its own.
//
//	fails CODE COMMAND...   the command ends with this exit code
//	retry COMMAND...        the command succeeds within ten seconds
//	socket FILE             makes a unix socket there
func TestCommands(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	// testscript ends its tests by panics of its own goroutines: a group makes
	// the engine outlive the last parallel script.
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: filepath.Join("testdata", "script"),
			// Its own is not removed when -run leaves a script out.
			WorkdirRoot: t.TempDir(),
			Setup: func(env *testscript.Env) error {
				env.Setenv("PATH", proatest.Bin(t)+string(filepath.ListSeparator)+os.Getenv("PATH"))
				env.Setenv("PROA_HOST", e.Host)
				env.Setenv("SOCKET", e.Socket)
				env.Setenv("TZ", "UTC")
				return nil
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"fails": func(ts *testscript.TestScript, neg bool, args []string) {
					if neg || len(args) < 2 {
						ts.Fatalf("usage: fails CODE COMMAND...")
					}
					want, err := strconv.Atoi(args[0])
					ts.Check(err)
					got := 0
					err = ts.Exec(args[1], args[2:]...)
					var exit *exec.ExitError
					switch {
					case errors.As(err, &exit):
						got = exit.ExitCode()
					case err != nil:
						ts.Fatalf("%v", err)
					}
					if got != want {
						ts.Fatalf("exit code %d, want %d", got, want)
					}
				},
				"socket": func(ts *testscript.TestScript, neg bool, args []string) {
					if neg || len(args) != 1 {
						ts.Fatalf("usage: socket FILE")
					}
					ts.Check(syscall.Mknod(ts.MkAbs(args[0]), syscall.S_IFSOCK|0o600, 0))
				},
				"retry": func(ts *testscript.TestScript, neg bool, args []string) {
					for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
						if err := ts.Exec(args[0], args[1:]...); (err == nil) != neg {
							return
						} else if time.Now().After(end) {
							ts.Fatalf("not within ten seconds: %v", err)
						}
					}
				},
			},
		})
	})
}
