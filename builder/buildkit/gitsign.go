package buildkit

import (
	"cmp"
	"errors"

	"github.com/moby/buildkit/source/git"
	"github.com/moby/buildkit/util/gitutil/gitobject"
	"github.com/moby/buildkit/util/gitutil/gitsign"
	"github.com/moby/buildkit/util/pgpsign"
)

var errNoSignedTag = errors.New("signed tag required but no signed tag found")

// verify checks the signature of a tag or of its commit, as BuildKit does.
func verify(md *git.Metadata, o *git.GitSignatureVerifyOptions) error {
	var tagErr error
	if !o.IgnoreSignedTag && len(md.TagObject) > 0 {
		if tagErr = verifyObject(md.TagObject, md.Checksum, o); tagErr == nil {
			return nil
		}
	}
	if o.RequireSignedTag {
		return cmp.Or(tagErr, errNoSignedTag)
	}
	return verifyObject(md.CommitObject, cmp.Or(md.CommitChecksum, md.Checksum), o)
}

// verifyObject checks that an object has a hash, and its signature.
func verifyObject(raw []byte, hash string, o *git.GitSignatureVerifyOptions) error {
	obj, err := gitobject.Parse(raw)
	if err != nil {
		return err
	}
	if err := obj.VerifyChecksum(hash); err != nil {
		return err
	}
	return gitsign.VerifySignature(obj, o.PubKey, &pgpsign.VerifyPolicy{RejectExpiredKeys: o.RejectExpiredKeys})
}
