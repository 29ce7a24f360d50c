package buildctx

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// partSize is the length at which a part of a manifest is full, before
// compression.
const partSize = 1 << 20

// entriesField is the number of ManifestEntries.entries.
const entriesField = 1

// ToProto hands the manifest to send in parts of about 1 MiB before
// compression, the last one marked. It stops at the first error of send.
func (m *Manifest) ToProto(send func(*slipwayv1.ManifestPart) error) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("compress manifest: %w", err)
	}
	defer enc.Close()
	var (
		buf []byte
		msg slipwayv1.ManifestEntry
	)
	for i := range m.Entries {
		m.Entries[i].toProto(&msg)
		if buf, err = appendEntry(buf, &msg); err != nil {
			return fmt.Errorf("encode manifest: %w", err)
		}
		if len(buf) < partSize || i == len(m.Entries)-1 {
			continue
		}
		if err := send(&slipwayv1.ManifestPart{Entries: enc.EncodeAll(buf, nil)}); err != nil {
			return err
		}
		buf = buf[:0]
	}
	return send(&slipwayv1.ManifestPart{Entries: enc.EncodeAll(buf, nil), Last: true})
}

// appendEntry appends one element of ManifestEntries.entries.
func appendEntry(b []byte, msg *slipwayv1.ManifestEntry) ([]byte, error) {
	b = protowire.AppendTag(b, entriesField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(proto.Size(msg)))
	return proto.MarshalOptions{UseCachedSize: true, Deterministic: true}.MarshalAppend(b, msg)
}

func (e *Entry) toProto(msg *slipwayv1.ManifestEntry) {
	proto.Reset(msg)
	msg.Path = []byte(e.Path)
	msg.Type = slipwayv1.EntryType(e.Type)
	msg.Mode = e.Mode
	msg.Size = uint64(e.Size)
	msg.Mtime = e.ModTime
	msg.Xattrs = e.Xattrs
	if e.Type == TypeFile {
		msg.Sha256 = e.Digest[:]
	}
	if e.Link != "" {
		msg.Link = []byte(e.Link)
	}
}
