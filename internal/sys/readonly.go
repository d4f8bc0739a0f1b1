package sys

import (
	"fmt"
	"os"
)

// ReadonlyProgram opens an executable through a read-only mount of its own,
// which is attached nowhere. A process that is executed from it (by the name
// /proc/self/fd/N in the process that holds the descriptor) has an exe link
// through which nobody can write, whatever rights they have: what a container
// catches of the program that started it, it cannot change (CVE-2019-5736).
func ReadonlyProgram(path string) (*os.File, error) {
	f, err := OpenPath(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open program %q: %w", path, err)
	}
	defer f.Close()
	m, err := CloneTree(f, "", false)
	if err != nil {
		return nil, err
	}
	if err := SetMountAttr(m, MountReadonly, 0, false); err != nil {
		_ = m.Close()
		return nil, err
	}
	return m, nil
}
