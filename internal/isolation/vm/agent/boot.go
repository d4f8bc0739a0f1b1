package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
	"proa/internal/version"
)

// Main is the whole life of the first process of a guest. It returns only if it
// is not that: with an error that says so.
func Main() error {
	if os.Getpid() != 1 {
		return errors.New("this program is the first process of a VM's guest and does nothing anywhere else")
	}
	// A little garbage is cheaper than the memory it saves: collect early.
	debug.SetGCPercent(30)
	debug.SetMemoryLimit(32 << 20)
	w := wire.Welcome{Build: version.Version, KernelTime: sys.SinceBoot()}
	warn := func(s string) {
		fmt.Fprintln(os.Stderr, "proa-agent: "+s)
		w.Warnings = append(w.Warnings, s)
	}
	for _, m := range []struct{ fstype, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = os.Mkdir(m.at, 0o755) // EEXIST mostly; else the mount says why
		if err := mount(m.fstype, 0, m.at); err != nil && !errors.Is(err, syscall.EBUSY) {
			warn(err.Error())
		}
	}
	// Last to be killed when memory runs out; what it starts gets a score of its own.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		warn(err.Error())
	}
	options := commandLine()
	before := sys.SinceBoot()
	used := loadModules(warn)
	w.ModulesTime = sys.SinceBoot() - before
	port := openPort(options.port, warn)
	w.ReadyTime = sys.SinceBoot()
	a := New(port, Options{
		Wait:     20 * time.Millisecond,
		KillAll:  true,
		Cgroups:  "/sys/fs/cgroup",
		PowerOff: func() { powerOff(options.reset) },
		Forget:   used,
		Welcome:  w,
		Warn:     func(s string) { fmt.Fprintln(os.Stderr, "proa-agent: "+s) },
	})
	for {
		serve(a)
	}
}

// serve outlives a panic of the reader.
func serve(a *Agent) {
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintf(os.Stderr, "proa-agent: panic: %v\n%s", r, debug.Stack())
		}
	}()
	_ = a.Serve()
}

// bootOptions are our words of the kernel command line.
type bootOptions struct {
	port  string
	reset bool
}

func commandLine() bootOptions {
	o := bootOptions{port: wire.PortName}
	b, _ := os.ReadFile("/proc/cmdline") // without it there are no options
	for _, word := range strings.Fields(string(b)) {
		switch k, v, _ := strings.Cut(word, "="); k {
		case "proa.port":
			o.port = v
		case "proa.off":
			o.reset = v == "reset"
		}
	}
	return o
}

// initramfs says whether the root is still the kernel's first one, whose files
// are memory.
func initramfs() bool {
	var st syscall.Statfs_t
	const ramfs, tmpfs = 0x858458f6, 0x01021994
	return syscall.Statfs("/", &st) == nil && (st.Type == ramfs || st.Type == tmpfs)
}

// loadModules loads what /modules.txt lists and returns the files that were
// needed for it, and ourselves, if they lie in memory. One that fails is
// reported: the kernel may have it built in.
func loadModules(warn func(string)) (used []string) {
	inMemory := initramfs()
	if inMemory {
		used = []string{"/init", "/modules.txt"}
	}
	b, err := os.ReadFile("/modules.txt")
	if err != nil {
		return used
	}
	for line := range strings.Lines(string(b)) {
		path, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if path == "" || path[0] == '#' {
			continue
		}
		f, err := os.Open(path)
		if err == nil {
			err = sys.LoadModule(f, params)
			f.Close()
		}
		if err != nil {
			warn(err.Error())
		} else if inMemory {
			used = append(used, path)
		}
	}
	return used
}

// openPort waits for the port of that name and opens it. It waits for ever: the
// shim has a deadline, and there is nothing else to do here.
func openPort(name string, warn func(string)) io.ReadWriteCloser {
	const class = "/sys/class/virtio-ports"
	for begin, told := time.Now(), false; ; time.Sleep(2 * time.Millisecond) {
		dir, _ := os.ReadDir(class) // absent until the driver is there
		for _, e := range dir {
			b, err := os.ReadFile(class + "/" + e.Name() + "/name")
			if err != nil || strings.TrimSpace(string(b)) != name {
				continue
			}
			f, err := os.OpenFile("/dev/"+e.Name(), os.O_RDWR|syscall.O_NONBLOCK, 0)
			if err == nil {
				return f
			}
			if !told {
				warn(err.Error())
				told = true
			}
		}
		if !told && time.Since(begin) > 5*time.Second {
			warn("no virtio-serial port is named " + name + " yet")
			told = true
		}
	}
}

// powerOff ends the machine, one way or the other.
func powerOff(reset bool) {
	for {
		err := sys.PowerOff(reset)
		fmt.Fprintln(os.Stderr, "proa-agent: ", err)
		reset = !reset
		time.Sleep(100 * time.Millisecond)
	}
}
