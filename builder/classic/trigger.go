package classic

import (
	"context"
	"errors"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// onBuild lists the ONBUILD instructions that the stage inherits.
func (s *stage) onBuild() []string {
	if s.base != nil {
		return s.base.Config.Config.OnBuild
	}
	if s.from == nil {
		return nil
	}
	var texts []string
	for _, st := range s.from.steps {
		if cmd, ok := st.cmd.(*instructions.OnbuildCommand); ok {
			texts = append(texts, cmd.Expression)
		}
	}
	return texts
}

// readTriggers parses what the stage inherits, so that it is known before
// anything runs which other stages and images that needs. A trigger that does
// not parse fails when its turn comes.
func (s *stage) readTriggers() error {
	from := s.steps[0]
	for _, text := range s.onBuild() {
		cmd, err := parseTrigger(text)
		if err != nil {
			s.badTrigger = failure.Userf(failure.DockerfileInvalid, "FROM inherits ONBUILD "+text+": mend it in the image or stage that FROM names", "%v", err)
			return nil
		}
		st := &step{id: from.id, number: from.number, cmd: cmd, source: text, line: from.line, end: from.end}
		if err := s.check(st); err != nil {
			return err
		}
		s.triggers = append(s.triggers, st)
	}
	return nil
}

func parseTrigger(text string) (instructions.Command, error) {
	ast, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	if len(ast.AST.Children) != 1 {
		return nil, errors.New("onbuild trigger should be a single expression")
	}
	return instructions.ParseCommand(ast.AST.Children[0])
}

// trigger runs the inherited ONBUILD instructions as part of FROM.
func (s *stage) trigger(ctx, steps context.Context, st *step, done *slipwayv1.StepDone) error {
	s.note(st, "# Executing %s", count(len(s.onBuild()), "build trigger"))
	cached := true
	for _, sub := range s.triggers {
		sub.id = st.id
		one := &slipwayv1.StepDone{}
		if err := s.dispatch(ctx, steps, sub, one); err != nil {
			return err
		}
		cached = cached && one.Cached
		if done.Why == nil {
			done.Miss, done.Why = one.Miss, one.Why
		}
	}
	done.Cached = done.Cached && cached
	return s.badTrigger
}
