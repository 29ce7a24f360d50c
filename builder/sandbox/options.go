package sandbox

import (
	"fmt"
	"log/slog"
	"net/netip"
)

// A Mode is a network that a process can have. The zero Mode stands for the
// default of whoever reads it.
type Mode string

const (
	// Sandbox is a network of the process's own with a way out to the internet
	// and none to the host, to other processes or to private ranges.
	Sandbox Mode = "sandbox"
	// None is a network of the process's own with nothing but loopback.
	None Mode = "none"
	// Host is the network of the daemon. It gives up isolation.
	Host Mode = "host"
)

// ParseMode returns the Mode that s names.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Sandbox, None, Host:
		return m, nil
	}
	return "", fmt.Errorf("unknown network %q: want sandbox, none or host", s)
}

// Options configures a [Runner].
type Options struct {
	// Root is the directory for state. One Runner at a time uses it. Its file
	// system must be able to hold the lower directory of an overlay.
	Root string

	// Runc is the runtime, a name looked up in PATH or a path. Empty means runc.
	Runc string

	// Network is what a Process gets that does not choose. Empty means Sandbox.
	Network Mode

	// BuildCA is a file of PEM certificates that processes shall trust, or
	// empty. It is read for each process, so it may be replaced at any time.
	BuildCA string

	// AllowEgress lists ranges that the Sandbox network may reach although they
	// are private or link-local. The host itself is reached only when one of its
	// addresses is listed as a range of that one address.
	AllowEgress []netip.Prefix

	// DNS lists the resolvers that the Sandbox network's names are looked up
	// with. Nil means those of /etc/resolv.conf, followed as it changes.
	DNS []netip.Addr

	// Log gets what cannot be returned. Nil means none.
	Log *slog.Logger

	// CgroupParent is the path below which the Runner makes its cgroup. Empty
	// means the root.
	CgroupParent string
}

func (o *Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}
