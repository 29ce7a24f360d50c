package gitfetch

import (
	"context"
	"os"
	"strings"
)

// Objects are what a ref stands for, as Git signs it.
type Objects struct {
	Commit    // Tag is known also of a ref that is the hash of a tag
	RawCommit []byte
	RawTag    []byte // nil if the ref is no annotated tag
}

// maxObjects bounds what a server that sends more than it is asked for makes
// Objects write.
const maxObjects = 256 << 20

// Objects gets the objects of a commit that Resolve has found, and none of its
// files if the server can do so.
func (f *Fetcher) Objects(ctx context.Context, src Source, c Commit) (*Objects, error) {
	room, err := f.newRoom()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(room)
	src.KeepGitDir = true // with the tag
	o := &Objects{Commit: c}
	err = f.jailed(ctx, src, room, func(j *jail) error {
		watched, stop := j.watch(maxObjects)
		defer func() { stop(); <-watched }()
		if err := j.begin(src, c); err != nil {
			return err
		}
		if err := j.fetch(src, c, "--filter=tree:0"); err != nil {
			return err
		}
		return j.read(o)
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (j *jail) read(o *Objects) (err error) {
	if o.Tag == "" {
		kind, err := j.git("cat-file", "-t", o.Hash)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(kind)) == "tag" {
			peeled, err := j.git("rev-parse", o.Hash+"^{commit}")
			if err != nil {
				return err
			}
			o.Tag, o.Hash = o.Hash, strings.TrimSpace(string(peeled))
		}
	}
	if o.Tag != "" {
		if o.RawTag, err = j.git("cat-file", "tag", o.Tag); err != nil {
			return err
		}
	}
	o.RawCommit, err = j.git("cat-file", "commit", o.Hash)
	return err
}
