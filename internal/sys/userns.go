package sys

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// MakeUserNS makes a user namespace with this map of uids and gids, and returns
// it open. No process stays in it: the child that made it is stopped at its first instruction
// (ptrace) and killed.
func MakeUserNS(ids []syscall.SysProcIDMap) (*os.File, error) {
	runtime.LockOSThread() // ptrace binds the child to the thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot make a user namespace: %w", err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		return nil, fmt.Errorf("cannot open a new user namespace: %w", err)
	}
	return ns, nil
}

// CanIdmap tries whether the mount that holds file (an O_PATH descriptor) can
// be idmapped by userns, on a detached clone that is thrown away. An error is
// the reason why not.
func CanIdmap(file, userns *os.File, recursive bool) error {
	clone, err := CloneTree(file, "", recursive)
	if err != nil {
		return err
	}
	defer clone.Close()
	return Idmap(clone, userns, recursive)
}
