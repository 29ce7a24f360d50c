package classic

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"

	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/layercache"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// defaultPath is a process's PATH when the image sets none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// dispatch carries out one instruction.
func (s *stage) dispatch(ctx, steps context.Context, st *step, done *slipwayv1.StepDone) error {
	if err := s.expand(st.cmd); err != nil {
		return err
	}
	switch cmd := st.cmd.(type) {
	case *instructions.RunCommand:
		return s.run1(ctx, steps, st, cmd, done)
	case *instructions.CopyCommand:
		return s.copy(ctx, steps, st, cmd, done)
	case *instructions.AddCommand:
		return s.add(ctx, steps, st, cmd, done)
	case *instructions.WorkdirCommand:
		return s.workdir(ctx, steps, st, cmd, done)
	}
	image := cloneImage(s.node.image)
	comment, err := s.configure(&image, st)
	if err != nil {
		return err
	}
	c := &change{
		image: image, createdBy: nop(&s.node.image, &image, st.cmd, comment),
		key:    fixed(layercache.Part{Name: "instruction", Value: comment}),
		inputs: known(s.inputsOf(st, s.node, comment)),
	}
	if v, ok := st.cmd.(*instructions.VolumeCommand); ok {
		c.write = drafted(func(_ context.Context, d *draft) error { return d.volumes(v.Volumes) }).write
	}
	return s.apply(ctx, steps, st, c, done)
}

// expand replaces variables where the instruction allows them.
func (s *stage) expand(cmd instructions.Command) error {
	lex := shell.NewLex(s.build.file.escape)
	env := s.environment()
	word := func(word string) (string, error) {
		out, _, err := lex.ProcessWord(word, env)
		return out, err
	}
	if ex, ok := cmd.(*instructions.ExposeCommand); ok {
		var ports []string
		for _, p := range ex.Ports {
			words, err := lex.ProcessWords(p, env)
			if err != nil {
				return unexpanded(err)
			}
			ports = append(ports, words...)
		}
		ex.Ports = ports
		return nil
	}
	if ex, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		err := ex.Expand(word)
		if _, isRun := cmd.(*instructions.RunCommand); isRun && err != nil {
			return mountFailure(err)
		}
		if err != nil {
			return unexpanded(err)
		}
	}
	return nil
}

// environment is what variables in instructions stand for: the image's own
// before the ARGs in scope.
func (s *stage) environment() shell.EnvGetter {
	env := s.node.image.Config.Env
	return shell.EnvsFromSlice(append(slices.Clone(env), pairs(s.scope.values(env))...))
}

func cloneImage(in dockerspec.DockerOCIImage) dockerspec.DockerOCIImage {
	out := in
	out.Config.Env = slices.Clone(in.Config.Env)
	out.Config.Labels = maps.Clone(in.Config.Labels)
	out.Config.ExposedPorts = maps.Clone(in.Config.ExposedPorts)
	out.Config.Volumes = maps.Clone(in.Config.Volumes)
	out.Config.OnBuild = slices.Clone(in.Config.OnBuild)
	return out
}

// shellOf is the shell of the image's shell forms.
func shellOf(image *dockerspec.DockerOCIImage) []string {
	if len(image.Config.Shell) > 0 {
		return image.Config.Shell
	}
	return []string{"/bin/sh", "-c"}
}

// nop is the history of an instruction that runs nothing. SHELL is written
// with the shell that it sets.
func nop(before, after *dockerspec.DockerOCIImage, cmd instructions.Command, comment string) string {
	sh := shellOf(before)
	if _, ok := cmd.(*instructions.ShellCommand); ok {
		sh = shellOf(after)
	}
	return strings.Join(sh, " ") + " #(nop)  " + comment
}

// nopFS is the history of WORKDIR, COPY and ADD.
func nopFS(image *dockerspec.DockerOCIImage, comment string) string {
	return strings.Join(shellOf(image), " ") + " #(nop) " + comment
}

// configure changes the image's config and returns the instruction as
// history shows it.
func (s *stage) configure(image *dockerspec.DockerOCIImage, st *step) (string, error) {
	c := &image.Config
	switch cmd := st.cmd.(type) {
	case *instructions.EnvCommand:
		return "ENV " + setEnv(c, cmd.Env), nil
	case *instructions.LabelCommand:
		return "LABEL " + setLabels(c, cmd.Labels), nil
	case *instructions.ArgCommand:
		return s.arg(cmd), nil
	case *instructions.MaintainerCommand:
		image.Author = cmd.Maintainer
		return "MAINTAINER " + cmd.Maintainer, nil
	case *instructions.UserCommand:
		c.User = cmd.User
		return "USER " + cmd.User, nil
	case *instructions.CmdCommand:
		c.Cmd = commandLine(image, &cmd.ShellDependantCmdLine)
		s.cmdSet = s.cmdSet || len(cmd.CmdLine) > 0
		return fmt.Sprintf("CMD %q", c.Cmd), nil
	case *instructions.EntrypointCommand:
		c.Entrypoint = commandLine(image, &cmd.ShellDependantCmdLine)
		if !s.cmdSet {
			c.Cmd = nil
		}
		return fmt.Sprintf("ENTRYPOINT %q", c.Entrypoint), nil
	case *instructions.ExposeCommand:
		return expose(c, cmd.Ports)
	case *instructions.VolumeCommand:
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range cmd.Volumes {
			if v == "" {
				return "", failure.Userf(failure.DockerfileInvalid, "give the variable a value", "VOLUME specified can not be an empty string")
			}
			c.Volumes[v] = struct{}{}
		}
		return fmt.Sprintf("VOLUME %v", cmd.Volumes), nil
	case *instructions.ShellCommand:
		c.Shell = slices.Clone(cmd.Shell)
		return fmt.Sprintf("SHELL %v", cmd.Shell), nil
	case *instructions.StopSignalCommand:
		if _, err := signal.ParseSignal(cmd.Signal); err != nil {
			return "", failure.Userf(failure.DockerfileInvalid, "use a name like SIGTERM or a number", "invalid signal: %s", cmd.Signal)
		}
		c.StopSignal = cmd.Signal
		return "STOPSIGNAL " + cmd.Signal, nil
	case *instructions.HealthCheckCommand:
		s.noteHealthcheck(c, st)
		c.Healthcheck = cmd.Health
		return healthText(cmd.Health), nil
	case *instructions.OnbuildCommand:
		c.OnBuild = append(c.OnBuild, cmd.Expression)
		return "ONBUILD " + cmd.Expression, nil
	}
	return "", failure.Userf(failure.NotSupported, "use an instruction that docs/dockerfile.md lists", "%s is not supported", strings.ToUpper(st.cmd.Name()))
}

func (s *stage) noteHealthcheck(c *dockerspec.DockerOCIImageConfig, st *step) {
	if c.Healthcheck != nil && len(c.Healthcheck.Test) > 0 && c.Healthcheck.Test[0] != "NONE" {
		s.note(st, "Note: overriding previous HEALTHCHECK: %v", c.Healthcheck.Test)
	}
}

// setEnv updates in place, so that the order stays.
func setEnv(c *dockerspec.DockerOCIImageConfig, vars instructions.KeyValuePairs) string {
	var texts []string
	for _, kv := range vars {
		text := kv.Key + "=" + kv.Value
		texts = append(texts, text)
		at := slices.IndexFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, kv.Key+"=") })
		if at < 0 {
			c.Env = append(c.Env, text)
		} else {
			c.Env[at] = text
		}
	}
	return strings.Join(texts, " ")
}

func setLabels(c *dockerspec.DockerOCIImageConfig, labels instructions.KeyValuePairs) string {
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	var texts []string
	for _, kv := range labels {
		c.Labels[kv.Key] = kv.Value
		texts = append(texts, kv.Key+"="+kv.Value)
	}
	return strings.Join(texts, " ")
}

func (s *stage) arg(cmd *instructions.ArgCommand) string {
	var texts []string
	for _, a := range cmd.Args {
		s.scope.declare(a.Key, a.Value)
		text := a.Key
		if a.Value != nil {
			text += "=" + *a.Value
		}
		texts = append(texts, text)
	}
	return "ARG " + strings.Join(texts, " ")
}

func commandLine(image *dockerspec.DockerOCIImage, line *instructions.ShellDependantCmdLine) []string {
	switch {
	case line.PrependShell && line.CmdLine != nil:
		return append(slices.Clone(shellOf(image)), line.CmdLine...)
	case len(line.CmdLine) == 0:
		return nil
	}
	return slices.Clone(line.CmdLine)
}

func expose(c *dockerspec.DockerOCIImageConfig, ports []string) (string, error) {
	if c.ExposedPorts == nil {
		c.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		all, err := parsePorts(p)
		if err != nil {
			return "", failure.Userf(failure.DockerfileInvalid, "write it as PORT or FROM-TO, with /tcp, /udp or /sctp", "%v", err)
		}
		for _, port := range all {
			c.ExposedPorts[port] = struct{}{}
		}
	}
	return "EXPOSE " + strings.Join(ports, " "), nil
}

// workdir makes the directory and makes it the one that later steps are in.
func (s *stage) workdir(ctx, steps context.Context, st *step, cmd *instructions.WorkdirCommand, done *slipwayv1.StepDone) error {
	dir := cmd.Path
	if dir == "" {
		return failure.Userf(failure.DockerfileInvalid, "give the variable a value", "cannot normalize nothing")
	}
	image := cloneImage(s.node.image)
	if !path.IsAbs(dir) {
		dir = path.Join("/", image.Config.WorkingDir, dir)
	}
	dir = path.Clean(dir)
	image.Config.WorkingDir = dir
	c := drafted(func(_ context.Context, d *draft) error { return d.workdir(dir) })
	c.image, c.createdBy = image, nopFS(&s.node.image, "WORKDIR "+dir)
	c.key = fixed(layercache.Part{Name: "instruction", Value: "WORKDIR " + dir})
	c.inputs = known(s.inputsOf(st, s.node, dir))
	return s.apply(ctx, steps, st, c, done)
}

// healthText is HEALTHCHECK as Docker's history has it: a quoted struct.
func healthText(h *dockerspec.HealthcheckConfig) string {
	return fmt.Sprintf("HEALTHCHECK &{%q %q %q %q %q %q}", h.Test, h.Interval, h.Timeout, h.StartPeriod, h.StartInterval, rune(h.Retries))
}
