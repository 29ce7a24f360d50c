//go:build !race

package buildkit

// raceDetector reports whether the test runs with it.
const raceDetector = false
