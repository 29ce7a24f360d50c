// Package shell runs processes that people ask for, in the sandbox of builds.
//
// A [Keeper] keeps what a failed step leaves, so that a shell can be opened where
// it failed: read keeper.go, then kept.go, which is one such step, and room.go,
// the container in which shells of a step are side by side. [Commands] runs one
// command in an image of the daemon's registry, of which nothing is kept.
package shell
