package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Link gives the repository the blob that desc describes and that lies,
// complete, in the file at path, which nobody may write to any more. On the same file system the blob becomes a hard link; else it is
// copied, and checked on the way. A blob that the registry has already stays
// as it is.
//
// Link trusts the digest of a file that it need not read, and checks its size;
// the error wraps [ErrMismatch] if that is wrong. What it links is safe from a
// power loss once a manifest is put. It is safe for concurrent use, also for
// one blob.
func (r *Repository) Link(ctx context.Context, desc ocispec.Descriptor, path string) error {
	if err := r.link(ctx, desc, path); err != nil {
		return fmt.Errorf("link %s into %s: %w", desc.Digest, r.name.Name(), err)
	}
	return nil
}

func (r *Repository) link(ctx context.Context, desc ocispec.Descriptor, path string) error {
	if err := supported(desc.Digest); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	target := r.registry.layout.blob(desc.Digest)
	switch size, err := fileSize(target); {
	case errors.Is(err, fs.ErrNotExist):
		if err := r.registry.place(ctx, desc, path, target); err != nil {
			return err
		}
	case err != nil:
		return err
	case size != desc.Size:
		if err := r.registry.repair(ctx, desc, path, target); err != nil {
			return err
		}
	}
	return r.registry.record(r.name.Name(), desc.Digest)
}

// place puts the file at path where the registry lacks a blob.
func (r *Registry) place(ctx context.Context, desc ocispec.Descriptor, path, target string) error {
	size, err := fileSize(path)
	if err != nil {
		return err
	}
	if size != desc.Size {
		return fmt.Errorf("%w: %s has %d bytes, want %d", ErrMismatch, path, size, desc.Size)
	}
	dir := filepath.Dir(target)
	if err := r.pending.mkdirAll(dir); err != nil {
		return err
	}
	err = os.Link(path, target)
	if cannotLink(err) {
		err = r.copy(ctx, desc, path, target)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) { // someone was faster: same digest, same blob
		return err
	}
	r.pending.note(target, dir)
	return nil
}

// copy puts a copy of the file at path where the registry lacks a blob.
func (r *Registry) copy(ctx context.Context, desc ocispec.Descriptor, path, target string) error {
	tmp, err := r.verifiedCopy(ctx, desc, path)
	if err != nil {
		return err
	}
	return errors.Join(os.Link(tmp, target), os.Remove(tmp))
}

// repair replaces a blob whose size cannot be right. It alone replaces
// anything, so it believes nobody and reads every byte first. Who reads the
// old file goes on reading it.
func (r *Registry) repair(ctx context.Context, desc ocispec.Descriptor, path, target string) error {
	tmp, err := r.verifiedCopy(ctx, desc, path)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, target); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	r.pending.note(filepath.Dir(target))
	r.log.Warn("registry: replaced a damaged blob", "digest", desc.Digest.String())
	return nil
}

// verifiedCopy returns a durable temporary file with the content that desc
// describes, read from path.
func (r *Registry) verifiedCopy(ctx context.Context, desc ocispec.Descriptor, path string) (string, error) {
	in, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(r.layout.tmp(), "copy-")
	if err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { in.Close() })()
	verify := desc.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(out, verify), io.LimitReader(in, desc.Size+1))
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && (n != desc.Size || !verify.Verified()) {
		err = fmt.Errorf("%w: %s", ErrMismatch, path)
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return "", errors.Join(err, os.Remove(out.Name()))
	}
	return out.Name(), nil
}

// record notes that a repository has a blob.
func (r *Registry) record(repository string, d digest.Digest) error {
	path := r.layout.link(repository, d)
	if r.recorded(repository, d) {
		return nil
	}
	dir := filepath.Dir(path)
	if err := r.pending.mkdirAll(dir); err != nil {
		return err
	}
	tmp, err := r.layout.write([]byte(d))
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	r.pending.note(dir)
	return nil
}

// recorded reports whether a repository has a blob, damaged records apart.
func (r *Registry) recorded(repository string, d digest.Digest) bool {
	b, err := os.ReadFile(r.layout.link(repository, d))
	return err == nil && string(b) == string(d)
}

// cannotLink reports whether a hard link failed for a reason that a copy does
// not share.
func cannotLink(err error) bool {
	for _, e := range []error{syscall.EXDEV, syscall.EMLINK, syscall.EPERM, syscall.ENOTSUP, syscall.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// fileSize returns the size of a regular file.
func fileSize(path string) (int64, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", path)
	}
	return fi.Size(), nil
}
