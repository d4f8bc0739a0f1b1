// Package version owns the name of this build, set by the linker.
package version

// Version is the build's git description; "dev" without one.
var Version = "dev"
