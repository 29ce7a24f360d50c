package server

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
)

// checkRelease refuses a build whose release the caller may not make, before
// anything of it travels. A token that is for one environment releases to that
// one if none is named.
func (f *Front) checkRelease(ctx context.Context, s *slipwayv1.Start) error {
	if s.Environment != "" {
		if err := checkEnvApp(s.Environment, ""); err != nil {
			return failure.At(err, failure.Preflight, 0)
		}
	}
	if _, ok := releaseTag(&f.opts, "", s); !ok {
		if s.Environment == "" {
			return nil
		}
		return failure.At(failure.Userf(failure.InvalidArgument, "push to the daemon's registry, or leave --env out",
			"only an image that goes to the daemon's registry is released to an environment"), failure.Preflight, 0)
	}
	if s.Environment == "" {
		s.Environment = caller(ctx).Env
	}
	return failure.At(mayRelease(ctx, f.opts.Records, s.App, s.Environment), failure.Preflight, 0)
}

// releaseTag returns the tag of the image that a build releases, and whether it
// releases one: it must go to the app's repository of the daemon's registry.
func releaseTag(o *Options, id string, s *slipwayv1.Start) (tag string, ok bool) {
	if !s.GetRelease() || !s.Push {
		return "", false
	}
	tag = s.Tag
	if tag == "" {
		tag = "deployment-" + id
	}
	if len(s.Targets) == 0 {
		return tag, true
	}
	for _, target := range s.Targets {
		if ownRepository(o, target) != s.App {
			continue
		}
		if i := strings.LastIndexByte(target, ':'); i > strings.LastIndexByte(target, '/') {
			tag = target[i+1:]
		}
		return tag, true
	}
	return "", false
}

// releaseOf returns the release that a build ends with, nil for none: only what
// succeeded and was pushed has a digest.
func releaseOf(o *Options, org string, s *slipwayv1.Start, res *slipwayv1.Result) *records.Release {
	tag, ok := releaseTag(o, res.BuildId, s)
	if !ok || res.Digest == "" {
		return nil
	}
	return &records.Release{Org: org, App: s.App, Env: s.Environment, Digest: res.Digest, Tag: tag, Created: time.Now().UTC()}
}

// conclude records how a build ended, together with its release, and returns
// the result that counts. Where the release cannot be recorded the build has
// failed.
func conclude(ctx context.Context, o *Options, b *records.Build, res *slipwayv1.Result, r *records.Release) (*slipwayv1.Result, error) {
	if r == nil {
		return res, o.Records.End(ctx, ended(b, res))
	}
	_, err := o.Records.EndReleased(ctx, ended(b, res), *r, func(r records.Release) []byte {
		res.ReleaseId, res.ReleaseVersion, res.Environment = r.ID, uint64(r.Version), r.Env
		raw, _ := proto.Marshal(res) // plain data, as in ended
		return raw
	})
	if err == nil {
		return res, nil
	}
	// It may be recorded all the same: as ended before, or by a commit whose
	// answer was lost.
	if old, getErr := o.Records.Get(ctx, b.Org, b.ID); getErr == nil {
		if known := buildProto(old).Result; known != nil {
			return known, nil
		}
	}
	failed := unreleased(res, err)
	return failed, errors.Join(err, o.Records.End(ctx, ended(b, failed)))
}

// unreleased is the result of a build whose image is pushed and not released.
func unreleased(res *slipwayv1.Result, err error) *slipwayv1.Result {
	out := failed(res.BuildId, res.App, &failure.Error{
		Code: failure.Unavailable, Phase: failure.Push, Blame: failure.Builder, Retryable: true, Err: err,
		Message: "the image was pushed, and its release could not be recorded",
		Hint:    "deploy again: every step is cached; the daemon's log has more",
	})
	out.Pipeline, out.Timings, out.Context = res.Pipeline, res.Timings, res.Context
	return out
}
