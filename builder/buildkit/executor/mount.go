package executor

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/docker/go-units"
	"github.com/moby/buildkit/executor"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// mounts returns what src wants mounted, to be released with r.
func (r *resources) mounts(ctx context.Context, src executor.Mountable, readOnly bool) ([]mount.Mount, error) {
	if src == nil {
		return nil, errors.New("it has no source")
	}
	ref, err := src.Mount(ctx, readOnly)
	if err != nil {
		return nil, err
	}
	if m := ref.IdentityMapping(); m != nil && !m.Empty() {
		return nil, refusal("user namespaces are", "configure the worker without an identity mapping")
	}
	list, release, err := ref.Mount()
	if err != nil {
		return nil, err
	}
	r.add(release)
	return list, nil
}

// addMount shows m to p. The sandbox mounts what is not a directory or file
// already, in a directory of the process.
func (r *resources) addMount(ctx context.Context, p *sandbox.Process, m executor.Mount) error {
	list, err := r.mounts(ctx, m.Src, m.Readonly)
	if err != nil {
		return err
	}
	out := sandbox.Mount{Target: m.Dest, Select: m.Selector, ReadOnly: m.Readonly}
	whole := path.Clean("/"+m.Selector) == "/"
	switch {
	case len(list) == 0:
		return errors.New("it has nothing to show")
	case len(list) == 1 && (list[0].Type == "bind" || list[0].Type == "rbind"):
		out.Source = list[0].Source
		out.ReadOnly = out.ReadOnly || slices.Contains(list[0].Options, "ro")
	case len(list) == 1 && list[0].Type == "tmpfs" && whole:
		if err := memory(&out, list[0].Options); err != nil {
			return err
		}
	default:
		out.Stack = list
	}
	p.Mounts = append(p.Mounts, out)
	return nil
}

// memory reads the options of a file system in memory.
func memory(m *sandbox.Mount, options []string) error {
	for _, o := range options {
		switch name, value, _ := strings.Cut(o, "="); name {
		case "ro":
			m.ReadOnly = true
		case "size":
			size, err := units.RAMInBytes(value)
			if err != nil {
				return fmt.Errorf("size %q: %w", value, err)
			}
			m.Size = size
		}
	}
	return nil
}
