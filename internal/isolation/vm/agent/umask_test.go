package agent

import "syscall"

// The tests make files with the usual umask, whatever they were started with.
func init() { syscall.Umask(0o022) }
