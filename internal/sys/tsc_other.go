//go:build !amd64

package sys

// TSCKHz is 0: only x86 has a time stamp counter of that name.
func TSCKHz() uint64 { return 0 }

// SteadyTSC is false.
func SteadyTSC() bool { return false }
