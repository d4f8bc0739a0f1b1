// Package version owns the name of this build, set by the linker.
package version

// Version is the tag of the build, or 0.0.0-dev and its commit. It has three
// numbers at its beginning always, because clients read the engine's.
var Version = "0.0.0-dev"
