package command

import (
	"runtime/debug"

	"github.com/moby/buildkit/version"
)

// tellVersion gives BuildKit the version that this program was built with: its
// own release builds are told by the linker.
func tellVersion() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, m := range info.Deps {
		if m.Path == version.Package {
			version.Version = m.Version
		}
	}
}
