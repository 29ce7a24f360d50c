package main

import (
	"fmt"
	"strings"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// cacheTo reads --cache-to: type=inline, or type=registry,ref=REF[,mode=max].
func cacheTo(specs []string) ([]*slipwayv1.CacheExport, error) {
	var out []*slipwayv1.CacheExport
	for _, spec := range specs {
		e := &slipwayv1.CacheExport{}
		for field := range strings.SplitSeq(spec, ",") {
			switch name, value, _ := strings.Cut(field, "="); {
			case name == "type" && value == "inline":
				e.Type = slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_INLINE
			case name == "type" && value == "registry":
				e.Type = slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY
			case name == "ref":
				e.Ref = value
			case name == "mode" && (value == "min" || value == "max"):
				e.All = value == "max"
			default:
				return nil, client.UserError(fmt.Sprintf("--cache-to %q: %q is not known", spec, field), "Write type=inline, or type=registry,ref=REF[,mode=min|max].")
			}
		}
		out = append(out, e)
	}
	return out, nil
}
