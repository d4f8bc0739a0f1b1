#!/usr/bin/env bash
# Package:   github.com/containerd/platforms v1.0.0-rc.5
# Behaviour: what the matcher of a host takes beside its own architecture. On amd64 a linux/386 image fits and one of a
#            higher CPU level (linux/amd64/v2) does not, and DefaultSpec() names no level whatever the CPU can do: a
#            store that picks by the default platform takes the 386 image and refuses the v2 image that the CPU runs.
#            On arm64 every 32-bit arm image fits, down to v5, though many arm64 CPUs run no 32-bit program. The bare
#            word "i386" is 386, while the architecture "x86" in "linux/x86" is kept and fits nothing on amd64.
# Seen:      amd64 takes: amd64 true, 386 true, amd64/v2 false; amd64/v3 takes amd64/v2 true; default level ""
#            arm64 takes: arm/v8 true, arm/v5 true, arm64/v9 false
#            i386 -> linux/386, linux/x86 -> linux/x86 (amd64 takes it: false)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >go.mod <<'MOD'
module finding

go 1.26

require github.com/containerd/platforms v1.0.0-rc.5
MOD
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/containerd/platforms"
)

func takes(host, image string) bool {
	return platforms.Only(platforms.MustParse("linux/" + host)).Match(platforms.MustParse("linux/" + image))
}

func main() {
	spec := platforms.DefaultSpec()
	if spec.Architecture != "amd64" {
		spec.Variant = "" // the level of an amd64 host is what is shown
	}
	fmt.Printf("amd64 takes: amd64 %v, 386 %v, amd64/v2 %v; amd64/v3 takes amd64/v2 %v; default level %q\n",
		takes("amd64", "amd64"), takes("amd64", "386"), takes("amd64", "amd64/v2"), takes("amd64/v3", "amd64/v2"), spec.Variant)
	fmt.Printf("arm64 takes: arm/v8 %v, arm/v5 %v, arm64/v9 %v\n", takes("arm64", "arm/v8"), takes("arm64", "arm/v5"), takes("arm64", "arm64/v9"))
	fmt.Printf("i386 -> %s, linux/x86 -> %s (amd64 takes it: %v)\n",
		platforms.Format(platforms.MustParse("i386")), platforms.Format(platforms.MustParse("linux/x86")), takes("amd64", "x86"))
}
GO
GOFLAGS=-mod=mod go mod tidy >/dev/null 2>&1
GOFLAGS=-mod=mod go run . >got
cat got
diff - got <<'WANT'
amd64 takes: amd64 true, 386 true, amd64/v2 false; amd64/v3 takes amd64/v2 true; default level ""
arm64 takes: arm/v8 true, arm/v5 true, arm64/v9 false
i386 -> linux/386, linux/x86 -> linux/x86 (amd64 takes it: false)
WANT
