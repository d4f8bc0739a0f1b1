package agent

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/isolation/userdb"
	"proa/internal/sys"
)

// defaultPath is Docker's PATH for images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// launch is everything about a process but its stdio.
type launch struct {
	want         *isolation.Process
	uid, gid     uint32
	groups       []uint32
	capabilities uint64
	env          []string
	cwd, path    string // path of the executable, as the new process will find it
}

// plan works it out below root: user, environment, working directory, executable.
func plan(root *os.File, want *isolation.Process) (*launch, error) {
	if len(want.Args) == 0 {
		return nil, &isolation.StartError{Kind: isolation.StartFailed, Step: "start the process", Why: "no command specified"}
	}
	have, err := sys.Capabilities()
	if err != nil {
		return nil, failed("start the process", err)
	}
	l := &launch{want: want, capabilities: want.Capabilities & have, cwd: want.Cwd}
	var home string
	if l.uid, l.gid, l.groups, home, err = userdb.Lookup(root, want.User, want.Groups); err != nil {
		return nil, failed("find the user", err)
	}
	l.env = environment(want.Env, home, want.Terminal)
	if l.cwd == "" {
		l.cwd = "/"
	}
	l.path, err = executable(root, want.Args[0], l.cwd, value(l.env, "PATH"))
	return l, err
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
	env = slices.DeleteFunc(env, func(kv string) bool { return kv == "HOME=" }) // filled in as well, as by runc
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

// workdirError is Docker's error for a working directory that cannot be entered.
func workdirError(cwd string, err error) error {
	kind := isolation.StartFailed
	switch {
	case errors.Is(err, syscall.ENOENT):
		kind = isolation.StartNotFound
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EACCES):
		kind = isolation.StartNotAllowed
	}
	return &isolation.StartError{Kind: kind, Step: "enter the working directory", Why: "chdir to cwd (" + strconv.Quote(cwd) + ") set in config.json failed: " + errno(err)}
}

// executable finds what to exec as Docker does: a name with a slash is a path,
// from the working directory on; any other is searched for in PATH. The errors
// have Docker's texts, from which clients make the exit codes 126 and 127.
func executable(root *os.File, name, cwd, path string) (string, error) {
	quoted := "exec: " + strconv.Quote(name) + ": "
	if strings.Contains(name, "/") {
		at := name
		if name[0] != '/' {
			at = strings.TrimRight(cwd, "/") + "/" + name
		}
		err := runnable(root, at)
		switch {
		case err == nil:
			return name, nil
		case errors.Is(err, syscall.EISDIR):
			return "", cannotExec(isolation.StartNotAllowed, quoted+"is a directory")
		case errors.Is(err, syscall.EACCES):
			return "", cannotExec(isolation.StartNotAllowed, quoted+"permission denied")
		default:
			return "", cannotExec(isolation.StartNotFound, quoted+"stat "+name+": "+errno(err))
		}
	}
	for _, dir := range strings.Split(path, ":") {
		if dir == "" || dir[0] != '/' {
			continue // a relative entry would mean the working directory: not for the first process (Go issue 43724)
		}
		at := strings.TrimRight(dir, "/") + "/" + name
		if name != "" && runnable(root, at) == nil {
			return at, nil
		}
	}
	return "", cannotExec(isolation.StartNotFound, quoted+"executable file not found in $PATH")
}

// runnable says whether path below root is a file with an execute bit: nil, or ENOENT, EISDIR, EACCES...
func runnable(root *os.File, path string) error {
	f, err := sys.OpenPathInRoot(root, path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		return syscall.EISDIR
	case fi.Mode().Perm()&0o111 == 0:
		return syscall.EACCES
	}
	return nil
}

func cannotExec(kind isolation.StartKind, why string) error {
	return &isolation.StartError{Kind: kind, Step: "start the process", Why: why}
}

// errno is the bare reason of an error.
func errno(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return err.Error()
}

// checkWorkdir says, in Docker's words, why an exec'd process could not enter cwd.
func checkWorkdir(root *os.File, cwd string) error {
	if cwd == "" {
		return nil
	}
	dir, err := sys.OpenInRoot(root, cwd, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return workdirError(cwd, err)
	}
	return dir.Close()
}

// oPath is O_PATH, which package syscall does not know.
const oPath = 0x200000
