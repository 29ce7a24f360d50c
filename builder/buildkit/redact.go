package buildkit

import (
	"context"
	"encoding/base64"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/session"
)

// An attester is an exporter whose attestations by BuildKit say no password of
// an address. BuildKit hides those of the sources of a build, and shows them
// again where provenance has all steps and the Dockerfile (mode=max).
type attester struct{ exporter.Exporter }

// Exporter implements BuildKit's worker.
func (w *worker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	e, err := w.exporter(name, sm)
	if err != nil {
		return nil, err
	}
	return attester{e}, nil
}

// Resolve implements BuildKit's exporter.
func (a attester) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	e, err := a.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return attestedExport{e}, nil
}

type attestedExport struct{ exporter.ExporterInstance }

// Export implements BuildKit's exporter instance.
func (e attestedExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	return e.ExporterInstance.Export(ctx, redacted(src), info)
}

// redacted returns what src is, with attestations that say no password.
func redacted(src *exporter.Source) *exporter.Source {
	out := &exporter.Source{Ref: src.Ref, Refs: src.Refs, Metadata: src.Metadata}
	out.Attestations = maps.Clone(src.Attestations)
	for k, all := range out.Attestations {
		all = slices.Clone(all)
		for i, a := range all {
			if content := a.ContentFunc; content != nil {
				all[i].ContentFunc = func(ctx context.Context) ([]byte, error) {
					raw, err := content(ctx)
					return redactJSON(raw), err
				}
			}
		}
		out.Attestations[k] = all
	}
	return out
}

var (
	// userinfo is what stands between the scheme and the host of an address.
	// Its password may have an @.
	userinfo = regexp.MustCompile(`\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/?#"'<>]+)@`)

	// fileData is the text of a file in provenance.
	fileData = regexp.MustCompile(`("data":\s*")([A-Za-z0-9+/]+=*)(")`)
)

// redactJSON takes users and passwords out of the addresses in a document, and
// in the files that it has.
func redactJSON(raw []byte) []byte {
	return fileData.ReplaceAllFunc([]byte(redact(string(raw))), func(match []byte) []byte {
		part := fileData.FindSubmatch(match)
		text, err := base64.StdEncoding.DecodeString(string(part[2]))
		if err != nil {
			return match
		}
		hidden := redact(string(text))
		return slices.Concat(part[1], []byte(base64.StdEncoding.EncodeToString([]byte(hidden))), part[3])
	})
}

// redact takes users and passwords out of the addresses in a text, as BuildKit's
// urlutil does of one.
func redact(text string) string {
	return userinfo.ReplaceAllStringFunc(text, func(match string) string {
		part := userinfo.FindStringSubmatch(match)
		if strings.Contains(part[2], ":") {
			return part[1] + "xxxxx:xxxxx@"
		}
		return part[1] + "xxxxx@"
	})
}
