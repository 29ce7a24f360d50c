package classic

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/base"
	"github.com/slipwayhq/slipway/builder/failure"
	"github.com/slipwayhq/slipway/builder/sandbox"
)

// usage is what each instruction takes.
var usage = map[string]string{
	"ADD":         "ADD [--chown=USER:GROUP] [--chmod=MODE] [--checksum=sha256:HASH] SOURCE... DESTINATION",
	"ARG":         "ARG NAME or ARG NAME=DEFAULT",
	"CMD":         `CMD ["PROGRAM", "ARGUMENT"] or CMD COMMAND`,
	"COPY":        "COPY [--from=STAGE-OR-IMAGE] [--chown=USER:GROUP] [--chmod=MODE] [--exclude=PATTERN] SOURCE... DESTINATION",
	"ENTRYPOINT":  `ENTRYPOINT ["PROGRAM", "ARGUMENT"] or ENTRYPOINT COMMAND`,
	"ENV":         "ENV NAME=VALUE",
	"EXPOSE":      "EXPOSE PORT or EXPOSE PORT/udp",
	"FROM":        "FROM [--platform=OS/ARCH] IMAGE-OR-STAGE [AS NAME]",
	"HEALTHCHECK": "HEALTHCHECK [--interval=30s] [--timeout=30s] [--start-period=0s] [--start-interval=5s] [--retries=3] CMD COMMAND, or HEALTHCHECK NONE",
	"LABEL":       "LABEL NAME=VALUE",
	"MAINTAINER":  "MAINTAINER NAME",
	"ONBUILD":     "ONBUILD INSTRUCTION, which may not be FROM, MAINTAINER or ONBUILD",
	"RUN":         `RUN COMMAND or RUN ["PROGRAM", "ARGUMENT"]`,
	"SHELL":       `SHELL ["PROGRAM", "ARGUMENT"], with double quotes`,
	"STOPSIGNAL":  "STOPSIGNAL SIGTERM or STOPSIGNAL 15",
	"USER":        "USER NAME-OR-ID[:GROUP-OR-ID]",
	"VOLUME":      `VOLUME DIRECTORY or VOLUME ["DIRECTORY"]`,
	"WORKDIR":     "WORKDIR DIRECTORY",
}

// advice is what to do about errors that the parser and the expansion of
// variables report as text, by a part of it.
var advice = []struct{ part, hint string }{
	{"unknown instruction", "a line begins with one of " + strings.Join(instructionNames(), ", ")},
	{"no build stage in current context", "begin with FROM IMAGE; only ARG may come before the first FROM"},
	{"file with no instructions", "write at least a FROM line"},
	{"unterminated heredoc", "end the text with a line that holds nothing but the word after <<"},
	{"invalid escape token", "the escape directive takes a backslash or a backtick"},
	{"in duration", "write times with a unit, like 30s or 1m30s"},
	{"while looking for matching", "close the quote, or write a backslash before one that is meant as a character"},
	{"modifier", "write ${NAME}, ${NAME:-DEFAULT} or ${NAME#PATTERN}, with the closing brace"},
	{"missing ':' in substitution", "write ${NAME}, ${NAME:-DEFAULT} or ${NAME#PATTERN}, with the closing brace"},
}

func instructionNames() []string {
	var all []string
	for name := range usage {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func advise(text, otherwise string) string {
	for _, a := range advice {
		if strings.Contains(text, a.part) {
			return a.hint
		}
	}
	return otherwise
}

// syntaxHint says what to write in the place of a line that does not parse.
func syntaxHint(content []byte, line int, text string) string {
	hint := "see docs/dockerfile.md for what each instruction takes"
	lines := bytes.Split(content, []byte("\n"))
	if line < 1 || line > len(lines) {
		return advise(text, hint)
	}
	if words := bytes.Fields(lines[line-1]); len(words) > 0 {
		if u, ok := usage[strings.ToUpper(string(words[0]))]; ok {
			hint = "write it as " + u
		}
	}
	return advise(text, hint)
}

// unexpanded is the error of variables that cannot be replaced.
func unexpanded(err error) error {
	return failure.Userf(failure.DockerfileInvalid, advise(err.Error(), "give the variable a value with ARG, ENV or --build-arg"), "%v", err)
}

// hinted returns err with another hint.
func hinted(err error, format string, args ...any) error {
	e := *failure.As(err)
	e.Hint = fmt.Sprintf(format, args...)
	return &e
}

// baseHint says what FROM stands for where variables made it no image's name.
func (s *stage) baseHint(err error) error {
	if err == nil || s.def.BaseName == s.ref || !errors.Is(err, base.ErrInvalid) {
		return err
	}
	return hinted(err, "with the ARGs before the first FROM, %s stands for %s: give them a default there, or pass --build-arg", s.def.BaseName, s.ref)
}

// laterHint tells a stage that comes too late from an image that is missing.
func (s *stage) laterHint(err error, from string) error {
	for _, def := range s.build.file.stages[s.index+1:] {
		if err != nil && strings.EqualFold(def.Name, from) {
			return hinted(err, "stage %s is at line %d: move it before the stage that copies from it", def.Name, def.Location[0].Start.Line)
		}
	}
	return err
}

// startHint says what to look at when a process cannot be started.
func startHint(err error) string {
	if errors.Is(err, sandbox.ErrUser) {
		return "make the user in a RUN step before USER, or give USER a number"
	}
	return "check that the image has the program, and its PATH"
}

// ranOut reports whether a command seems to have wanted more memory than it may
// have.
func ranOut(code int, l sandbox.Limits) bool {
	return code == 128+int(unix.SIGKILL) && l.Memory > 0
}

// exitHint says what to look at when a command failed. The kernel kills what
// runs out of memory, and nobody is left to say so.
func exitHint(code int, l sandbox.Limits) string {
	const cached = "steps before this one stay cached"
	if ranOut(code, l) {
		return fmt.Sprintf("the command was killed; most likely it ran out of memory, of which a step has %.3g GB (the daemon's --build-memory); %s",
			float64(l.Memory)/1e9, cached)
	}
	return "the output above says why; " + cached
}
