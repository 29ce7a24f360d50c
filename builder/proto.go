package builder

import (
	"cmp"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/limits"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/pushd/compress"
)

var blames = map[failure.Blame]slipwayv1.Blame{
	failure.User:     slipwayv1.Blame_BLAME_USER,
	failure.Builder:  slipwayv1.Blame_BLAME_BUILDER,
	failure.Registry: slipwayv1.Blame_BLAME_REGISTRY,
	failure.Net:      slipwayv1.Blame_BLAME_NETWORK,
}

// Proto returns a failure as it travels.
func Proto(e *failure.Error) *slipwayv1.Error {
	return &slipwayv1.Error{
		Code: e.Code, Phase: e.Phase, Blame: blames[e.Blame], Retryable: e.Retryable,
		Line: uint32(e.Line), ExitCode: int32(e.ExitCode), Message: clip(e.Message, maxMessage), Hint: e.Hint,
		Size: sizeReport(e.Size),
	}
}

func sizeReport(r *limits.Report) *slipwayv1.SizeReport {
	if r == nil {
		return nil
	}
	out := &slipwayv1.SizeReport{
		Total: uint64(r.Total), Limit: uint64(r.Max), Path: r.Path,
		LargestPaths: pathSizes(r.Paths), LargestDirectories: pathSizes(r.Dirs),
	}
	for _, s := range r.Sources {
		out.Lines = append(out.Lines, &slipwayv1.LineSize{Line: uint32(s.Line), Source: clip(s.Text, maxSource), Bytes: s.Bytes})
	}
	return out
}

func pathSizes(in []limits.PathSize) []*slipwayv1.PathSize {
	var out []*slipwayv1.PathSize
	for _, p := range in {
		out = append(out, &slipwayv1.PathSize{Path: p.Path, Bytes: uint64(p.Bytes)})
	}
	return out
}

// A result must fit into one entry of the log, whatever the Dockerfile holds:
// a here-document is one instruction of any length.
const (
	maxMessage = 8 << 10
	maxSource  = 1 << 10
	maxLine    = 300
)

// clip shortens s to n bytes and some, between characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// compression returns what a request asks for, on top of the default.
func compression(c *slipwayv1.Compression, def compress.Options) (compress.Options, error) {
	o := def
	switch c.GetType() {
	case slipwayv1.CompressionType_COMPRESSION_TYPE_UNSPECIFIED:
	case slipwayv1.CompressionType_COMPRESSION_TYPE_GZIP:
		o.Type = compress.Gzip
	case slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD:
		o.Type = compress.Zstd
	case slipwayv1.CompressionType_COMPRESSION_TYPE_NONE:
		o.Type = compress.None
	case slipwayv1.CompressionType_COMPRESSION_TYPE_AUTO:
		o.Type = compress.Auto
	default:
		return o, failure.Userf(failure.NotSupported, "use gzip, zstd, none or auto", "compression %s is not available", enumName("COMPRESSION_TYPE_", c.GetType()))
	}
	if o.Type == compress.Auto && c.GetLevel() != 0 {
		return o, failure.Userf(failure.InvalidArgument, "leave --compression-level out, or name gzip or zstd", "compression auto chooses the level itself")
	}
	if c != nil && c.Level != nil {
		if most := maxLevel(o.Type); *c.Level < 0 || *c.Level > most {
			return o, failure.Userf(failure.InvalidArgument, fmt.Sprintf("levels go from 1 to %d; 0 is the default", most), "%s has no compression level %d", cmp.Or(o.Type, compress.Gzip), *c.Level)
		}
		o.Level = int(*c.Level)
	}
	return o, nil
}

// maxLevel is the highest level that a compressor has. None has no levels, and
// takes any that another one would.
func maxLevel(t compress.Type) int32 {
	if t == "" || t == compress.Gzip {
		return 9
	}
	return 22
}

// enumName returns an enum's value as people write it.
func enumName(prefix string, v fmt.Stringer) string {
	return strings.ToLower(strings.TrimPrefix(v.String(), prefix))
}
