package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/slipwayhq/slipway/sqldb"
)

// Decisions about releases that callers take.
var (
	ErrNoRelease = errors.New("no such release")
	ErrEnded     = errors.New("the build has ended")
)

// A Release says that an image is meant to run.
type Release struct {
	ID           string // ULID: later releases have higher ones
	Org          string
	App          string
	Env          string // empty for none in particular
	Version      int64  // of the app in the environment, from 1, without gaps
	Digest       string
	Tag          string // empty if the image was named by its digest
	BuildID      string // empty if no build is known to have made the image
	PromotedFrom string // environment; empty for none
	CreatedBy    string // name of the token
	Created      time.Time
}

// Release records a release. It sets ID and Version.
func (s *Store) Release(ctx context.Context, r Release) (Release, error) {
	err := s.db.Update(ctx, func(tx *sqldb.Tx) (err error) {
		if r.Version, err = nextVersion(ctx, tx, r); err != nil {
			return err
		}
		return insertRelease(ctx, tx, &r)
	})
	return r, releasing(r, err)
}

// ReleaseNew is Release unless the app's last release in the environment has
// the same image: then it returns that one, and false.
func (s *Store) ReleaseNew(ctx context.Context, r Release) (_ Release, made bool, err error) {
	err = s.db.Update(ctx, func(tx *sqldb.Tx) (err error) {
		if r.Version, err = nextVersion(ctx, tx, r); err != nil {
			return err
		}
		last, err := scanRelease(tx.QueryRow(ctx, selectRelease+` where org = $1 and app = $2 and env = $3 order by version desc limit 1`, r.Org, r.App, r.Env))
		switch {
		case err == nil && last.Digest == r.Digest:
			r = last
			return errUnchanged
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return err
		}
		return insertRelease(ctx, tx, &r)
	})
	if errors.Is(err, errUnchanged) {
		return r, false, nil
	}
	return r, err == nil, releasing(r, err)
}

// errUnchanged takes back the version that was counted for nothing.
var errUnchanged = errors.New("unchanged")

// EndReleased is [Store.End] for a build whose image is released: both happen,
// or neither. The release counts as made by who made the build. result encodes
// the build's result, which the release is a part of. If the build had ended
// before, the error is [ErrEnded], and nothing is recorded.
func (s *Store) EndReleased(ctx context.Context, b Build, r Release, result func(Release) []byte) (Release, error) {
	err := s.db.Update(ctx, func(tx *sqldb.Tx) (err error) {
		if r.Version, err = nextVersion(ctx, tx, r); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `select created_by from builds where id = $1`, b.ID).Scan(&r.CreatedBy); err != nil {
			return err
		}
		r.BuildID = b.ID
		if err := insertRelease(ctx, tx, &r); err != nil {
			return err
		}
		b.Result = result(r)
		n, err := tx.Exec(ctx, endBuild, endArgs(&b)...)
		return one(n, err, ErrEnded, "record end of build "+b.ID)
	})
	return r, releasing(r, err)
}

func releasing(r Release, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("record release of %s: %w", r.App, err)
}

// nextVersion counts a release. Others who release the app to the environment
// wait until the transaction ends.
func nextVersion(ctx context.Context, tx *sqldb.Tx, r Release) (v int64, err error) {
	err = tx.QueryRow(ctx, `insert into release_versions (org, app, env, version) values ($1, $2, $3, 1)
		on conflict (org, app, env) do update set version = release_versions.version + 1 returning version`, r.Org, r.App, r.Env).Scan(&v)
	return v, err
}

// insertRelease adds a release under an ID that is made now, while nobody else
// releases the app there: IDs are in the order of versions.
func insertRelease(ctx context.Context, tx *sqldb.Tx, r *Release) error {
	r.ID = ulid.Make().String()
	_, err := tx.Exec(ctx, `insert into releases (id, org, app, env, version, digest, tag, build_id, promoted_from, created_by, created)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		r.ID, r.Org, r.App, r.Env, r.Version, r.Digest, r.Tag, r.BuildID, r.PromotedFrom, r.CreatedBy, r.Created.UnixMilli())
	return err
}

const releaseColumns = `id, org, app, env, version, digest, tag, build_id, promoted_from, created_by, created`

const selectRelease = `select ` + releaseColumns + ` from releases`

func scanRelease(row sqldb.Row) (r Release, err error) {
	var created int64
	err = row.Scan(&r.ID, &r.Org, &r.App, &r.Env, &r.Version, &r.Digest, &r.Tag, &r.BuildID, &r.PromotedFrom, &r.CreatedBy, &created)
	r.Created = at(created)
	return r, err
}

// A ReleaseQuery selects releases of an org, newest first.
type ReleaseQuery struct {
	Org     string
	App     string    // empty means all
	Env     *string   // nil means any
	Version int64     // 0 means any
	Before  string    // only IDs below this one; empty means all
	Earlier time.Time // only those made before; zero means all
	Limit   int
}

// Releases returns the releases that q selects.
func (s *Store) Releases(ctx context.Context, q ReleaseQuery) ([]Release, error) {
	env, any := "", 1
	if q.Env != nil {
		env, any = *q.Env, 0
	}
	return sqldb.Collect(s.db.Query(ctx, selectRelease+` where org = $1 and ($2 = '' or app = $2) and ($3 = 1 or env = $4)
		and ($5 = '' or id < $5) and (cast($6 as bigint) = 0 or created < $6) and (cast($7 as bigint) = 0 or version = $7) order by id desc limit $8`,
		q.Org, q.App, any, env, q.Before, milli(q.Earlier), q.Version, q.Limit), scanRelease)
}

// LastReleases returns the last release of each app in an environment, or of
// one app, by app.
func (s *Store) LastReleases(ctx context.Context, org, env, app string) ([]Release, error) {
	return sqldb.Collect(s.db.Query(ctx, `select `+releaseColumns+` from releases r
		where org = $1 and env = $2 and ($3 = '' or app = $3)
		and version = (select max(version) from releases m where m.org = r.org and m.app = r.app and m.env = r.env) order by app`, org, env, app), scanRelease)
}

// ReleaseOf returns the last release of one of these images of an app in an
// environment, or [ErrNoRelease].
func (s *Store) ReleaseOf(ctx context.Context, org, env, app, digest string) (Release, error) {
	r, err := scanRelease(s.db.QueryRow(ctx, selectRelease+` where org = $1 and env = $2 and app = $3 and digest = $4 order by version desc limit 1`, org, env, app, digest))
	if errors.Is(err, sql.ErrNoRows) {
		return r, ErrNoRelease
	}
	return r, err
}

// ReleaseNumber returns a release by its version, or [ErrNoRelease].
func (s *Store) ReleaseNumber(ctx context.Context, org, env, app string, version int64) (Release, error) {
	r, err := scanRelease(s.db.QueryRow(ctx, selectRelease+` where org = $1 and env = $2 and app = $3 and version = $4`, org, env, app, version))
	if errors.Is(err, sql.ErrNoRows) {
		return r, ErrNoRelease
	}
	return r, err
}

// BuildOf returns the ID of the app's last build that made the image and
// pushed it, and the tag that it gave it; both empty if none did.
func (s *Store) BuildOf(ctx context.Context, org, app, digest string) (id, tag string, err error) {
	err = s.db.QueryRow(ctx, `select id, tag from builds where org = $1 and app = $2 and digest = $3 and status = $4 and tag <> '' order by id desc limit 1`,
		org, app, digest, Succeeded).Scan(&id, &tag)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", nil
	}
	return id, tag, err
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
