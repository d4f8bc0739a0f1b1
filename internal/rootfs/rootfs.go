// Package rootfs reads and writes the files of a root: it makes the layer of
// what an instance has written, lists what differs from the image, and carries
// single files, trees and whole roots in and out as tar streams. The same code
// serves containers on the host and, in the guest agent, the root of a VM.
//
// It owns the meaning of an overlay's upper directory and of the tar streams
// that Docker's API gives and takes. It never mounts anything, knows nothing of
// images, containers or the engine, and executes nothing. Everything in a root
// is hostile: paths are resolved by the kernel below an open root descriptor
// (openat2 with RESOLVE_IN_ROOT, CVE-2018-15664), a file's type is known before it is
// opened, and what changes while it is read makes a stream that is still whole.
package rootfs
