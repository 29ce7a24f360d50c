package main

import (
	"encoding/csv"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// fields reads "key=value,…", of which a single REF is short for type=registry.
// Keys that are not known are refused.
func fields(flag, spec string, known ...string) (map[string]string, error) {
	if !strings.Contains(spec, "=") && spec != "" {
		return map[string]string{"type": "registry", "ref": spec}, nil
	}
	parts, err := csv.NewReader(strings.NewReader(spec)).Read()
	if err != nil {
		return nil, client.UserError(fmt.Sprintf("%s %q: want fields like type=registry,ref=REF", flag, spec), "")
	}
	m := map[string]string{}
	for _, part := range parts {
		key, value, _ := strings.Cut(part, "=")
		ok := false
		for _, k := range known {
			ok = ok || k == key
		}
		if !ok {
			return nil, client.UserError(fmt.Sprintf("%s: field %q is none of %s", flag, key, strings.Join(known, ", ")), "")
		}
		m[key] = value
	}
	return m, nil
}

func checkRef(flag, ref string) error {
	if ref == "" {
		return client.UserError(flag+": ref is missing", "Name a repository: type=registry,ref=HOST/PATH:TAG.")
	}
	if _, err := name.ParseReference(ref, name.WeakValidation); err != nil {
		return client.UserError(fmt.Sprintf("%s: %v", flag, err), "")
	}
	return nil
}

// cacheFrom reads --cache-from: REF, or type=registry,ref=REF.
func cacheFrom(specs []string) ([]string, error) {
	var refs []string
	for _, spec := range specs {
		f, err := fields("--cache-from", spec, "type", "ref")
		if err != nil {
			return nil, err
		}
		if f["type"] != "registry" {
			return nil, client.UserError(fmt.Sprintf("--cache-from: type %q is not supported", f["type"]), "Name an image or a cache in a registry: --cache-from REF.")
		}
		if err := checkRef("--cache-from", f["ref"]); err != nil {
			return nil, err
		}
		refs = append(refs, f["ref"])
	}
	return refs, nil
}

// cacheTo reads --cache-to: type=inline, REF, or type=registry,ref=REF with
// mode=min or mode=max.
func cacheTo(specs []string) ([]*slipwayv1.CacheExport, error) {
	var all []*slipwayv1.CacheExport
	for _, spec := range specs {
		f, err := fields("--cache-to", spec, "type", "ref", "mode")
		if err != nil {
			return nil, err
		}
		mode, out := f["mode"], &slipwayv1.CacheExport{Ref: f["ref"], All: f["mode"] == "max"}
		if mode != "" && mode != "min" && mode != "max" {
			return nil, client.UserError(fmt.Sprintf("--cache-to: mode %q is neither min nor max", mode), "")
		}
		switch f["type"] {
		case "inline":
			out.Type = slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_INLINE
			if out.Ref != "" || out.All {
				return nil, client.UserError("--cache-to: type=inline keeps the steps of the image's own layers, in the image: ref and mode=max do not go with it",
					"Give type=registry,ref=REF,mode=max.")
			}
		case "registry":
			out.Type = slipwayv1.CacheExportType_CACHE_EXPORT_TYPE_REGISTRY
			if err := checkRef("--cache-to", out.Ref); err != nil {
				return nil, err
			}
		default:
			return nil, client.UserError(fmt.Sprintf("--cache-to: type %q is neither inline nor registry", f["type"]), "")
		}
		all = append(all, out)
	}
	return all, nil
}

// stageNames reads --no-cache-filter.
func stageNames(flag string, names []string) ([]string, error) {
	for _, n := range names {
		if strings.TrimSpace(n) == "" {
			return nil, client.UserError(flag+": want the name of a stage", "")
		}
	}
	return names, nil
}
