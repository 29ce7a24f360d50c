// Command verify pulls an image from a registry, checks every byte of it
// against its digests, and with -run unpacks it and runs its command, as root
// and without isolation: use it on images that you trust.
//
//	verify [-token-file FILE] [-run] HOST/APP:TAG
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("verify: ")
	tokenFile := flag.String("token-file", "", "file with a Slipway token, the registry's password")
	run := flag.Bool("run", false, "unpack the image and run its command")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("name one image")
	}
	img, err := pull(flag.Arg(0), *tokenFile)
	if err == nil {
		err = check(img)
	}
	if err == nil && *run {
		err = execute(img)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func pull(image, tokenFile string) (v1.Image, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	auth := authn.Anonymous
	if tokenFile != "" {
		token, err := os.ReadFile(tokenFile)
		if err != nil {
			return nil, err
		}
		auth = &authn.Basic{Username: "token", Password: strings.TrimSpace(string(token))}
	}
	return remote.Image(ref, remote.WithAuth(auth))
}

// check reads all layers and compares them with manifest and config.
func check(img v1.Image) error {
	if err := validate.Image(img); err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	fmt.Printf("%s is valid: %d layers, every digest matches\n", digest, len(layers))
	return nil
}

// execute runs the image's command in a temporary root file system.
func execute(img v1.Image) error {
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	args := append(config.Config.Entrypoint, config.Config.Cmd...)
	if len(args) == 0 {
		return errors.New("the image has no command")
	}
	dir, err := os.MkdirTemp("", "slipway-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unpack(img, dir); err != nil {
		return err
	}
	cmd := exec.Cmd{
		Path: args[0], Args: args, Env: config.Config.Env, Dir: path.Join("/", config.Config.WorkingDir),
		Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Chroot: dir},
	}
	return cmd.Run()
}

// unpack writes the directories and files of the flattened image below dir,
// which no entry can leave.
func unpack(img v1.Image, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	stream := mutate.Extract(img)
	defer stream.Close()
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at := strings.Trim(path.Clean("/"+h.Name), "/")
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(at, 0o755)
		case tar.TypeReg:
			err = write(root, at, h.FileInfo().Mode().Perm(), r)
		default:
			err = fmt.Errorf("%s: verify unpacks directories and files only", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func write(root *os.Root, at string, mode fs.FileMode, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(at), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(at, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
