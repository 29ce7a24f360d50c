package server

import (
	"context"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/oklog/ulid/v2"

	"github.com/slipwayhq/slipway/server/records"
	"github.com/slipwayhq/slipway/tokens"
)

const (
	pullWindow = time.Minute // requests this close to each other are one pull
	pullLength = time.Hour   // a pull that goes on for longer becomes another one
	pullFlush  = time.Second // how often pulls are recorded
	pullsKept  = 1 << 16     // requests, and pulls, that are held in memory at most
)

// A PullStore keeps pulls.
type PullStore interface {
	SavePulls(ctx context.Context, pulls []records.Pull) error
}

// A PullEvent is a request for a manifest that was answered.
type PullEvent struct {
	Time      time.Time
	App       string // the repository
	Reference string // tag or digest that was asked for
	Digest    string // what it stands for
	Address   string // of the client, with or without a port
	UserAgent string
}

// A PullLog notes which images the tokens of environments ask for. Requests of
// a token that follow each other closely become one pull: HEAD and GET of an
// image, by tag and by digest, and of the manifest of a platform in it. A kill
// of the daemon loses what came within the last second. It is safe for
// concurrent use.
type PullLog struct {
	store   PullStore
	images  Images // nil: it is not known what indexes name
	log     *slog.Logger
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	waiting []request
	dropped int

	flushing sync.Mutex
	open     map[pullScope][]*openPull
	opened   int // pulls in open
}

// A pullScope is what requests of one pull have in common.
type pullScope struct{ org, env, app, token string }

type request struct {
	records.Pull
	hidden bool
}

// An openPull is one that further requests may become a part of.
type openPull struct {
	records.Pull
	hidden bool // about signatures and the like: not a pull of the image
	parts  []string
	asked  bool // parts is known
	dirty  bool // not recorded as it is
}

// StartPullLog starts to record pulls. Nil images and nil log are fine. The
// caller closes it before the store.
func StartPullLog(store PullStore, images Images, log *slog.Logger) *PullLog {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &PullLog{store: store, images: images, log: log, stop: stop, open: map[pullScope][]*openPull{}}
	l.running.Go(func() { l.run(ctx) })
	return l
}

// Close records what is left.
func (l *PullLog) Close() error {
	l.stop()
	l.running.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return l.Flush(ctx)
}

func (l *PullLog) run(ctx context.Context) {
	t := time.NewTicker(pullFlush)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := l.Flush(ctx); err != nil && ctx.Err() == nil {
			l.log.ErrorContext(ctx, "pulls", "err", err)
		}
	}
}

// attached is the form of tags under which signatures, attestations and lists
// of what refers to an image are kept.
var attached = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.[a-z0-9]+)?$`)

// Saw notes that the token of p was given a manifest. Tokens that are for no
// environment, and repositories that are no app's, leave no trace. It does not
// block.
func (l *PullLog) Saw(p tokens.Principal, e PullEvent) {
	if p.Env == "" || e.Digest == "" || tokens.CheckName("an app", e.App) != nil {
		return
	}
	r := request{Pull: records.Pull{
		Org: p.Org, Env: p.Env, App: e.App, Digest: e.Digest, TokenID: p.ID, TokenName: p.Name,
		Address: host(e.Address), UserAgent: printable(e.UserAgent, 200), First: e.Time, Last: e.Time, Count: 1,
	}}
	if !strings.Contains(e.Reference, ":") {
		r.Tag, r.hidden = e.Reference, attached.MatchString(e.Reference)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= pullsKept {
		l.dropped++
		return
	}
	l.waiting = append(l.waiting, r)
}

func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return address
}

// printable returns at most n bytes of s that a line and a database can hold.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return strings.ToValidUTF8(s[:min(n, len(s))], "")
}

// Flush records what Saw has been told. After an error it is tried again with
// the next one.
func (l *PullLog) Flush(ctx context.Context) error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	l.mu.Lock()
	waiting, dropped := l.waiting, l.dropped
	l.waiting, l.dropped = nil, 0
	l.mu.Unlock()
	for i := range waiting {
		if !l.add(ctx, &waiting[i]) {
			dropped++
		}
	}
	if dropped > 0 {
		l.log.WarnContext(ctx, "pulls are not recorded: there are too many", "requests", dropped)
	}
	return l.save(ctx)
}

// add makes a request a part of a pull, or a pull of its own. It reports
// whether there was room for it.
func (l *PullLog) add(ctx context.Context, r *request) bool {
	scope := pullScope{r.Org, r.Env, r.App, r.TokenID}
	for _, o := range slices.Backward(l.open[scope]) {
		counts, part := l.belongs(ctx, o, r)
		if !part {
			continue
		}
		if r.Last.After(o.Last) {
			o.Last, o.Address, o.UserAgent = r.Last, r.Address, r.UserAgent
		}
		if counts {
			o.Count++
		}
		o.dirty = true
		return true
	}
	if l.opened >= pullsKept {
		return false
	}
	r.ID = ulid.Make().String()
	l.open[scope] = append(l.open[scope], &openPull{Pull: r.Pull, hidden: r.hidden, dirty: true})
	l.opened++
	return true
}

// belongs reports whether a request is a part of a pull: for the same image, or
// for one of a platform in it, which does not count again.
func (l *PullLog) belongs(ctx context.Context, o *openPull, r *request) (counts, part bool) {
	if r.Last.Sub(o.Last) > pullWindow || r.Last.Sub(o.First) > pullLength {
		return false, false
	}
	if o.Digest == r.Digest {
		same := r.Tag == "" || r.Tag == o.Tag
		return same, same
	}
	return false, r.Tag == "" && slices.Contains(l.partsOf(ctx, o), r.Digest)
}

func (l *PullLog) partsOf(ctx context.Context, o *openPull) []string {
	if o.asked || l.images == nil {
		return o.parts
	}
	parts, err := l.images.Parts(ctx, o.App, o.Digest)
	if err != nil {
		l.log.DebugContext(ctx, "parts of an image", "app", o.App, "digest", o.Digest, "err", err)
		return nil
	}
	o.parts, o.asked = parts, true
	return parts
}

func (l *PullLog) save(ctx context.Context) error {
	var changed []records.Pull
	for _, pulls := range l.open {
		for _, o := range pulls {
			if o.dirty && !o.hidden {
				changed = append(changed, o.Pull)
			}
		}
	}
	if len(changed) > 0 {
		slices.SortFunc(changed, func(a, b records.Pull) int { return strings.Compare(a.ID, b.ID) })
		if err := l.store.SavePulls(ctx, changed); err != nil {
			return err
		}
	}
	l.settle(time.Now())
	return nil
}

// settle notes that all is recorded, and lets go of pulls that nothing can
// become a part of any more.
func (l *PullLog) settle(now time.Time) {
	l.opened = 0
	for scope, pulls := range l.open {
		pulls = slices.DeleteFunc(pulls, func(o *openPull) bool { o.dirty = false; return now.Sub(o.Last) > pullWindow })
		if l.opened += len(pulls); len(pulls) == 0 {
			delete(l.open, scope)
		} else {
			l.open[scope] = pulls
		}
	}
}
