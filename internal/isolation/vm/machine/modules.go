package machine

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// guestModules is what a guest needs and a distribution kernel may have as
// modules: the bus and the four devices of our machine, and the file systems
// of the root. It is bounded on purpose: whatever else a workload wants to
// load is the business of its image.
var guestModules = []string{
	"virtio_mmio",    // the bus of a microvm
	"virtio_console", // the agent's channel; first, since the agent waits for it
	"virtio_blk",     // image and writable disk
	"virtio_net",
	"virtio_rng", // seeds the guest's random numbers
	"erofs",      // the image
	"ext4",       // the writable layer
	"overlay",    // both as one
	"af_packet",  // ping, DHCP clients, tcpdump
}

// Module is one kernel module, unpacked.
type Module struct {
	Name string // with underscores, as the kernel says it
	Data []byte
}

// loadModules returns the wanted modules and all that they depend on, in an
// order in which they can be loaded one after the other. What is built into
// the kernel is left out; what is neither there nor built in is
// errdefs.ErrNotFound.
//
// Order and dependencies come from the modules themselves (the "depends" of
// their .modinfo section): modules.dep is written by depmod, which runs only
// when a package is installed.
func loadModules(dir string, wanted []string) ([]Module, error) {
	builtin, err := readBuiltin(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	files, err := findModules(dir)
	if err != nil {
		return nil, err
	}
	var out []Module
	state := map[string]int{} // 1: being loaded, 2: in out
	var load func(name, forWhat string) error
	load = func(name, forWhat string) error {
		name = moduleName(name)
		switch {
		case builtin[name] || state[name] == 2:
			return nil
		case state[name] == 1:
			return fmt.Errorf("cannot order kernel modules: %w: %s depends on itself", errdefs.ErrInvalidArgument, name)
		}
		state[name] = 1
		file, ok := files[name]
		if !ok {
			return fmt.Errorf("cannot find kernel module %s%s in %q: %w", name, forWhat, dir, errdefs.ErrNotFound)
		}
		data, err := readModule(file)
		if err != nil {
			return err
		}
		depends, err := moduleDepends(data)
		if err != nil {
			return fmt.Errorf("cannot read kernel module %q: %w", file, err)
		}
		for _, d := range depends {
			if err := load(d, ", which "+name+" needs,"); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, Module{Name: name, Data: data})
		return nil
	}
	for _, name := range wanted {
		if err := load(name, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readBuiltin reads modules.builtin: one path below the module directory a line.
func readBuiltin(path string) (map[string]bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read what is built into the kernel: %w", err)
	}
	defer f.Close()
	builtin := map[string]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		builtin[moduleName(filepath.Base(strings.TrimSpace(lines.Text())))] = true
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read what is built into the kernel: %w", err)
	}
	return builtin, nil
}

// findModules maps module names to files.
func findModules(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base, ok := moduleBase(d.Name()); ok && d.Type().IsRegular() {
			files[moduleName(base)] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot look for kernel modules: %w", err)
	}
	return files, nil
}

// moduleBase strips ".ko" and a compression from a file name.
func moduleBase(file string) (string, bool) {
	for _, packed := range []string{".gz", ".xz", ".zst"} {
		file = strings.TrimSuffix(file, packed)
	}
	return strings.CutSuffix(file, ".ko")
}

// moduleName is the kernel's spelling: underscores, no suffix.
func moduleName(file string) string {
	if base, ok := moduleBase(file); ok {
		file = base
	}
	return strings.ReplaceAll(file, "-", "_")
}

func readModule(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read kernel module: %w", err)
	}
	if bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return data, nil
	}
	if data, err = decompress(data); err != nil {
		return nil, fmt.Errorf("cannot decompress kernel module %q: %w", file, err)
	}
	return data, nil
}

// moduleDepends reads "depends=a,b" of a module's .modinfo section.
func moduleDepends(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%w: no .modinfo section", errdefs.ErrInvalidArgument)
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, entry := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
