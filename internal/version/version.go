// Package version owns the name of this build, set by the linker.
package version

// Version is the tag of the build, or 0.0.0-dev and its commit. It has three
// numbers at its beginning always, because clients read the engine's.
var Version = "0.0.0-dev"

// Commit is the short name of the commit that was built, and Built its time
// (RFC 3339): "" and the year one where git does not know.
var (
	Commit = ""
	Built  = "0001-01-01T00:00:00Z"
)
