package classic

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// A dockerfile is the parsed recipe.
type dockerfile struct {
	name   string
	escape rune
	meta   []instructions.ArgCommand
	stages []instructions.Stage
	cut    bool // stages after the target are left out
}

// parse reads a whole Dockerfile before anything runs.
func parse(name string, content []byte) (*dockerfile, error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, failure.Userf(failure.DockerfileInvalid, "write at least a FROM line", "the Dockerfile (%s) cannot be empty", name)
	}
	ast, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return nil, syntaxError(content, fmt.Errorf("failed to parse %s: %w", name, err))
	}
	stages, meta, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil, syntaxError(content, err)
	}
	if len(stages) == 0 {
		return nil, failure.Userf(failure.DockerfileInvalid, "add a FROM line", "the Dockerfile (%s) has no build stage", name)
	}
	return &dockerfile{name: name, escape: ast.EscapeToken, meta: meta, stages: stages}, nil
}

func syntaxError(content []byte, err error) error {
	out := failure.Userf(failure.DockerfileInvalid, "", "%v", err)
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		out.Line = at.Locations[0][0].Start.Line
	}
	out.Hint = syntaxHint(content, out.Line, out.Message)
	return out
}

// A step is one instruction of a stage. The first step of a stage is its FROM.
type step struct {
	id     uint32
	number int // from 1 within the stage
	cmd    instructions.Command
	source string
	line   int
	end    int

	variable bool // variables decide what it mounts

	// Of a forecast.
	outlook *slipwayv1.ForecastStep
	unknown bool
}

func newStep(number int, cmd instructions.Command, source string, at []parser.Range) *step {
	st := &step{number: number, cmd: cmd, source: source}
	if len(at) > 0 {
		st.line, st.end = at[0].Start.Line, at[len(at)-1].End.Line
	}
	return st
}

// sourceOf is the instruction as written, continuations joined.
func sourceOf(cmd instructions.Command) string {
	if s, ok := cmd.(fmt.Stringer); ok {
		return s.String()
	}
	return strings.ToUpper(cmd.Name())
}
