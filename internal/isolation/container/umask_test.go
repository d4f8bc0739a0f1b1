package container_test

import "syscall"

// The tests make files as proad does, whatever umask they were started with.
func init() { syscall.Umask(0o022) }
