// Package sandbox runs the process of one build step in a runc container, the
// way Docker runs RUN: same capabilities, system call filter, mounts,
// environment and users, over an overlay of the image's layers.
//
// Read run.go first: [Runner.Run] is the story of one process. Its root file
// system is put together in overlay.go and initdir.go, or is there already
// (root.go), what else it sees in mount.go, its OCI configuration in spec.go.
// The runtime is started and waited for in execute.go; stream.go and pty.go
// join what the process reads and writes with the caller. [Runner.Exec] in
// exec.go runs more processes in a container.
//
// A process in the [Sandbox] network reaches the internet and nothing of its
// host: network.go sets that up once, endpoint.go for each process, firewall.go
// holds the rules.
//
// A Runner leaves nothing behind. What a killed daemon could not clean up, the
// next [New] on the same root finds and removes (sweep.go).
package sandbox
