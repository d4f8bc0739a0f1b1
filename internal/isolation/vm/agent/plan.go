package agent

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// defaultPath is Docker's PATH for images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// plan works out everything about a process but its stdio: user, environment,
// working directory, executable. The root is ours already, so paths are the image's.
func plan(want *isolation.Process, main bool) (*sys.Spawn, error) {
	if len(want.Args) == 0 {
		return nil, &isolation.StartError{Kind: isolation.StartFailed, Step: "start the process", Why: "no command specified"}
	}
	uid, gid, gids, home, err := lookup(want)
	if err != nil {
		return nil, err
	}
	s := &sys.Spawn{
		Args: want.Args, UID: uid, GID: gid, Groups: gids, Umask: 0o022,
		Env:          environment(want.Env, home, want.Terminal),
		Capabilities: want.Capabilities, NoNewPrivileges: want.NoNewPrivileges,
		Seccomp: want.Seccomp, OOMScoreAdj: want.OOMScoreAdj,
	}
	if want.Umask != nil {
		s.Umask = *want.Umask
	}
	for _, l := range want.Rlimits {
		s.Rlimits = append(s.Rlimits, sys.SpawnLimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	cwd := want.Cwd
	if cwd == "" {
		cwd = "/"
	}
	if s.Dir, err = workdir(cwd, main); err != nil {
		return nil, err
	}
	if s.Path, err = executable(want.Args[0], cwd, value(s.Env, "PATH")); err != nil {
		s.Dir.Close()
		return nil, err
	}
	return s, nil
}

// environment adds what every process of a container has.
func environment(env []string, home string, terminal bool) []string {
	env = append([]string(nil), env...)
	set := func(name, v string) {
		if !has(env, name) {
			env = append(env, name+"="+v)
		}
	}
	set("PATH", defaultPath)
	set("HOME", home)
	if terminal {
		set("TERM", "xterm")
	}
	return env
}

func has(env []string, name string) bool {
	for _, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); k == name {
			return true
		}
	}
	return false
}

// value is that of the last entry, as in a shell that was given both.
func value(env []string, name string) string {
	v := ""
	for _, kv := range env {
		if k, x, _ := strings.Cut(kv, "="); k == name {
			v = x
		}
	}
	return v
}

// workdir opens the working directory; the main process's is made if missing.
func workdir(path string, create bool) (*os.File, error) {
	root, err := sys.OpenPath("/")
	if err != nil {
		return nil, failed("open the root", err)
	}
	defer root.Close()
	var dir *os.File
	if create {
		dir, err = sys.MkdirInRoot(root, path, 0o755)
	} else {
		dir, err = sys.OpenInRoot(root, path, oPath|syscall.O_DIRECTORY, 0)
	}
	if err == nil {
		return dir, nil
	}
	kind := isolation.StartFailed
	switch {
	case errors.Is(err, syscall.ENOENT):
		kind = isolation.StartNotFound
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EACCES):
		kind = isolation.StartNotAllowed
	}
	return nil, &isolation.StartError{Kind: kind, Step: "enter the working directory", Why: "chdir to cwd (" + strconv.Quote(path) + ") set in config.json failed: " + errno(err)}
}

// oPath is O_PATH, which package syscall does not know.
const oPath = 0x200000

// executable finds what to exec as Docker does: a name with a slash is a path,
// from the working directory on; any other is searched for in PATH. The errors
// have Docker's texts, from which clients make the exit codes 126 and 127.
func executable(name, cwd, path string) (string, error) {
	quoted := "exec: " + strconv.Quote(name) + ": "
	if strings.Contains(name, "/") {
		at := name
		if name[0] != '/' {
			at = strings.TrimRight(cwd, "/") + "/" + name
		}
		err := runnable(at)
		switch {
		case err == nil:
			return name, nil
		case err == syscall.EISDIR:
			return "", cannotExec(isolation.StartNotAllowed, quoted+"is a directory")
		case err == syscall.EACCES:
			return "", cannotExec(isolation.StartNotAllowed, quoted+"permission denied")
		default:
			return "", cannotExec(isolation.StartNotFound, quoted+"stat "+name+": "+err.Error())
		}
	}
	for _, dir := range strings.Split(path, ":") {
		if dir == "" || dir[0] != '/' {
			continue // a relative entry would mean the working directory: not for the first process (Go issue 43724)
		}
		at := strings.TrimRight(dir, "/") + "/" + name
		if name != "" && runnable(at) == nil {
			return at, nil
		}
	}
	return "", cannotExec(isolation.StartNotFound, quoted+"executable file not found in $PATH")
}

// runnable says whether path is a file with an execute bit: nil, or ENOENT, EISDIR, EACCES...
func runnable(path string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		return syscall.EISDIR
	case st.Mode&0o111 == 0:
		return syscall.EACCES
	}
	return nil
}

func cannotExec(kind isolation.StartKind, why string) error {
	return &isolation.StartError{Kind: kind, Step: "start the process", Why: why}
}

// explain turns a failed spawn into a start error. ENOENT of an existing file
// is that of its interpreter.
func explain(err error, path string) error {
	var s *sys.SpawnError
	if !errors.As(err, &s) || s.Step != sys.StepExec {
		return &isolation.StartError{Kind: isolation.StartFailed, Step: "start the process", Why: err.Error()}
	}
	why := "exec " + path + ": " + s.Err.Error()
	switch s.Err {
	case syscall.ENOENT, syscall.ENOTDIR:
		return cannotExec(isolation.StartNotFound, why)
	case syscall.EACCES, syscall.EPERM, syscall.ENOEXEC, syscall.EISDIR, syscall.ELIBBAD, syscall.ETXTBSY:
		return cannotExec(isolation.StartNotAllowed, why)
	}
	return cannotExec(isolation.StartFailed, why)
}

// errno is the bare reason of an error.
func errno(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return err.Error()
}
