package builder

import (
	"context"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A Guest is a build that comes by another way than a deploy, and waits its
// turn as deploys do.
type Guest struct {
	Start *slipwayv1.Start // what its record says; nothing of it is checked

	// Place is told where in the queue it is, 1 being next, once it has waited
	// for a moment and each time that changes. May be nil.
	Place func(place int)

	// Run is called once, when it is the build's turn, or never.
	Run func(ctx context.Context, t Turn) *slipwayv1.Result
}

// A Turn is what a guest gets when it may begin.
type Turn struct {
	Request

	// Emit appends an event to the build's log.
	Emit func(*slipwayv1.Event)

	// Rest gives the build's place to others while it waits for something
	// outside of the daemon that may need one. Resume takes it back at once, and
	// must be called.
	Rest func() (resume func())
}
