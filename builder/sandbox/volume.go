package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// A volume takes the place of a directory of the image: it shows what the image
// has there, and what is written to it is thrown away.
type volume struct {
	target  string   // in the container
	source  string   // on the host
	overlay *overlay // mounted at source, or nil where the image has nothing
}

// volumePaths cleans and orders the paths of volumes, outer ones first.
func volumePaths(list []string) ([]string, error) {
	var paths []string
	for _, v := range list {
		p := path.Clean("/" + v)
		if p == "/" {
			return nil, &StartError{Message: "invalid volume specification: '" + v + "': destination can't be '/'"}
		}
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(a, b string) int {
		return strings.Count(a, "/") - strings.Count(b, "/")
	})
	seen := map[string]bool{}
	return slices.DeleteFunc(paths, func(p string) bool {
		dup := seen[p]
		seen[p] = true
		return dup
	}), nil
}

// makeVolumes prepares a volume for each path, below dir, and calls mounted for
// each mount it makes.
func makeVolumes(dir, rootfs string, paths []string, mounted func(*overlay, string)) ([]volume, error) {
	var volumes []volume
	for i, p := range paths {
		v, err := makeVolume(filepath.Join(dir, strconv.Itoa(i)), rootfs, p)
		if err != nil {
			return nil, err
		}
		if v.overlay != nil {
			mounted(v.overlay, v.source)
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

func makeVolume(dir, rootfs, target string) (volume, error) {
	v := volume{target: target, source: filepath.Join(dir, "merged")}
	if err := os.MkdirAll(v.source, 0o755); err != nil {
		return volume{}, err
	}
	image, err := fs.RootPath(rootfs, target)
	if err != nil {
		return volume{}, &StartError{Message: fmt.Sprintf("cannot mount volume at %s: %v", target, err)}
	}
	v.overlay, _, err = mountThrowaway(dir, image)
	if errors.Is(err, os.ErrNotExist) {
		return v, nil
	}
	if errors.Is(err, unix.ENOTDIR) {
		return volume{}, &StartError{Message: "cannot mount volume over existing file, file exists " + target}
	}
	return v, err
}

// mountThrowaway mounts an overlay over a directory, whose changes go to dir and
// are thrown away with it. It returns the overlay and where it is mounted.
func mountThrowaway(dir, lower string) (*overlay, string, error) {
	f, err := os.OpenFile(lower, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	o := &overlay{
		// Somebody else chose the name of the directory: hand the kernel one
		// that it cannot read anything into.
		lowers:   stack{fmt.Sprintf("/proc/self/fd/%d", f.Fd())},
		upper:    filepath.Join(dir, "upper"),
		work:     filepath.Join(dir, "work"),
		volatile: true,
	}
	target := filepath.Join(dir, "merged")
	for _, d := range []string{o.upper, o.work, target} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, "", err
		}
	}
	if err := copyAttributes(o.upper, lower); err != nil {
		return nil, "", err
	}
	return o, target, o.mount(target)
}
