package sandbox

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpTries is how often a list that changed while it was read is read again.
// Other daemons on the host make and remove links all the time.
const dumpTries = 20

// dump returns what list returns, once nothing has changed meanwhile.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func links(h *netlink.Handle) ([]netlink.Link, error) { return dump(h.LinkList) }

func addresses(h *netlink.Handle) ([]netlink.Addr, error) {
	return dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_V4) })
}
