package fleet_test

import (
	"testing"

	"github.com/slipwayhq/slipway/fleet"
)

// What a board hears late or twice changes nothing.
func TestBoardIgnoresStaleNews(t *testing.T) {
	b := fleet.NewBoard()
	is := func(want string) {
		t.Helper()
		if got := b.State("a"); got != want {
			t.Errorf("state %q, want %q", got, want)
		}
	}
	b.Update("a", "queued", "", 1)
	is("") // nobody expects it
	b.Expect("a")
	b.Update("a", "queued", "", 1)
	is("queued")
	b.Update("a", "running", "me", 2)
	b.Observe("a", "queued", "", 1)
	is("running")
	b.Observe("a", "running", "me", 2)
	b.Update("a", "done", "me", 3)
	b.Observe("a", "running", "me", 2)
	is("done")
	b.Observe("a", "done", "me", 3)
	is("")
	b.Update("a", "running", "me", 2)
	is("") // forgotten for good
}
