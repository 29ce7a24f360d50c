package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// deployFlags are the flags of deploy. Their names are those of flyctl where
// that has them.
type deployFlags struct {
	app              string
	dockerfile       string
	ignoreFile       string
	buildArgs        []string
	buildSecrets     []string
	target           string
	labels           []string
	imageLabel       string
	noCache          bool
	noCacheStages    []string
	cacheFrom        []string
	cacheTo          []string
	ssh              []string
	plan             bool
	compression      string
	forceCompression bool
	level            int
	levelSet         bool
	platform         string
	buildkit         bool
	provenance       string
	sbom             string
	localOnly        bool
	remoteOnly       bool
	image            string
	buildOnly        bool
	push             bool
	pushTo           []string
	detach           bool
	environment      string
	progress         string
	warnSize         string
	idempotencyKey   string
}

func (o *deployFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.app, "app", "a", "", "`APP` to deploy (default $SLIPWAY_APP, $FLY_APP)")
	f.StringVarP(&o.dockerfile, "dockerfile", "f", "", "`FILE` to build, also outside of DIR; - reads it from standard input")
	f.StringVar(&o.ignoreFile, "ignorefile", "", "`FILE` with patterns of what to leave out (default <Dockerfile>.dockerignore, .dockerignore)")
	f.StringArrayVar(&o.buildArgs, "build-arg", nil, "`NAME=VALUE` of an ARG; NAME alone takes the value from the environment")
	f.StringArrayVar(&o.buildSecrets, "build-secret", nil, "`NAME=VALUE` for RUN --mount=type=secret, or id=NAME,src=FILE, or id=NAME,env=VARIABLE; repeatable")
	f.StringArrayVar(&o.ssh, "ssh", nil, "`ID[=SOCKET|KEYFILE,…]` of an SSH agent for RUN --mount=type=ssh; default alone forwards $SSH_AUTH_SOCK; repeatable")
	f.StringVar(&o.target, "build-target", "", "`STAGE` to build (default the last)")
	f.StringArrayVar(&o.labels, "label", nil, "`NAME=VALUE` to label the image with; NAME alone has an empty value")
	f.StringVar(&o.imageLabel, "image-label", "", "`TAG` of the image (default deployment-<ULID>)")
	f.BoolVar(&o.noCache, "no-cache", false, "run every step, cached or not")
	f.StringSliceVar(&o.noCacheStages, "no-cache-filter", nil, "run every step of `STAGE`, cached or not; repeatable, also with commas")
	f.StringArrayVar(&o.cacheFrom, "cache-from", nil, "count steps of the image or cache `REF` as cached; repeatable")
	f.StringArrayVar(&o.cacheTo, "cache-to", nil, "keep the build's steps for --cache-from: `type=inline`, in the image, or type=registry,ref=REF[,mode=min|max]; repeatable")
	f.BoolVar(&o.plan, "plan", false, "say what the build would do, and build nothing")
	f.StringVar(&o.compression, "compression", "", "`TYPE` of new layers: gzip, zstd, none or auto (default gzip)")
	f.IntVar(&o.level, "compression-level", 0, "compressor's `LEVEL` (default its own)")
	f.BoolVar(&o.forceCompression, "force-compression", false, "give layers of the base image, and cached ones, that compression too")
	f.StringVar(&o.platform, "platform", "", "`OS/ARCH` to build for (default the daemon's); with --buildkit, several with commas; with --image, all takes every platform")
	f.BoolVar(&o.buildkit, "buildkit", false, "build with BuildKit instead of step by step")
	f.StringVar(&o.provenance, "provenance", "", "with --buildkit, attest how the image was made: `min`, max, or BuildKit's mode=…,…")
	f.Lookup("provenance").NoOptDefVal = "min"
	f.StringVar(&o.sbom, "sbom", "", "with --buildkit, attest what is in the image; `generator=IMAGE` names the scanner")
	f.Lookup("sbom").NoOptDefVal = "true"
	f.BoolVar(&o.localOnly, "local-only", false, "build on this machine (Linux, as root) and push from here")
	f.BoolVar(&o.remoteOnly, "remote-only", false, "build on the daemon, which is the default")
	f.StringVar(&o.image, "image", "", "deploy the existing image `REF` instead of building one: of a registry, oci:DIR[:TAG] or docker-archive:FILE[:NAME]")
	f.BoolVar(&o.buildOnly, "build-only", false, "record no release, and push only with --push")
	f.BoolVar(&o.push, "push", false, "push the image, which is so without --build-only")
	f.StringArrayVar(&o.pushTo, "push-to", nil, "push to `HOST/PATH[:TAG]` instead of the daemon's registry; repeatable")
	f.BoolVar(&o.detach, "detach", false, "leave once the daemon has all it needs; the build goes on")
	f.StringVar(&o.environment, "env", "", "`ENVIRONMENT` to release to (default the one that the token is for)")
	f.StringVar(&o.progress, "progress", "auto", "`HOW` to show the build: auto, plain, tty or none")
	f.StringVar(&o.warnSize, "build-context-warn-size", "100MB", "warn when the context is larger than `SIZE`; 0 never warns")
	f.StringVar(&o.idempotencyKey, "idempotency-key", "", "join the build that was started with the same `KEY` instead of starting another")
}

var compressionTypes = map[string]slipwayv1.CompressionType{
	"":     slipwayv1.CompressionType_COMPRESSION_TYPE_UNSPECIFIED,
	"gzip": slipwayv1.CompressionType_COMPRESSION_TYPE_GZIP,
	"zstd": slipwayv1.CompressionType_COMPRESSION_TYPE_ZSTD,
	"none": slipwayv1.CompressionType_COMPRESSION_TYPE_NONE,
	"auto": slipwayv1.CompressionType_COMPRESSION_TYPE_AUTO,
}

// start returns what the flags say of the build. Dockerfile and context are
// not part of it.
func (o *deployFlags) start(getenv func(string) string) (*slipwayv1.Start, error) {
	s := &slipwayv1.Start{
		App:            cmp.Or(o.app, getenv("SLIPWAY_APP"), getenv("FLY_APP")),
		Target:         o.target,
		NoCache:        o.noCache,
		Platform:       o.platform,
		Tag:            o.imageLabel,
		Push:           o.push || !o.buildOnly,
		Release:        !o.buildOnly,
		Environment:    o.environment,
		Targets:        o.pushTo,
		Detach:         o.detach,
		IdempotencyKey: o.idempotencyKey,
		Image:          o.image,
		PlanOnly:       o.plan,
		Attestations:   o.attestations(),
	}
	if err := o.check(s); err != nil {
		return nil, err
	}
	switch {
	case o.image != "":
		s.Pipeline = slipwayv1.Pipeline_PIPELINE_PREBUILT
	case o.buildkit:
		s.Pipeline = slipwayv1.Pipeline_PIPELINE_BUILDKIT
	}
	var err error
	if s.BuildArgs, err = pairs("--build-arg", o.buildArgs, getenv); err != nil {
		return nil, err
	}
	if s.Labels, err = pairs("--label", o.labels, nil); err != nil {
		return nil, err
	}
	if s.NoCacheStages, err = stageNames("--no-cache-filter", o.noCacheStages); err != nil {
		return nil, err
	}
	if s.CacheFrom, err = cacheFrom(o.cacheFrom); err != nil {
		return nil, err
	}
	if s.CacheTo, err = cacheTo(o.cacheTo); err != nil {
		return nil, err
	}
	return s, o.compress(s)
}

// attestations are what BuildKit is asked to attest.
func (o *deployFlags) attestations() map[string]string {
	m := map[string]string{}
	switch o.provenance {
	case "", "false":
	case "min", "max":
		m["provenance"] = "mode=" + o.provenance
	case "true":
		m["provenance"] = "mode=min"
	default:
		m["provenance"] = o.provenance
	}
	switch o.sbom {
	case "", "false":
	case "true":
		m["sbom"] = ""
	default:
		m["sbom"] = o.sbom
	}
	return m
}

// check refuses what cannot be meant.
func (o *deployFlags) check(s *slipwayv1.Start) error {
	switch {
	case s.App == "":
		return client.UserError("which app?", "Name it with --app, or set SLIPWAY_APP.")
	case o.localOnly && o.remoteOnly:
		return client.UserError("--local-only and --remote-only: which one?", "Leave one out.")
	case o.localOnly && o.detach:
		return client.UserError("--local-only builds while it runs: --detach does not go with it", "")
	case o.image != "" && (o.dockerfile != "" || o.buildkit):
		return client.UserError("--image deploys an image that exists: --dockerfile and --buildkit do not go with it", "")
	case o.image != "" && len(o.ssh)+len(o.noCacheStages)+len(o.cacheFrom)+len(o.cacheTo) > 0:
		return client.UserError("--image deploys an image that exists: --ssh, --no-cache-filter, --cache-from and --cache-to do not go with it", "")
	case !o.buildkit && len(s.Attestations) > 0:
		return client.UserError("--provenance and --sbom are made by BuildKit", "Give --buildkit as well.")
	case o.plan && o.buildkit:
		return client.UserError("--plan does not go with --buildkit: BuildKit tells what is cached only by building", "")
	case o.plan && (o.image != "" || o.detach || o.idempotencyKey != ""):
		return client.UserError("--plan says what a build would do: --image, --detach and --idempotency-key do not go with it", "")
	case o.detach && len(o.ssh) > 0:
		return client.UserError("an SSH agent is asked while the build runs: --ssh does not go with --detach", "Leave --detach out, or give the key as a --build-secret.")
	case o.image != "" && len(o.labels)+len(o.buildArgs)+len(o.buildSecrets)+len(o.target) > 0:
		return client.UserError("--image deploys an image that exists: --label, --build-arg, --build-secret and --build-target do not go with it",
			"Build an image that begins with FROM that one.")
	case o.buildOnly && o.environment != "":
		return client.UserError("--build-only records no release: --env does not go with it", "")
	case o.buildOnly && !o.push && len(o.pushTo) > 0:
		return client.UserError("--push-to names where to push, but --build-only does not push", "Give --push as well.")
	}
	return nil
}

func (o *deployFlags) compress(s *slipwayv1.Start) error {
	kind, ok := compressionTypes[o.compression]
	if !ok {
		names := slices.Sorted(maps.Keys(compressionTypes))[1:]
		return client.UserError(fmt.Sprintf("--compression %q is none of %s", o.compression, strings.Join(names, ", ")), "")
	}
	if o.forceCompression && (o.compression == "auto" || o.image != "") {
		return client.UserError("--force-compression goes with gzip, zstd or none, of layers that are built", "Leave it out, or name a --compression.")
	}
	s.Compression = &slipwayv1.Compression{Type: kind, Force: o.forceCompression}
	if o.levelSet {
		level := int32(o.level)
		s.Compression.Level = &level
	}
	return nil
}

// pairs reads NAME=VALUE. Where getenv is given, NAME alone takes its value
// from the environment, and is left out if that has none; else it has an empty
// one.
func pairs(flag string, specs []string, getenv func(string) string) (map[string]string, error) {
	m := make(map[string]string, len(specs))
	for _, spec := range specs {
		name, value, ok := strings.Cut(spec, "=")
		if name == "" {
			return nil, client.UserError(fmt.Sprintf("%s %q: want NAME=VALUE", flag, spec), "")
		}
		if !ok && getenv != nil {
			if value = getenv(name); value == "" {
				continue
			}
		}
		m[name] = value
	}
	return m, nil
}

// size reads a number of bytes: 100MB, 2GB, 0.
func size(flag, text string) (int64, error) {
	n, err := units.FromHumanSize(text)
	if err != nil || n < 0 {
		return 0, client.UserError(fmt.Sprintf("%s %q is no size: want one like 100MB or 2GB", flag, text), "")
	}
	return n, nil
}
