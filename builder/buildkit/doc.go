// Package buildkit builds with BuildKit's solver and Dockerfile frontend inside
// the daemon, on the store, the sandbox and the push of all other builds.
//
// An [Engine] has one BuildKit an org, a [tenant], which it opens when the org
// first needs it: a worker on the org's part of the cache, a cache of results,
// a history, sessions. Nothing of one org is seen by another. Builds come to a
// tenant on two ways that are the same from there on: a deploy's request
// ([Engine.Plan], pipeline.go), and BuildKit's own API.
//
// What differs from BuildKit by itself:
//
//   - The context of a deploy is its manifest and the contents in the cache
//     (source.go): what is unchanged is neither sent nor read, and modification
//     times decide nothing.
//   - A COPY of one of its directories to where nothing is links the files
//     (fileop.go): no content is written for it.
//   - Git runs in package builder/gitfetch, which reaches what steps may reach
//     (git.go).
//   - A Dockerfile that may name an SSH server is read in a process without a
//     network (dockerfile.go, apart.go).
//   - A step runs in the sandbox of package builder/sandbox (subpackage
//     executor) and is stopped when it writes past the limit (watch.go).
//   - Layers are made by package builder/layer ([compression]) as soon as their
//     step has ended, if the image is going to have them (mark.go, vertex.go),
//     and go to the registry meanwhile (export.go).
//
// The [API] is BuildKit's, for its own clients: api.go has the calls that look
// and clean up, solve.go those that build, queue.go how these wait their turn,
// forward.go what a client's frontend and readers of records ask. Clients choose the ids of sessions and builds and
// what their definitions say: owners.go, mark.go and guard.go see to it that
// they get at nothing of others. A build of theirs goes through package builder
// as every other does.
package buildkit
