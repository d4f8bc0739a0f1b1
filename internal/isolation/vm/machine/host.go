package machine

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// host is the QEMU of this host and what it needs to run.
type host struct {
	binary  string
	version string
	// paths are all files that it opens before a guest runs, of the
	// accelerator asked for: program, loader, libraries, module, firmware.
	paths []string
	env   []string
	tsc   uint64 // kHz
	// steady says that tsc is the same on all processors at all times.
	steady bool
}

// NoQEMUError says that there is no usable QEMU. It is an
// errdefs.ErrFailedPrecondition.
type NoQEMUError struct{ Why string }

func (e *NoQEMUError) Error() string {
	return "cannot run virtual machines: " + e.Why + "; on Debian: apt-get install --no-install-recommends qemu-system-x86"
}

// Unwrap gives the kind.
func (e *NoQEMUError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// oldest is the first major version whose microvm has ACPI and takes a
// connected socket as a character device's descriptor.
const oldest = 6

var versionLine = regexp.MustCompile(`version (\d+)\.(\d+)(?:\.(\d+))?`)

// findHost looks for QEMU and everything that it opens.
func findHost(ctx context.Context, program string) (*host, error) {
	if runtime.GOARCH != "amd64" {
		return nil, &NoQEMUError{Why: fmt.Sprintf("the VM wall runs on amd64 so far, this host is %s", runtime.GOARCH)}
	}
	if program == "" {
		program = "qemu-system-x86_64"
	}
	binary, err := exec.LookPath(program)
	if err != nil {
		return nil, &NoQEMUError{Why: fmt.Sprintf("there is no %s", program)}
	}
	if binary, err = filepath.EvalSymlinks(binary); err != nil {
		return nil, &NoQEMUError{Why: err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return nil, &NoQEMUError{Why: fmt.Sprintf("%s --version failed: %v", binary, err)}
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return nil, &NoQEMUError{Why: fmt.Sprintf("%s is no QEMU: it says %.60q", binary, out)}
	}
	h := &host{binary: binary, version: strings.TrimPrefix(m[0], "version ")}
	if major, _ := strconv.Atoi(m[1]); major < oldest {
		return nil, &NoQEMUError{Why: fmt.Sprintf("%s is version %s, %d.0 is needed", binary, h.version, oldest)}
	}
	if out, err = exec.CommandContext(ctx, binary, "-L", "help").Output(); err != nil {
		return nil, &NoQEMUError{Why: fmt.Sprintf("%s -L help failed: %v", binary, err)}
	}
	if err := h.collect(strings.Fields(string(out))); err != nil {
		return nil, err
	}
	h.tsc, h.steady = sys.TSCKHz(), sys.SteadyTSC()
	return h, nil
}

// firmware of a microvm that boots a PVH kernel: the first of each line that exists.
var firmware = []string{"bios-microvm.bin", "qboot.rom", "pvh.bin", "linuxboot_dma.bin"}

func (h *host) collect(dataDirs []string) error {
	dirs := libraryDirs()
	have := map[string]bool{}
	add := func(path string) {
		if !have[path] {
			have[path] = true
			h.paths = append(h.paths, path)
		}
	}
	programs := []string{h.binary}
	for _, dir := range dirs { // QEMU may have emulation as a module
		module := filepath.Join(dir, "qemu", "accel-tcg-x86_64.so")
		if _, err := os.Stat(module); err == nil {
			programs = append(programs, module)
			break
		}
	}
	libs, loader, err := neededLibraries(programs, dirs)
	if err != nil {
		return err
	}
	for _, p := range programs {
		add(p)
	}
	if loader != "" {
		add(loader)
	}
	var unusual []string
	for _, lib := range libs {
		add(lib)
		if dir := filepath.Dir(lib); !slices.Contains(loaderDirs, dir) && !slices.Contains(unusual, dir) {
			unusual = append(unusual, dir)
		}
	}
	if len(unusual) > 0 { // the jail has no ld.so.cache
		h.env = append(h.env, "LD_LIBRARY_PATH="+strings.Join(unusual, ":"))
	}
	found := 0
	for _, name := range firmware {
		for _, dir := range dataDirs {
			path := filepath.Join(filepath.Clean(dir), name)
			if _, err := os.Stat(path); err == nil {
				add(path)
				found++
				break
			}
		}
	}
	if found < 2 {
		return &NoQEMUError{Why: fmt.Sprintf("its firmware for microvm (%s) is in none of %s", strings.Join(firmware, ", "), strings.Join(dataDirs, ", "))}
	}
	return nil
}

// loaderDirs are those that glibc's loader on x86-64 searches without being told,
// Debian's and everybody else's.
var loaderDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// libraryDirs are the directories of libraries, without symbolic links, since
// the jail has none: /lib is /usr/lib on most hosts.
func libraryDirs() []string {
	var dirs []string
	for _, dir := range configuredDirs() {
		if real, err := filepath.EvalSymlinks(dir); err == nil && !slices.Contains(dirs, real) {
			dirs = append(dirs, real)
		}
	}
	return dirs
}

// configuredDirs adds to loaderDirs those of /etc/ld.so.conf.
func configuredDirs() []string {
	dirs := slices.Clone(loaderDirs)
	var read func(path string, depth int)
	read = func(path string, depth int) {
		b, err := os.ReadFile(path)
		if err != nil || depth > 4 {
			return
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		for lines.Scan() {
			line, _, _ := strings.Cut(lines.Text(), "#")
			line = strings.TrimSpace(line)
			if pattern, ok := strings.CutPrefix(line, "include "); ok {
				pattern = strings.TrimSpace(pattern)
				if !filepath.IsAbs(pattern) {
					pattern = filepath.Join("/etc", pattern)
				}
				files, _ := filepath.Glob(pattern)
				for _, f := range files {
					read(f, depth+1)
				}
			} else if filepath.IsAbs(line) && !slices.Contains(dirs, filepath.Clean(line)) {
				dirs = append(dirs, filepath.Clean(line))
			}
		}
	}
	read("/etc/ld.so.conf", 0)
	return dirs
}

// neededLibraries follows DT_NEEDED from programs through dirs, as the loader
// does, and returns the libraries and the loader itself.
func neededLibraries(programs, dirs []string) (libs []string, loader string, err error) {
	seen := map[string]bool{}
	queue := slices.Clone(programs)
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		f, err := elf.Open(path)
		if err != nil {
			return nil, "", fmt.Errorf("cannot read %q: %w", path, err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP && loader == "" && p.Filesz < 4096 {
				b := make([]byte, p.Filesz)
				if _, err := p.ReadAt(b, 0); err == nil {
					loader = strings.TrimRight(string(b), "\x00")
				}
			}
		}
		needed, err := f.ImportedLibraries()
		search := runpath(f, path)
		f.Close()
		if err != nil {
			return nil, "", fmt.Errorf("cannot read what %q needs: %w", path, err)
		}
		search = append(search, dirs...)
		for _, name := range needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			if filepath.Base(loader) == name {
				continue
			}
			lib, err := findLibrary(name, search)
			if err != nil {
				return nil, "", fmt.Errorf("cannot find what %q needs: %w", path, err)
			}
			libs = append(libs, lib)
			queue = append(queue, lib)
		}
	}
	return libs, loader, nil
}

func runpath(f *elf.File, path string) (dirs []string) {
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		entries, _ := f.DynString(tag)
		for _, e := range entries {
			for _, dir := range strings.Split(e, ":") {
				dir = strings.ReplaceAll(dir, "${ORIGIN}", "$ORIGIN")
				dirs = append(dirs, filepath.Clean(strings.ReplaceAll(dir, "$ORIGIN", filepath.Dir(path))))
			}
		}
	}
	return dirs
}

func findLibrary(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		f, err := elf.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil { // a linker script, or another format
			continue
		}
		class := f.Class
		f.Close()
		if class == elf.ELFCLASS64 {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %q: %w", name, errdefs.ErrNotFound)
}
