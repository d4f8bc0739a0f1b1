package build

import (
	"fmt"
	"math"
	"os/signal"
	"syscall"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/util/bklog"
)

// minFile is what a file may have in any case: the builder's own are far smaller.
const minFile = 256 << 20

// boundFiles limits what this process may write into one file, at the begin of
// a build. A context or an archive may hold a file of a terabyte that takes
// nothing where it comes from: the layer that it would be in is refused, but
// BuildKit has to unpack it before there is a layer, and would fill the disk.
// What would be refused is not worth writing, nor is what has no room: a file of
// a context is there twice before it is in a layer.
func (b *Builder) boundFiles() {
	if b.cfg.MaxFile <= 0 {
		return
	}
	signal.Ignore(syscall.SIGXFSZ) // the write fails with EFBIG
	var fs syscall.Statfs_t
	room := int64(math.MaxInt64)
	if err := syscall.Statfs(b.cfg.Root, &fs); err == nil {
		room = int64(fs.Bavail) * fs.Bsize
	}
	var now syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &now)
	if err == nil {
		now.Cur = min(uint64(largestFile(b.cfg.MaxFile, room)), now.Max)
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &now)
	}
	if err != nil {
		bklog.L.Errorf("cannot limit the size of files: %v", err)
	}
}

func largestFile(layer, room int64) int64 { return max(min(layer, room/2), minFile) }

// fileBound says which files are too large.
func (b *Builder) fileBound() string {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &now); err != nil || b.cfg.MaxFile <= 0 {
		return ""
	}
	return fmt.Sprintf("a file of a build may have %s here: what fits into a layer (--max-layer-size of the engine) and twice into the room on its disk; .dockerignore leaves one out of the context",
		units.BytesSize(float64(now.Cur)))
}
