// Package buildctx moves a build context from a client to the daemon: the
// files that a Dockerfile may copy, named by what they contain.
//
// The client scans a directory into a [Manifest] ([Scan]) and sends it in
// parts ([Manifest.ToProto]). The daemon checks every part
// ([ManifestDecoder]), finds out which contents it lacks ([Needs]) and asks
// for those alone. A [Sender] streams them and a [Receiver] puts them into
// the daemon's [Store]. Contents are asked for by SHA-256, never by
// modification time, so a fresh checkout of an unchanged tree sends nothing.
//
// Read manifest.go first for the values, then scan.go and send.go for the
// client, needs.go and receive.go for the daemon. The daemon's side takes
// what it gets from a stranger: it validates every path, never allocates by a
// size that it has not bounded, and opens nothing by name.
package buildctx
