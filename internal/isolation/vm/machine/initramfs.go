package machine

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// What the agent expects in its initramfs (see its package comment).
const (
	moduleDir  = "modules"
	moduleList = "modules.txt" // one path a line, in the order of loading
)

// writeInitramfs writes the guest's first file system: the agent as /init, the
// modules, and mount points. It is the same, byte for byte, for the same
// input: no times, no inode numbers of the host. It stays uncompressed: QEMU
// puts it into the guest's memory at the speed of the host, whereas unpacking
// is done by the guest, which may be emulated.
func writeInitramfs(w io.Writer, agent []byte, modules []Module) error {
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1), // the kernel opens it for /init
		cpio.CharDev("dev/null", 0o666, 1, 3),    // Go's runtime opens it where a standard descriptor is missing
		cpio.Directory("newroot", 0o755),
		cpio.Directory("proc", 0o555),
		cpio.Directory("sys", 0o555),
		cpio.StaticFile("init", string(agent), 0o755),
		cpio.Directory(moduleDir, 0o755),
	}
	var list strings.Builder
	for _, m := range modules {
		path := moduleDir + "/" + m.Name + ".ko"
		fmt.Fprintf(&list, "/%s\n", path)
		records = append(records, cpio.StaticFile(path, string(m.Data), 0o644))
	}
	records = append(records, cpio.StaticFile(moduleList, list.String(), 0o644))

	var archive bytes.Buffer
	out := cpio.Newc.Writer(&archive)
	for i, r := range records {
		r.Ino = uint64(i + 1)
		if err := out.WriteRecord(cpio.MakeReproducible(r)); err != nil {
			return fmt.Errorf("cannot write %q into the initramfs: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(out); err != nil {
		return fmt.Errorf("cannot end the initramfs: %w", err)
	}
	_, err := w.Write(archive.Bytes())
	return err
}
