package server

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server/records"
)

// mixing is how long ago pulls of several images may be that count as being
// made at the same time.
const mixing = 10 * time.Minute

// A standing is what is known of an app in an environment.
type standing struct {
	released *records.Release // the last one; nil for none
	pulled   *records.Pull    // the last one; nil for none
	recent   []records.Pull   // those last seen within mixing

	// Of what is pulled, where that is not what is released:
	match *records.Release // the last release of the image; nil for none
	next  *records.Release // the one after match, or the first of all; nil for none
	since time.Time        // since when no other image was pulled
}

// drift compares pulls with releases. A pull shows that somebody wanted an
// image, not that it runs.
func (s *standing) drift() slipwayv1.DriftStatus {
	switch {
	case s.released == nil:
		return slipwayv1.DriftStatus_DRIFT_STATUS_UNRELEASED
	case !s.mixed().IsZero():
		return slipwayv1.DriftStatus_DRIFT_STATUS_MIXED
	case s.pulled == nil:
		return slipwayv1.DriftStatus_DRIFT_STATUS_PENDING
	case s.pulled.Digest == s.released.Digest:
		return slipwayv1.DriftStatus_DRIFT_STATUS_IN_SYNC
	case s.pulled.Last.Before(s.released.Created):
		return slipwayv1.DriftStatus_DRIFT_STATUS_PENDING
	}
	return slipwayv1.DriftStatus_DRIFT_STATUS_DRIFTED
}

// mixed returns since when another image has been pulled beside the one that
// came up last; zero if there is none: after that one's first pull nobody has
// asked for another.
func (s *standing) mixed() time.Time {
	first, last := map[string]time.Time{}, map[string]time.Time{}
	newest := ""
	for _, p := range s.recent {
		if t, ok := first[p.Digest]; !ok || p.First.Before(t) {
			first[p.Digest] = p.First
		}
		if p.Last.After(last[p.Digest]) {
			last[p.Digest] = p.Last
		}
	}
	for d, t := range first {
		if newest == "" || t.After(first[newest]) {
			newest = d
		}
	}
	for d, t := range last {
		if d != newest && t.After(first[newest]) {
			return first[newest]
		}
	}
	return time.Time{}
}

// behind is how many releases came after the one that is pulled.
func (s *standing) behind() int64 {
	switch {
	case s.released == nil:
		return 0
	case s.pulled == nil:
		return s.released.Version
	case s.pulled.Digest == s.released.Digest || s.match == nil:
		return 0
	}
	return s.released.Version - s.match.Version
}

// outOfSync is since when the app has not been in sync.
func (s *standing) outOfSync(status slipwayv1.DriftStatus) time.Time {
	switch status {
	case slipwayv1.DriftStatus_DRIFT_STATUS_IN_SYNC:
		return time.Time{}
	case slipwayv1.DriftStatus_DRIFT_STATUS_MIXED:
		return s.mixed()
	}
	if s.next != nil && s.next.Created.After(s.since) {
		return s.next.Created
	}
	return s.since
}

// apps returns the state of each app that has a release or a pull in an
// environment, or of one of them, by name.
func (s *environmentService) apps(ctx context.Context, env, app string) ([]*slipwayv1.AppState, error) {
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	org := caller(ctx).Org
	releases, err := s.opts.Records.LastReleases(ctx, org, env, app)
	if err != nil {
		return nil, err
	}
	pulls, err := s.opts.Records.LastPulls(ctx, org, env, app)
	if err != nil {
		return nil, err
	}
	all := map[string]*standing{}
	of := func(app string) *standing {
		if all[app] == nil {
			all[app] = &standing{}
		}
		return all[app]
	}
	for i := range releases {
		of(releases[i].App).released = &releases[i]
	}
	for i := range pulls {
		of(pulls[i].App).pulled = &pulls[i]
	}
	var out []*slipwayv1.AppState
	now := time.Now()
	for _, app := range slices.Sorted(maps.Keys(all)) {
		if err := s.study(ctx, all[app], now); err != nil {
			return nil, err
		}
		out = append(out, s.appProto(app, all[app], now))
	}
	return out, nil
}

// study finds out what of a standing is not known yet.
func (s *environmentService) study(ctx context.Context, st *standing, now time.Time) (err error) {
	r := s.opts.Records
	if p := st.pulled; p != nil && now.Sub(p.Last) < mixing {
		if st.recent, err = r.Pulls(ctx, records.PullQuery{Org: p.Org, Env: p.Env, App: p.App, Since: now.Add(-mixing), Limit: 1000}); err != nil {
			return err
		}
	}
	s.whole(ctx, st)
	p := st.pulled
	switch {
	case p == nil:
		return s.following(ctx, st, 0)
	case st.released != nil && p.Digest == st.released.Digest:
		return nil
	}
	if st.since, err = r.PulledSince(ctx, p.Org, p.Env, p.App, p.Digest); err != nil || st.released == nil {
		return err
	}
	match, err := r.ReleaseOf(ctx, p.Org, p.Env, p.App, p.Digest)
	if errors.Is(err, records.ErrNoRelease) {
		return nil
	}
	if err != nil {
		return err
	}
	st.match = &match
	return s.following(ctx, st, match.Version)
}

// following finds the release after a version.
func (s *environmentService) following(ctx context.Context, st *standing, version int64) error {
	if st.released == nil {
		return nil
	}
	next, err := s.opts.Records.ReleaseNumber(ctx, st.released.Org, st.released.Env, st.released.App, version+1)
	if err == nil {
		st.next = &next
	} else if !errors.Is(err, records.ErrNoRelease) {
		return err
	}
	return nil
}

// whole takes pulls of a part of the released image, by its own digest, for
// pulls of the image.
func (s *environmentService) whole(ctx context.Context, st *standing) {
	r := st.released
	if s.opts.Images == nil || r == nil || st.pulled == nil {
		return
	}
	other := st.pulled.Digest != r.Digest || slices.ContainsFunc(st.recent, func(p records.Pull) bool { return p.Digest != r.Digest })
	if !other {
		return
	}
	parts, err := s.opts.Images.Parts(ctx, r.App, r.Digest)
	if err != nil {
		s.opts.Log.DebugContext(ctx, "parts of an image", "app", r.App, "digest", r.Digest, "err", err)
		return
	}
	for _, p := range append(pointers(st.recent), st.pulled) {
		if slices.Contains(parts, p.Digest) {
			p.Digest = r.Digest
		}
	}
}

func pointers(pulls []records.Pull) []*records.Pull {
	out := make([]*records.Pull, len(pulls))
	for i := range pulls {
		out[i] = &pulls[i]
	}
	return out
}

func (s *environmentService) appProto(app string, st *standing, now time.Time) *slipwayv1.AppState {
	out := &slipwayv1.AppState{App: app, Drift: st.drift(), Behind: uint32(min(st.behind(), math.MaxUint32))}
	if st.released != nil {
		out.Released = releaseProto(s.opts.Registry, *st.released)
	}
	if st.pulled != nil {
		out.Pulled = pullProto(*st.pulled)
	}
	if t := st.outOfSync(out.Drift); !t.IsZero() {
		out.Since = durationpb.New(max(0, now.Sub(t)))
	}
	return out
}
