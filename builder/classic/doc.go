// Package classic builds images as Docker's classic builder does: an
// instruction at a time, a layer for each that changes the file system, and a
// cache keyed by the parent image and everything the instruction depends on.
// Stages form a graph: those that the target does not need are left out,
// independent ones run side by side.
//
// A stage walks its instructions ([stage]); each leaves a [node], the
// image as it then stands. A node's layer is made in the background while the
// stage goes on: COPY and friends describe theirs as a [draft] over the tree
// below, RUN's is the upper directory of its overlay. Steps that the org's cache
// lacks may come from caches elsewhere ([lender]). Read [Pipeline] first,
// then stage.go, node.go and change.go.
package classic
