package buildkit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/solver/result"
	buildkit "github.com/moby/buildkit/worker"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"

	"github.com/slipwayhq/slipway/builder/failure"
)

// BuildKit's frontend of Dockerfiles asks SSH servers that an ADD names for their
// keys, from the process that it runs in. Nothing in it can be told not to. So
// it reads a Dockerfile in this process only if no ADD can name one; else it
// does so in a process that has no network (apart.go). The daemon fetches from
// no SSH server anyway: the build then ends with the reason, at its line.
type dockerfiles struct {
	within  frontend.Frontend
	workers buildkit.Infos
	apart   []string // the command of the other process
}

func newDockerfiles(w buildkit.Infos, apart []string) *dockerfiles {
	return &dockerfiles{within: forwarder.NewGatewayForwarder(w, readDockerfile), workers: w, apart: apart}
}

// Solve implements BuildKit's frontend.
func (d *dockerfiles) Solve(ctx context.Context, b frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	res, err := d.within.Solve(ctx, b, exec, opt, inputs, sid, sm)
	if !errors.Is(err, errApart) {
		return res, err
	}
	return d.solveApart(ctx, b, exec, opt, inputs, sid, sm)
}

// errApart says that a Dockerfile may name an SSH server.
var errApart = errors.New("the Dockerfile has to be read without a network")

// readDockerfile is the frontend in this process. The error wraps errApart
// before anything is asked of an SSH server.
func readDockerfile(ctx context.Context, c client.Client) (*client.Result, error) {
	opts := c.BuildOpts().Opts
	if err := otherProtocol(opts[cmp.Or(opts["contextkey"], localContext)]); err != nil {
		e := failure.As(err)
		return nil, fmt.Errorf("%s (%s)", e.Message, e.Hint)
	}
	if err := checkInputs(opts); err != nil {
		return nil, err
	}
	res, err := dockerfile.Build(ctx, &wary{c})
	if err != nil {
		return nil, err
	}
	return result.ConvertResult(res, func(r client.Reference) (client.Reference, error) {
		if w, ok := r.(*waryRef); ok {
			return w.Reference, nil
		}
		return r, nil
	})
}

// inputMetadata begins the names of options that have the configs of images
// which are inputs.
const inputMetadata = "input-metadata:"

// checkInputs returns errApart if an image that comes with the request has
// triggers that may name an SSH server.
func checkInputs(opts map[string]string) error {
	for k, v := range opts {
		if !strings.HasPrefix(k, inputMetadata) {
			continue
		}
		var md map[string][]byte
		if json.Unmarshal([]byte(v), &md) != nil {
			return errApart
		}
		for k, config := range md {
			if !strings.HasPrefix(k, exptypes.ExporterImageConfigKey) {
				continue
			}
			if err := checkConfig(config); err != nil {
				return err
			}
		}
	}
	return nil
}

// wary looks at all that instructions can come from before the frontend does.
type wary struct{ client.Client }

// Solve implements BuildKit's client.
func (c *wary) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	res, err := c.Client.Solve(ctx, req)
	if err != nil {
		return nil, err
	}
	return result.ConvertResult(res, func(r client.Reference) (client.Reference, error) {
		if r == nil {
			return nil, nil
		}
		return &waryRef{r}, nil
	})
}

// ResolveImageConfig implements BuildKit's client.
func (c *wary) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	name, d, config, err := c.Client.ResolveImageConfig(ctx, ref, opt)
	if err != nil {
		return name, d, config, err
	}
	return name, d, config, checkConfig(config)
}

// ResolveSourceMetadata implements BuildKit's client.
func (c *wary) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	md, err := c.Client.ResolveSourceMetadata(ctx, op, opt)
	if err == nil && md.Image != nil {
		err = checkConfig(md.Image.Config)
	}
	return md, err
}

type waryRef struct{ client.Reference }

// ReadFile implements BuildKit's reference. Any file may be the Dockerfile.
func (r *waryRef) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	if req.Range != nil && req.Range.Offset != 0 {
		return nil, errApart // what comes before is not known
	}
	text, err := r.Reference.ReadFile(ctx, req)
	if err == nil && mayNameSSH(bytes.NewReader(text)) {
		err = errApart
	}
	return text, err
}

// checkConfig returns errApart if the triggers of an image may name an SSH
// server.
func checkConfig(raw []byte) error {
	var img dockerspec.DockerOCIImage
	if len(raw) == 0 {
		return nil
	}
	if json.Unmarshal(raw, &img) != nil {
		return errApart
	}
	for _, t := range img.Config.OnBuild {
		if triggerMayNameSSH(t) {
			return errApart
		}
	}
	return nil
}

// mayNameSSH reports whether an ADD of a Dockerfile may name an SSH server. The
// frontend reads no further than this where there is an error.
func mayNameSSH(file io.Reader) bool {
	ast, err := parser.Parse(file)
	if err != nil {
		return false
	}
	stages, _, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return false
	}
	for _, s := range stages {
		for _, c := range s.Commands {
			if commandMayNameSSH(c) {
				return true
			}
		}
	}
	return false
}

// triggerMayNameSSH is mayNameSSH for what an ONBUILD has.
func triggerMayNameSSH(text string) bool {
	ast, err := parser.Parse(strings.NewReader(text))
	if err != nil || len(ast.AST.Children) != 1 {
		return true
	}
	c, err := instructions.ParseCommand(ast.AST.Children[0])
	return err != nil || commandMayNameSSH(c)
}

func commandMayNameSSH(c instructions.Command) bool {
	switch c := c.(type) {
	case *instructions.AddCommand:
		for _, src := range c.SourcePaths {
			if wordMayNameSSH(src) {
				return true
			}
		}
	case *instructions.OnbuildCommand:
		return triggerMayNameSSH(c.Expression)
	}
	return false
}

// wordMayNameSSH reports whether a word, when its variables have values and its
// quotes are gone, may be "ssh://…" or "user@host:…". What comes before the first
// of these stays as it is.
func wordMayNameSSH(word string) bool {
	i := strings.IndexAny(word, "$\"'\\`")
	if i < 0 {
		return otherProtocol(word) != nil
	}
	fixed := strings.ToLower(word[:i])
	if strings.HasPrefix(fixed, "http://") || strings.HasPrefix(fixed, "https://") {
		return false
	}
	end := strings.IndexFunc(fixed, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	})
	// A scheme and a user's name have no other character than these before
	// their end.
	return end < 0 || fixed[end] == ':' || fixed[end] == '@'
}
