// Package layercache keeps what builds can use again: compressed layers, the
// snapshots that steps run on, the files of build contexts, the directories
// that steps keep for themselves, and the records that tell which of them a
// step would make.
//
// One [Store] owns a directory: containerd's local content store, its
// overlayfs snapshotter and its bbolt metadata database, with Slipway's own
// records in the same database file, so that a record and the things it names
// appear in one transaction. Every org has a containerd namespace of its own
// and sees nothing but that: neither a hit nor a "have it already" crosses
// from one org to another, even where both share a blob's bytes on the disk.
//
// A cache may forget but must not lie. Whatever is lost, cut short or does not
// read back is a miss ([ErrNotFound]) and is cleaned away, so that the next
// build makes it again; it is never an error.
//
// What is in use is held by a [Lease]. Everything else may be evicted when the
// cache grows over its ceiling or the disk runs short: least recently used
// first, and what the last successful build of each app needs only when
// nothing else is left.
//
// Builders that speak containerd's interfaces get the org's part of the store as
// [Containerd]. What they record of it in databases of their own is counted and
// evicted with the rest by way of a [Lodger].
//
// Read [Open] and [Store.Org] first, then [Cache.Create] for blobs, [Cache.Step]
// and [Cache.Layer] for records, [Cache.Prepare] for snapshots,
// [Cache.Contents] for build contexts and [Cache.Mount] for cache mounts.
package layercache
