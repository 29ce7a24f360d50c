package main_test

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// The network of RUN steps comes back by itself; where it cannot, the operator
// is told, and who deploys hears that it is not their fault.
func TestBridgeIsTakenAway(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	name := "slipway-" + d.network
	remove := func() {
		t.Helper()
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove()
	c.deploy("bridge", dockerfile("FROM busybox", "RUN ip route | grep -q default").write(t))

	remove()
	if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
		t.Skip("needs dummy links:", err)
	}
	failed := c.deployFails(exitUnavailable, "unavailable", "bridge", dockerfile("FROM busybox", "RUN echo again").write(t))
	if e := failed.Error; e.Blame != "builder" || e.Phase != "build" || e.Line != 2 || !e.Retryable || !strings.Contains(e.Hint, "slipway doctor") {
		t.Errorf("error %+v", e)
	}
	if !strings.Contains(d.log.String(), name) {
		t.Errorf("the log does not name the bridge: %s", d.log)
	}
	if doctor := c.slipway("doctor"); doctor.code() == exitDone || !strings.Contains(doctor.text(), name) {
		t.Errorf("doctor: exit code %d\n%s", doctor.code(), doctor.text())
	}
	remove()
	c.deploy("bridge", dockerfile("FROM busybox", "RUN echo again").write(t))
}
