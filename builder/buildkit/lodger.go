package buildkit

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"

	"github.com/slipwayhq/slipway/layercache"
)

// A Lodger is a worker's cache manager as layercache sees it.
type Lodger struct {
	Manager  cache.Manager
	Metadata *metadata.Store // that of Manager

	// ReleaseUnreferenced drops what the solver has noted of records that are
	// gone, as its cache manager's method does. Nil means that there is no solver.
	ReleaseUnreferenced func(context.Context) error
}

var _ layercache.Lodger = (*Lodger)(nil)

// Records implements [layercache.Lodger]. Like any look at BuildKit's disk usage
// it takes references for as long as it weighs what was not weighed since its
// last use, so that a step which wants a cache mount in that moment gets another.
func (l *Lodger) Records(ctx context.Context) ([]layercache.LodgerRecord, error) {
	usage, err := l.Manager.DiskUsage(ctx, client.DiskUsageInfo{})
	if err != nil {
		return nil, fmt.Errorf("buildkit's records: %w", err)
	}
	notes, err := l.notes()
	if err != nil {
		return nil, fmt.Errorf("buildkit's records: %w", err)
	}
	last := lastBuilds(notes)
	recs := make([]layercache.LodgerRecord, 0, len(usage))
	for _, u := range usage {
		rec := record(u, notes[u.ID])
		rec.Pinned = notes[u.ID].of(last)
		recs = append(recs, rec)
	}
	return recs, nil
}

func record(u *client.UsageInfo, n *note) layercache.LodgerRecord {
	rec := layercache.LodgerRecord{
		ID: u.ID, What: what(u), Bytes: max(0, u.Size), Used: u.CreatedAt, Parents: u.Parents, InUse: u.InUse,
		Leases: []string{u.ID, u.ID + "-variants"},
	}
	if u.LastUsedAt != nil {
		rec.Used = *u.LastUsedAt
	}
	if n != nil {
		rec.Apps = n.apps
	}
	if u.Mutable || n != nil && n.mutable != "" {
		rec.Loose = rec.Bytes
	}
	return rec
}

// Evict implements [layercache.Lodger].
func (l *Lodger) Evict(ctx context.Context, ids []string) (gone []string, err error) {
	for some := range slices.Chunk(ids, maxFilter) {
		went, err2 := l.prune(ctx, some)
		gone = append(gone, went...)
		if err = err2; err != nil {
			break
		}
	}
	if len(gone) > 0 && l.ReleaseUnreferenced != nil {
		err = errors.Join(err, l.ReleaseUnreferenced(ctx))
	}
	if err != nil {
		return gone, fmt.Errorf("evict buildkit's records: %w", err)
	}
	return gone, nil
}

// maxFilter is how many ids are in a filter. The manager tries each on each
// record, under its lock and again for every ten that it removes; it collects after
// each prune.
const maxFilter = 100

func (l *Lodger) prune(ctx context.Context, ids []string) (gone []string, err error) {
	// The manager has its lock while it sends: what comes is taken at once.
	ch := make(chan client.UsageInfo)
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		for u := range ch {
			gone = append(gone, u.ID)
		}
	}()
	err = l.Manager.Prune(ctx, ch, client.PruneInfo{All: true, Filter: anyOf(ids)})
	close(ch)
	<-taken
	return gone, err
}

// anyOf is a filter for records by their ids. A regular expression would be
// compiled anew for each record.
func anyOf(ids []string) []string {
	filter := make([]string, len(ids))
	for i, id := range ids {
		filter[i] = "id==" + strconv.Quote(id)
	}
	return filter
}

// what names a record for people. Addresses are shown without credentials and
// queries: what is evicted is logged.
func what(u *client.UsageInfo) string {
	words := strings.Fields(u.Description)
	for i, w := range words {
		if at := strings.Index(w, "://"); at >= 0 {
			words[i] = bare(w)
		}
	}
	text := []rune(strings.Join(words, " "))
	if len(text) > maxWhat {
		text = append(text[:maxWhat], '…')
	}
	if len(text) == 0 {
		return "buildkit " + u.ID
	}
	return "buildkit " + string(text)
}

// maxWhat is how much is shown of a description.
const maxWhat = 120

func bare(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "…"
	}
	u.User, u.RawQuery, u.Fragment, u.RawFragment = nil, "", "", ""
	return u.String()
}

// appKey begins the keys, and the indexes, under which a record's apps are. Each
// app has its own key: no two writers need to agree.
const appKey = "slipway.app:"

// setApp notes that an app uses a record. What a [cache.MutableRef] is noted of
// counts for the ref that its Commit returns, and the other way round, until that
// is finalized: note it of that as well. No app is noted of nothing.
func setApp(md cache.RefMetadata, app string) error {
	key := appKey + app
	if app == "" || md.GetString(key) == app {
		return nil
	}
	return md.SetString(key, app, key)
}

// imageKey begins the keys under which a record has the id of an app's last build
// whose image it was. Ids of builds sort as they were made.
const imageKey = "slipway.image:"

// setImage notes that a ref is the image of an app's build. As with setApp, it may
// have to be noted again.
func setImage(md cache.RefMetadata, app, build string) error {
	return md.SetString(imageKey+app, build, "")
}

// A note is what the metadata says of a record besides its usage.
type note struct {
	apps    []string
	images  map[string]string // builds by their app, as setImage has noted them; may be nil
	mutable string            // the record that has its snapshot, which is not committed
}

// lastBuilds returns the last build of each app.
func lastBuilds(notes map[string]*note) map[string]string {
	last := map[string]string{}
	for _, n := range notes {
		for app, build := range n.images {
			last[app] = max(last[app], build)
		}
	}
	return last
}

// of reports whether the record is the image of one of the builds, by app.
func (n *note) of(builds map[string]string) bool {
	if n == nil {
		return false
	}
	for app, build := range n.images {
		if build == builds[app] {
			return true
		}
	}
	return false
}

func (l *Lodger) notes() (map[string]*note, error) {
	all, err := l.Metadata.All()
	if err != nil {
		return nil, err
	}
	notes := make(map[string]*note, len(all))
	for _, item := range all {
		notes[item.ID()] = &note{apps: appsOf(item), images: imagesOf(item), mutable: stringOf(item, "cache.equalMutable")}
	}
	for _, n := range notes {
		if twin := notes[n.mutable]; twin != nil {
			twin.apps = slices.Compact(slices.Sorted(slices.Values(append(twin.apps, n.apps...))))
			n.apps = twin.apps
			twin.images = n.images // a ref that is written to is nobody's image
		}
	}
	return notes, nil
}

// appsOf returns the apps that use a record.
func appsOf(item *metadata.StorageItem) []string {
	var apps []string
	for _, key := range item.Keys() {
		if app, ok := strings.CutPrefix(key, appKey); ok {
			apps = append(apps, app)
		}
	}
	slices.Sort(apps)
	return apps
}

// imagesOf returns the builds whose image a record is.
func imagesOf(item *metadata.StorageItem) map[string]string {
	var images map[string]string
	for _, key := range item.Keys() {
		if app, ok := strings.CutPrefix(key, imageKey); ok {
			if images == nil {
				images = map[string]string{}
			}
			images[app] = stringOf(item, key)
		}
	}
	return images
}

func stringOf(item *metadata.StorageItem, key string) (s string) {
	if v := item.Get(key); v != nil && v.Unmarshal(&s) != nil {
		return ""
	}
	return s
}
