// Package platform owns what an image's platform means: how a config's spelling
// of it is read, which of several platforms fits this host best, and whether
// this host can run one behind an isolation. Everything but running (load,
// import, build, pull, push, save) takes images of any platform.
package platform

import (
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Of reads the platform of an image's config: "x86_64" is amd64, "aarch64" is
// arm64, no operating system is linux and no architecture is this host's.
func Of(p ocispec.Platform) ocispec.Platform {
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return platforms.Normalize(p)
}

// Host is this host's platform without the processor's level.
func Host() ocispec.Platform { return platforms.Normalize(platforms.DefaultSpec()) }

// Detected is Host with the level of an amd64 processor, as in linux/amd64/v3.
func Detected() ocispec.Platform {
	p := Host()
	if l := Level(); p.Architecture == "amd64" && l > 1 {
		p.Variant = variant(l)
	}
	return p
}

// Native lists what this processor runs by itself, best first: the plain
// platform, the levels of amd64 from the highest down, then 32 bits.
func Native() []ocispec.Platform {
	host := Host()
	if host.Architecture != "amd64" {
		return []ocispec.Platform{host}
	}
	out := []ocispec.Platform{host}
	for l := Level(); l > 1; l-- {
		p := host
		p.Variant = variant(l)
		out = append(out, p)
	}
	return append(out, ocispec.Platform{OS: host.OS, Architecture: "386"})
}

// preferred orders platforms by how well they fit this host.
var preferred = sync.OnceValue(func() platforms.MatchComparer {
	if Host().Architecture == "amd64" {
		return platforms.Ordered(Native()...)
	}
	return platforms.Only(platforms.DefaultSpec())
})

// Fits reports whether this processor is of the platform, 32 bits included.
func Fits(p ocispec.Platform) bool { return preferred().Match(Of(p)) }

// Best gives the index of the platform that is taken when none is asked for:
// the one that fits this host best, else the first. It is -1 for none.
func Best(list []ocispec.Platform) int {
	best := -1
	for i, p := range list {
		if best < 0 || preferred().Less(Of(p), Of(list[best])) {
			best = i
		}
	}
	return best
}

// Exact matches the platform that a request names and no other, as Docker's
// platform parameters do: linux/arm is linux/arm/v7, linux/amd64/v1 is
// linux/amd64.
func Exact(p ocispec.Platform) platforms.Matcher { return platforms.OnlyStrict(Of(p)) }

// Name is a platform in text: os/arch[/variant] without the "v1" of amd64.
func Name(p ocispec.Platform) string {
	p = platforms.Normalize(p)
	parts := []string{p.OS, p.Architecture}
	if p.Variant != "" && p.Variant != "v1" {
		parts = append(parts, p.Variant)
	}
	return strings.Join(parts, "/")
}

// Names lists platforms in text, each once, sorted.
func Names(list []ocispec.Platform) []string {
	var out []string
	for _, p := range list {
		out = append(out, Name(Of(p)))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
