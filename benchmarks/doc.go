// Command benchmarks measures Slipway and its peers side by side: whole
// deploys, from a directory to an image in a registry, on one machine.
//
// It builds Slipway from the folder above and the peers from the tool lines
// of this module, prepares a workload, and runs every tool in turns (ABAB, the
// order turned around each round), so that whatever else the machine does
// falls on all alike. Read rounds.go first; what a tool is stands in
// contender.go.
//
// It needs root (overlayfs, runc) and, once, the network (Go modules and a
// Debian base from debootstrap).
package main
