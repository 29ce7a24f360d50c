package classic

import (
	"context"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"

	"github.com/slipwayhq/slipway/builder/failure"
)

// owner returns who owns what a transfer copies: what --chown says, root for
// files of the context, or -1 for each file's own owner.
func (s *stage) owner(ctx context.Context, t *transfer, n *node) (uid, gid int, err error) {
	if t.chown == "" {
		if t.context {
			return 0, 0, nil
		}
		return -1, -1, nil
	}
	name, group, found := strings.Cut(t.chown, ":")
	if !found {
		group = name
	}
	if strings.Contains(group, ":") {
		return 0, 0, chownError("invalid chown string format: " + t.chown)
	}
	uid, uidErr := parseID(name)
	gid, gidErr := parseID(group)
	if uidErr == nil && gidErr == nil {
		return uid, gid, nil
	}
	dir, err := n.parent.mountTree(ctx)
	if err != nil {
		return 0, 0, err
	}
	if uidErr != nil {
		if uid, err = lookup(dir, "/etc/passwd", name, userIDs); err != nil {
			return 0, 0, err
		}
	}
	if gidErr != nil {
		if gid, err = lookup(dir, "/etc/group", group, groupIDs); err != nil {
			return 0, 0, err
		}
	}
	return uid, gid, nil
}

// parseID reads a user or group id. What is no number is a name. The system
// takes the lower 32 bits of an id, and changes nothing when they are all set.
func parseID(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if id := uint32(n); id != math.MaxUint32 {
		return int(id), err
	}
	return -1, err
}

func chownError(text string) error {
	return failure.Userf(failure.DockerfileInvalid, "use ids, or names that the image's /etc/passwd and /etc/group have",
		"unable to convert uid/gid chown string to host mapping: %s", text)
}

func userIDs(r io.Reader, name string) (ids []int, err error) {
	users, err := user.ParsePasswdFilter(r, func(u user.User) bool { return u.Name == name })
	for _, u := range users {
		ids = append(ids, u.Uid)
	}
	return ids, err
}

func groupIDs(r io.Reader, name string) (ids []int, err error) {
	groups, err := user.ParseGroupFilter(r, func(g user.Group) bool { return g.Name == name })
	for _, g := range groups {
		ids = append(ids, g.Gid)
	}
	return ids, err
}

// lookup finds a name in a database file of the image. Links are scoped to
// the image.
func lookup(dir, file, name string, find func(io.Reader, string) ([]int, error)) (int, error) {
	at, err := follow(dirFS(dir), file, true)
	if err != nil {
		return 0, err
	}
	kind, id := "user", "uid"
	if file == "/etc/group" {
		kind, id = "group", "gid"
	}
	f, err := os.Open(dir + at)
	if err != nil {
		if os.IsNotExist(err) {
			err = &fs.PathError{Op: "open", Path: file, Err: syscall.ENOENT}
		}
		return 0, chownError("can't find " + id + " for " + kind + " " + name + ": " + err.Error())
	}
	defer f.Close()
	ids, err := find(f, name)
	if err != nil {
		return 0, chownError(err.Error())
	}
	if len(ids) == 0 {
		return 0, chownError("can't find " + id + " for " + kind + " " + name + ": no such " + kind + ": " + name)
	}
	return ids[0], nil
}
