package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// complete asks again where links or routes changed while the kernel listed
// them, which it says (NLM_F_DUMP_INTR): half a list is no list.
func complete[T any](dump func() (T, error)) (out T, err error) {
	for range 50 {
		if out, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}
