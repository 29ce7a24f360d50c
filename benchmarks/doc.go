// Command benchmarks measures Slipway and its peers side by side: whole
// deploys, from a directory to an image in a registry, pushes and copies, on
// one machine.
//
// It builds Slipway from the folder above and the peers from the tool lines
// of this module, takes what else is installed (docker, buildah, skopeo,
// curl), prepares the workloads, and runs every tool in turns (ABAB, the
// order turned around each round), so that whatever else the machine does
// falls on all alike. Read workload.go and rounds.go first; what a tool is
// stands in contender.go. Each workload has a file of its own.
//
// It needs root (overlayfs, runc) and the network (Go modules and Debian
// packages once, npm and Go modules in the builds of workloads N and G).
package main
