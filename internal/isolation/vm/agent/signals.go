package agent

import (
	"os"
	"os/signal"
	"syscall"
)

// children catches every signal and tells of SIGCHLD. Notify instead of Ignore:
// an ignored signal would stay ignored in every process that is started. The
// default would be worse: Go's runtime exits on SIGTERM, and the kernel with it.
func children() <-chan struct{} {
	all := make(chan os.Signal, 64)
	signal.Notify(all)
	child := make(chan struct{}, 1)
	child <- struct{}{} // what ended before we listened
	go func() {
		for s := range all {
			if s != syscall.SIGCHLD {
				continue
			}
			select {
			case child <- struct{}{}:
			default: // a pending tick covers it: the reaper takes all that there are
			}
		}
	}()
	return child
}
