// Package flat owns what a layer is on disk and how layers become a root: it
// turns a layer's tar stream into a flat layer (one data file, one tree file),
// merges the trees of an image's layers into one EROFS index, and mounts such
// an index by one of three strategies. It never decompresses, knows no image
// names or references, keeps no record of what exists and deletes nothing but
// its own unfinished work; that is its caller's.
//
// A flat layer is a directory named by the hex digits of its diffID:
//
//	<dir>/<hex>/data    contents of every regular file, each at a multiple of
//	                    4 KiB, zero chunks left out; a multiple of 4 KiB long
//	                    and never empty
//	<dir>/<hex>/tree    every entry, whiteout and opaque mark of the layer
//
// Both are written under a temporary name and appear by one rename: after a
// crash there is a whole layer or none. Neither changes afterwards, so any
// number of images, containers and machines may read them at once.
package flat

import (
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// BlockSize is the unit of data files and indexes, in bytes. Kernels before
// 6.4 mount no other EROFS block size on x86 than this one.
const BlockSize = 4096

// Names of the files in a layer's directory.
const (
	dataName = "data"
	treeName = "tree"
)

// Limits says what Write accepts. A zero field takes its default.
type Limits struct {
	// Bytes is the most that all regular files together may hold, holes
	// counted; default 64 GiB.
	Bytes int64
	// Entries is the most entries that the stream may have; default 2,000,000.
	Entries int
	// Depth is the most components that a path may have; default 1,024.
	Depth int
	// Want, when set, is the only diffID that is accepted. A stream with
	// another one leaves nothing behind and is an ErrInvalidArgument.
	Want digest.Digest
}

// Layer is one flat layer on disk. It is immutable and safe for concurrent use.
type Layer struct {
	// Dir is the directory that holds the layer's two files.
	Dir string
	// DiffID is the digest of the uncompressed tar stream.
	DiffID digest.Digest
	// Stream is the length of the uncompressed tar stream in bytes.
	Stream int64
	// Size is the sum of the sizes of all regular files, holes counted, hard
	// links once; Docker's notion of a layer's size.
	Size int64
	// Blocks is the length of the data file in units of BlockSize.
	Blocks uint64
	// Entries is how many entries the tree holds, whiteouts included.
	Entries int
}

// Data is the path of the layer's data file.
func (l *Layer) Data() string { return filepath.Join(l.Dir, dataName) }

// Tree is the path of the layer's tree file.
func (l *Layer) Tree() string { return filepath.Join(l.Dir, treeName) }

// The mount strategies, from the most to the least wanted.
const (
	StrategyFile    = "file"    // file-backed EROFS mounts, Linux 6.12
	StrategyLoop    = "loop"    // EROFS on shared read-only loop devices
	StrategyExtract = "extract" // a plain directory tree, no EROFS at all
)

// Files names the files of one image.
type Files struct {
	Index string   // made by Merge
	Data  []string // Layer.Data of every layer that was merged, in the same order
	// Dir is the directory that the strategy "extract" unpacks into, once. It
	// must not exist before the first Mount, its parent must; whoever removes
	// the image removes it. The other strategies leave it alone.
	Dir string
}

// Verdict is the answer to "can this host do it": yes, or no and why.
type Verdict struct {
	OK  bool
	Why string // a reason when not OK; a remark, or empty, when OK
}

// Ability says which strategies work for one data root.
type Ability struct {
	File, Loop, Extract Verdict
	Checked             time.Time
}
