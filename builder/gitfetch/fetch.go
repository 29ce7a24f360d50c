// Package gitfetch brings the tree of a Git repository's commit to the daemon
// for a build. It runs the git program, which is not trusted with more than it
// needs: an unprivileged user, no settings of the machine, a directory of its
// own in place of /tmp, and a network that holds nothing but a proxy of ours,
// so that every address it asks for goes through [Options.Dial]. Read [Source]
// and [Fetcher] first, then jail.go.
package gitfetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/util/gitutil"
)

var (
	// ErrNoGit says that the git program is missing.
	ErrNoGit = errors.New("the git program is not there")

	// ErrTooLarge says that a repository is larger than the caller takes.
	ErrTooLarge = errors.New("repository too large")

	// ErrNoRef says that the repository has no such branch or tag.
	ErrNoRef = errors.New("no such branch, tag or full commit hash")

	// ErrRedirect says that the repository has another address, to which its
	// credentials are not sent.
	ErrRedirect = errors.New("redirects elsewhere")
)

// An Error is what git says went wrong.
type Error struct {
	Text string // for people; without secrets
	Auth bool   // the server wants credentials, or other ones
}

func (e *Error) Error() string { return e.Text }

// Options tunes a Fetcher.
type Options struct {
	Root string // directory for what is fetched; New empties it

	// Dial connects to what is fetched from. It says which addresses may be
	// reached; its error is part of what Resolve and Fetch return.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	CA string // file of PEM certificates to trust; "" is those of the machine
}

// A Source is what to fetch.
type Source struct {
	Remote        string // URL, http or https, without user and password
	Authorization string // the header that the remote gets; a secret; "" is none
	Ref           string // branch, tag or full commit hash; "" is the default branch
	KeepGitDir    bool   // with .git
	Submodules    bool
}

// A Commit is what a source's ref stands for.
type Commit struct {
	Hash string
	Tag  string // hash of the annotated tag; "" if the ref is none
	Ref  string // full name of the ref; "" if it was a hash
}

// Matches reports whether a checksum, the beginning of a hash, fits c.
func (c Commit) Matches(checksum string) bool {
	sum := strings.ToLower(checksum)
	return hexadecimal.MatchString(sum) && (strings.HasPrefix(c.Hash, sum) || c.Tag != "" && strings.HasPrefix(c.Tag, sum))
}

var hexadecimal = regexp.MustCompile(`^[0-9a-f]+$`)

// A Tree is a fetched commit's files. Owners, modes and times are those of the
// checkout. The caller closes it.
type Tree struct {
	Dir  string
	Time time.Time // of the commit
	room string
}

// Close removes the tree.
func (t *Tree) Close() error { return os.RemoveAll(t.room) }

// A Fetcher fetches. It is safe for concurrent use.
type Fetcher struct{ opts Options }

// New returns a fetcher.
func New(o Options) (*Fetcher, error) {
	if err := os.RemoveAll(o.Root); err != nil {
		return nil, err
	}
	return &Fetcher{o}, os.MkdirAll(o.Root, 0o700)
}

// Check returns the version of the git program, or an error that wraps
// [ErrNoGit].
func Check(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "git", "version").Output()
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrNoGit, err)
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "git version "), nil
}

// Resolve asks the remote what the source's ref stands for. A full hash needs
// no asking.
func (f *Fetcher) Resolve(ctx context.Context, src Source) (Commit, error) {
	if gitutil.IsCommitSHA(src.Ref) {
		return Commit{Hash: src.Ref}, nil
	}
	if strings.HasPrefix(src.Ref, "-") || strings.ContainsAny(src.Ref, "*?[\\ ") {
		return Commit{}, fmt.Errorf("%q: %w", src.Ref, ErrNoRef)
	}
	room, err := f.newRoom()
	if err != nil {
		return Commit{}, err
	}
	defer os.RemoveAll(room)
	var c Commit
	err = f.jailed(ctx, src, room, func(j *jail) error {
		ref := cmp.Or(src.Ref, "HEAD")
		out, err := j.git("ls-remote", "--symref", "--", src.Remote, ref, ref+"^{}")
		if err != nil {
			return err
		}
		var ok bool
		if c, ok = pick(string(out), ref); !ok {
			return fmt.Errorf("%q: %w", ref, ErrNoRef)
		}
		return nil
	})
	return c, err
}

// pick finds a ref in what ls-remote printed. As for git checkout, a branch is
// meant before a tag of the same name.
func pick(out, ref string) (Commit, bool) {
	found := map[string]string{}
	head := ""
	for line := range strings.Lines(out) {
		hash, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if target, ok := strings.CutPrefix(hash, "ref: "); ok && name == "HEAD" {
			head = target
		} else if gitutil.IsCommitSHA(hash) {
			found[name] = hash
		}
	}
	if ref == "HEAD" {
		return Commit{Hash: found["HEAD"], Ref: head}, found["HEAD"] != ""
	}
	bare := strings.TrimPrefix(ref, "refs/")
	for _, name := range []string{
		"refs/" + bare, "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"), "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/"),
	} {
		hash, ok := found[name]
		if !ok {
			continue
		}
		if peeled, ok := found[name+"^{}"]; ok {
			return Commit{Hash: peeled, Tag: hash, Ref: name}, true
		}
		return Commit{Hash: hash, Ref: name}, true
	}
	return Commit{}, false
}

// Fetch gets a commit that Resolve has found. What it writes, history and
// submodules included, is at most about twice max bytes; max < 0 is no limit.
func (f *Fetcher) Fetch(ctx context.Context, src Source, c Commit, max int64) (*Tree, error) {
	room, err := f.newRoom()
	if err != nil {
		return nil, err
	}
	t := &Tree{room: room, Dir: filepath.Join(room, "tree")}
	err = f.jailed(ctx, src, room, func(j *jail) (err error) {
		watched, stop := j.watch(max)
		t.Time, err = j.checkout(src, c)
		stop()
		<-watched
		return err
	})
	if err == nil && max >= 0 {
		err = weigh(ctx, room, max) // the last bytes came after the last look
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// begin makes an empty repository.
func (j *jail) begin(src Source, c Commit) error {
	format := "sha1"
	if len(c.Hash) == 64 {
		format = "sha256"
	}
	return j.all(
		[]string{"init", "-q", "--template=", "--object-format=" + format},
		[]string{"remote", "add", "origin", src.Remote},
	)
}

// checkout fills the tree and returns the commit's time.
func (j *jail) checkout(src Source, c Commit) (at time.Time, err error) {
	if err := j.begin(src, c); err != nil {
		return at, err
	}
	if err := j.fetch(src, c); err != nil {
		return at, err
	}
	if _, err := j.git("checkout", "-q", "--detach", c.Hash); err != nil {
		return at, err
	}
	if src.Submodules {
		if err := j.submodules(src); err != nil {
			return at, err
		}
	}
	out, err := j.git("log", "-1", "--format=%ct", c.Hash)
	if err != nil {
		return at, err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return at, fmt.Errorf("time of commit %s: %w", c.Hash, err)
	}
	at = time.Unix(seconds, 0)
	if src.KeepGitDir {
		return at, j.tidy(c)
	}
	return at, nil
}

// fetch gets the commit alone if the server gives it out by its hash, else the
// ref, else everything.
func (j *jail) fetch(src Source, c Commit, more ...string) error {
	const shallow = "--depth=1"
	base := append([]string{"fetch", "-q", "--no-tags", "--no-recurse-submodules"}, more...)
	tries := [][]string{{shallow, "--", "origin", c.Hash}}
	if c.Ref != "" {
		tries = append(tries, []string{shallow, "--", "origin", c.Ref})
	}
	if src.KeepGitDir && c.Tag != "" {
		tries = [][]string{{shallow, "--", "origin", "+" + c.Ref + ":" + c.Ref}}
	}
	tries = append(tries, []string{"--", "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"})
	var err error
	for _, args := range tries {
		_, got := j.git(slices.Concat(base, args)...)
		if got == nil {
			if _, got = j.git("cat-file", "-e", c.Hash+"^{commit}"); got == nil {
				return nil
			}
			got = &Error{Text: "the repository has no commit " + c.Hash}
		}
		err = cmp.Or(err, got)
		var git *Error
		if !errors.As(got, &git) || git.Auth {
			return got // the rest would fail as well
		}
	}
	return err
}

// submodules fetches them. One that redirects elsewhere could take the
// credentials along.
func (j *jail) submodules(src Source) error {
	if _, err := os.Lstat(inside + "/tree/.gitmodules"); err != nil {
		return nil
	}
	args := []string{"submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"}
	if src.Authorization != "" {
		args = append([]string{"-c", "http.followRedirects=false"}, args...)
		j.proxy.only.Store(nil)
	}
	_, err := j.git(args...)
	return err
}

// tidy leaves in .git what a clone of the ref would have, and nothing that
// tells how it got there.
func (j *jail) tidy(c Commit) error {
	if c.Ref != "" && c.Tag == "" {
		if _, err := j.git("update-ref", c.Ref, c.Hash); err != nil {
			return err
		}
	}
	for _, name := range []string{"FETCH_HEAD", "ORIG_HEAD", "logs"} {
		if err := os.RemoveAll(inside + "/tree/.git/" + name); err != nil {
			return err
		}
	}
	return nil
}
