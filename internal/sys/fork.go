package sys

import _ "unsafe" // for go:linkname

// The runtime's hooks around a fork that package syscall uses: signals are
// blocked in the parent until afterFork, and the child gets its handlers reset
// by afterForkInChild. Go keeps these three reachable for programs that fork by
// themselves (golang.org/issue/67401).

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()
