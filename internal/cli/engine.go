package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"proa/internal/client"
	"proa/internal/failure"
)

// engineLog is where an engine that the command line started writes.
const engineLog = "/run/proa/proad.log"

// startEngine starts proad when nobody answers at the default socket: in a
// session of its own and with no descriptor of ours but its log, so that it
// outlives this command (--own-cgroup takes it out of ours as well). It
// returns when the engine answers.
func startEngine(ctx context.Context, c *client.Client, errw io.Writer) error {
	_, path, _ := strings.Cut(client.DefaultHost, "://")
	conn, err := net.Dial("unix", path)
	if err == nil {
		return conn.Close()
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return &client.DialError{Host: client.DefaultHost, Err: err}
	}
	if os.Geteuid() != 0 {
		return failure.Hint(
			&client.DialError{Host: client.DefaultHost, Err: err},
			"no engine runs, and only root can start one: sudo proad, or sudo proa ...",
		)
	}
	bin, err := engineBinary()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(engineLog), 0o711); err != nil {
		return fmt.Errorf("cannot start the engine: %w", err)
	}
	log, err := os.OpenFile(engineLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("cannot start the engine: %w", err)
	}
	defer log.Close()
	from, _ := log.Seek(0, io.SeekEnd)
	cmd := exec.Command(bin, "--own-cgroup")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start the engine: %w", err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	ready := make(chan error, 1)
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	go func() { ready <- c.Ping(wait) }()
	select {
	case err = <-ready:
		if err == nil {
			return nil
		}
		err = fmt.Errorf("the engine that was started does not answer: %w", err)
	case err = <-died:
		// Two commands at once: the other one's engine won.
		if conn, derr := net.Dial("unix", path); derr == nil {
			return conn.Close()
		}
		err = fmt.Errorf("cannot start the engine: %v%s", err, logTail(from))
	}
	return failure.Hint(err, "its log is "+engineLog+"; `proa doctor` says what this host lacks")
}

// engineBinary finds proad beside this program, else on the path.
func engineBinary() (string, error) {
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), "proad"); isFile(p) {
			return p, nil
		}
	}
	p, err := exec.LookPath("proad")
	if err != nil {
		return "", failure.Hint(errors.New("cannot start an engine: proad is neither beside proa nor on the path"), "make build puts the programs into bin/")
	}
	return p, nil
}

func isFile(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}

// logTail gives the last lines that the engine wrote since from.
func logTail(from int64) string {
	f, err := os.Open(engineLog)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.NewSectionReader(f, from, 64<<10))
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	return "\n" + string(bytes.Join(lines, []byte("\n")))
}
