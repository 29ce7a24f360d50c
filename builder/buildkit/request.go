package buildkit

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/identity"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// noApp is whose builds are that belong to no app. No app can have the name.
const noApp = "-"

// appName is what an app may be called.
var appName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// maxExports bounds what one solve may put out.
const maxExports = 16

var (
	exports      = []string{client.ExporterImage, client.ExporterLocal, client.ExporterTar, client.ExporterOCI, client.ExporterDocker}
	cacheImports = []string{"registry", "local"}
	cacheExports = []string{"registry", "local", "inline"}
)

// normalize fills in what older clients leave out or say in other words.
func normalize(req *controlapi.SolveRequest) {
	if req.Session == "" {
		req.Session = identity.NewID() // of a client that serves nothing
	}
	if len(req.Exporters) == 0 && req.ExporterDeprecated != "" {
		req.Exporters = []*controlapi.Exporter{{Type: req.ExporterDeprecated, Attrs: req.ExporterAttrsDeprecated}}
	}
	req.ExporterDeprecated, req.ExporterAttrsDeprecated = "", nil
	if req.Cache == nil {
		req.Cache = &controlapi.CacheOptions{}
	}
	req.Exporters = slices.DeleteFunc(req.Exporters, func(e *controlapi.Exporter) bool { return e == nil })
}

// checkRequest refuses what can never become a build here.
func checkRequest(req *controlapi.SolveRequest, entitled []string) error {
	refused := slices.IndexFunc(req.Entitlements, func(e string) bool { return !slices.Contains(entitled, e) })
	switch {
	case req.Ref == "" || len(req.Ref) > maxID:
		return failure.Userf(failure.InvalidArgument, "give each build a ref of its own", "a build needs a ref of at most %d characters", maxID)
	case req.ProxyNetwork:
		return failure.Userf(failure.NotSupported, "leave the option out; steps reach what the operator allows", "a proxied network is not supported here")
	case refused >= 0:
		return failure.Userf(failure.PermissionDenied, "leave out --allow; the operator decides what steps may do", "the entitlement %s is not allowed here", req.Entitlements[refused])
	case len(req.Exporters) > maxExports:
		return failure.Userf(failure.InvalidArgument, "name fewer", "%d outputs are too many, %d are allowed", len(req.Exporters), maxExports)
	}
	for _, e := range req.Exporters {
		if !slices.Contains(exports, e.Type) {
			return notThere("output", e.Type, exports)
		}
	}
	for _, e := range req.Cache.Exports {
		if e != nil && !slices.Contains(cacheExports, e.Type) {
			return notThere("cache to export to", e.Type, cacheExports)
		}
	}
	imports := frontendImports(req.FrontendAttrs)
	for _, e := range req.Cache.Imports {
		imports = append(imports, e.GetType())
	}
	return checkImports(imports)
}

// Attributes of caches in registries.
const (
	attrRef      = "ref"
	attrInsecure = "registry.insecure"
)

// cacheName is the "host/path" that a cache is exported to.
func cacheName(attrs map[string]string) (name string, ok bool) {
	ref, err := reference.ParseNormalizedNamed(attrs[attrRef])
	if err != nil {
		return "", false // BuildKit says so
	}
	return ref.Name(), true
}

// checkImports refuses kinds of caches that cannot be read here.
func checkImports(types []string) error {
	for _, t := range types {
		if !slices.Contains(cacheImports, t) {
			return notThere("cache to import from", t, cacheImports)
		}
	}
	return nil
}

// frontendImports are the kinds of caches that a frontend is told to read.
func frontendImports(attrs map[string]string) []string {
	var all []frontend.CacheOptionsEntry
	if err := json.Unmarshal([]byte(attrs["cache-imports"]), &all); err != nil {
		return nil // the frontend says so
	}
	var types []string
	for _, e := range all {
		types = append(types, e.Type)
	}
	return types
}

func notThere(what, typ string, there []string) error {
	return failure.Userf(failure.NotSupported, "use one of "+strings.Join(there, ", "), "there is no %s of type %q here", what, typ)
}

// An imageSpec is how an image is to be exported.
type imageSpec struct {
	name  string            // as it was asked for
	names []reference.Named // that it is to get

	push, byDigest, insecure bool
	rewrite                  bool // timestamps, which makes other layers
	danglingPrefix           string
	danglingOnly             bool // if it has no name
	force                    bool
	compression, level       string
}

// newImageSpec reads the attributes of an export of an image.
func newImageSpec(attrs map[string]string) (*imageSpec, error) {
	s := &imageSpec{}
	var ignored bool
	flags := map[exptypes.ImageExporterOptKey]*bool{
		exptypes.OptKeyPush: &s.push, exptypes.OptKeyPushByDigest: &s.byDigest, exptypes.OptKeyInsecure: &s.insecure,
		exptypes.OptKeyRewriteTimestamp: &s.rewrite, exptypes.OptKeyForceCompression: &s.force, exptypes.OptKeyDanglingEmptyOnly: &s.danglingOnly,
		// An image here has its layers in the cache and no name but in registries.
		exptypes.OptKeyUnpack: &ignored, exptypes.OptKeyStore: &ignored, exptypes.OptKeyNameCanonical: &ignored,
	}
	texts := map[exptypes.ImageExporterOptKey]*string{
		exptypes.OptKeyName: &s.name, exptypes.OptKeyDanglingPrefix: &s.danglingPrefix,
		exptypes.OptKeyLayerCompression: &s.compression, exptypes.OptKeyCompressionLevel: &s.level,
	}
	for k, v := range attrs {
		key := exptypes.ImageExporterOptKey(k)
		if text := texts[key]; text != nil {
			*text = v
		}
		if flag := flags[key]; flag != nil && v == "" {
			*flag = true
		} else if flag != nil {
			b, err := strconv.ParseBool(v)
			if err != nil {
				return nil, failure.Userf(failure.InvalidArgument, "write true or false", "the output's %s is %q", k, v)
			}
			*flag = b
		}
	}
	return s, s.parseNames()
}

// own are the attributes that BuildKit's own code does not read.
func (s *imageSpec) own(key string) bool {
	switch exptypes.ImageExporterOptKey(key) {
	case exptypes.OptKeyPush, exptypes.OptKeyPushByDigest, exptypes.OptKeyInsecure, exptypes.OptKeyDanglingEmptyOnly,
		exptypes.OptKeyUnpack, exptypes.OptKeyStore, exptypes.OptKeyNameCanonical, exptypes.OptKeyDanglingPrefix,
		exptypes.OptKeyLayerCompression, exptypes.OptKeyCompressionLevel, exptypes.OptKeyForceCompression:
		return true
	}
	return false
}

func (s *imageSpec) parseNames() error {
	if s.name == "" || s.name == "*" {
		if s.push {
			return failure.Userf(failure.InvalidArgument, "give it as name=HOST/PATH:TAG", "an image that is to be pushed needs a name")
		}
		return nil
	}
	for name := range strings.SplitSeq(s.name, ",") {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return failure.Userf(failure.InvalidArgument, "write it as HOST/PATH:TAG", "%q is no name for an image: %v", name, err)
		}
		if _, ok := ref.(reference.Digested); ok {
			return failure.Userf(failure.InvalidArgument, "leave the digest out", "the image %s has the digest that it gets", name)
		}
		if _, tagged := ref.(reference.Tagged); tagged && s.byDigest {
			return failure.Userf(failure.InvalidArgument, "leave the tag out", "%s has a tag, and push-by-digest gives none", name)
		}
		if !s.byDigest {
			ref = reference.TagNameOnly(ref)
		}
		s.names = append(s.names, ref)
	}
	return nil
}

// targets are the names as package builder has them.
func (s *imageSpec) targets() []string {
	var out []string
	for _, n := range s.names {
		t := n.Name()
		if tagged, ok := n.(reference.Tagged); ok {
			t += ":" + tagged.Tag()
		}
		out = append(out, t)
	}
	return out
}

// compressions are BuildKit's, by name.
var compressions = map[string]slipwayv1.CompressionType{
	"":             slipwayv1.CompressionType_COMPRESSION_TYPE_UNSPECIFIED,
	"gzip":         slipwayv1.CompressionType_COMPRESSION_TYPE_GZIP,
	"zstd":         slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD,
	"uncompressed": slipwayv1.CompressionType_COMPRESSION_TYPE_NONE,
}

// compressed is how the image's layers are to be made.
func (s *imageSpec) compressed() (*slipwayv1.Compression, error) {
	typ, ok := compressions[s.compression]
	if !ok {
		return nil, notThere("compression", s.compression, []string{"gzip", "zstd", "uncompressed"})
	}
	c := &slipwayv1.Compression{Type: typ, Force: s.force}
	if s.level != "" {
		n, err := strconv.ParseInt(s.level, 10, 32)
		if err != nil {
			return nil, failure.Userf(failure.InvalidArgument, "write a number", "the compression level %q is none", s.level)
		}
		level := int32(n)
		c.Level = &level
	}
	return c, nil
}
