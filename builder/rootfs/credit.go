package rootfs

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Credit returns what an upper directory takes away from the image below it:
// what it replaces, removes or hides. Held says what the image has at a path:
// bytes of the path itself, and of all at or below it. It may be used while a
// step writes there. Directories that the image does not have cost nothing.
func Credit(ctx context.Context, upper string, held func(path string) (own, tree int64)) (int64, error) {
	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("credit: %w", err)
	}
	defer unix.Close(fd)
	c := &crediting{ctx: ctx, held: held, buf: make([]byte, 64<<10)}
	if err := c.directory(fd, ""); err != nil {
		return 0, fmt.Errorf("credit: %w", err)
	}
	return c.bytes, nil
}

type crediting struct {
	ctx   context.Context // of the call
	held  func(string) (own, tree int64)
	bytes int64
	buf   []byte
}

// directory goes over a directory that the image has, too.
func (c *crediting) directory(fd int, path string) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	var subs []string
	err := eachName(fd, c.buf, func(_ uint64, typ byte, name []byte) {
		if typ == unix.DT_DIR || typ == unix.DT_UNKNOWN {
			subs = append(subs, string(name))
			return
		}
		_, tree := c.held("/" + join(path, string(name)))
		c.bytes += tree
	})
	if err != nil {
		return err
	}
	for _, name := range subs {
		if err := c.below(fd, join(path, name), name); err != nil {
			return err
		}
	}
	return nil
}

func (c *crediting) below(fd int, path, name string) error {
	own, tree := c.held("/" + path)
	if tree == 0 {
		return nil
	}
	sub, err := openSub(fd, name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		c.bytes += tree
		return nil
	}
	if err != nil {
		return nil // it has gone
	}
	defer unix.Close(sub)
	opaque, err := getXattr(sub, xattrOpaque)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	if opaque == "y" {
		c.bytes += tree
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(sub, &st); err != nil {
		return err
	}
	c.bytes += min(own, size(&st)) // the larger of both stays
	return c.directory(sub, path)
}
