package classic_test

import (
	"strings"
	"testing"
)

// TestRefusals holds refusals to what a person needs: the line, what was found
// there, and what to write instead.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"f": "f", "g": "g"})
	for _, tc := range []struct {
		dockerfile    string
		line          uint32
		message, hint string // parts
	}{
		{"", 0, "the Dockerfile (Dockerfile) cannot be empty", "FROM"},
		{"# nothing", 1, "file with no instructions", "at least a FROM line"},
		{"RUN true", 1, "no build stage in current context", "begin with FROM"},
		{"FROM fid/base:1\nRUNN x", 2, "unknown instruction: RUNN (did you mean RUN?)", "ADD, ARG, CMD, COPY"},
		{"FROM fid/base:1\n\nCOPY f", 3, "COPY requires at least two arguments", "SOURCE... DESTINATION"},
		{"FROM fid/base:1\ncopy --bogus f /", 2, "unknown flag: --bogus", "--exclude=PATTERN"},
		{"FROM", 1, "FROM requires either one or three arguments", "IMAGE-OR-STAGE [AS NAME]"},
		{"FROM fid/base:1 AS 1x", 1, "invalid name for build stage", "[AS NAME]"},
		{"FROM fid/base:1\nENV", 2, "ENV requires at least one argument", "ENV NAME=VALUE"},
		{"FROM fid/base:1\nSHELL /bin/sh -c", 2, "requires the arguments to be in JSON form", "with double quotes"},
		{"FROM fid/base:1\nONBUILD FROM x", 2, "FROM isn't allowed as an ONBUILD trigger", "may not be FROM"},
		{"FROM fid/base:1\nHEALTHCHECK --interval=5 CMD x", 2, `missing unit in duration "5"`, "like 30s"},
		{"FROM fid/base:1\nHEALTHCHECK maybe", 2, `Unknown type "MAYBE" in HEALTHCHECK`, "HEALTHCHECK NONE"},
		{"FROM fid/base:1\nVOLUME [\"\"]", 2, "VOLUME specified can not be an empty string", "VOLUME DIRECTORY"},
		{"FROM fid/base:1\nRUN <<EOF\nx", 2, "unterminated heredoc", "the word after <<"},
		{"# escape=x\nFROM fid/base:1", 0, "invalid escape token", "a backslash or a backtick"},
		{"FROM fid/base:1\nENV A=${B", 2, "unsupported modifier", "with the closing brace"},
		{"FROM fid/base:1\nLABEL a=\"b", 2, "looking for matching double-quote", "close the quote"},
		{"FROM fid/base:1\nENV A=\"${B:?is not set}\"", 2, "B: is not set", "--build-arg"},
		{"ARG A=${B\nFROM fid/base:1", 1, "unsupported modifier", "with the closing brace"},
		{"FROM ${B", 1, "unsupported modifier", "with the closing brace"},
		{"FROM $B", 1, "base name ($B) should not be blank", "--build-arg"},
		{"ARG V\nFROM fid/base:$V", 2, "base image fid/base:", "fid/base:$V stands for fid/base:"},
		{"FROM --platform=a/b/c/d fid/base:1", 1, "failed to parse platform a/b/c/d", "linux/amd64"},
		{"FROM fid/base:1 AS a\nFROM fid/base:1 AS a", 2, "a stage name already used", "differently"},
		{"FROM fid/base:1 AS a\nCOPY --from=b /f /f\nFROM fid/base:1 AS b\nFROM a", 2, "base image b", "stage b is at line 3"},
		{"FROM fid/base:1\nCOPY --from=9 /f /f", 2, "invalid from flag value 9: index out of bounds", "comes before this one"},
		{"FROM fid/base:1\nCOPY nope /x", 2, "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist", "spelling"},
		{"FROM fid/base:1\nCOPY ../f /x", 2, "COPY failed: forbidden path outside the build context: ../f ()", "into the context"},
		{"FROM fid/base:1\nCOPY f g /x", 2, "When using COPY with more than one source file", "end the destination with /"},
		{"FROM fid/base:1\nCOPY f /etc/passwd/x", 2, "/etc/passwd: not a directory", "below a directory"},
		{"FROM fid/base:1\nCOPY --chown=ghost f /x", 2, "no such user: ghost", "use ids"},
		{"FROM fid/base:1\nEXPOSE 99999", 2, "invalid containerPort: 99999", "PORT"},
		{"FROM fid/base:1\nSTOPSIGNAL SIGFOO", 2, "invalid signal: SIGFOO", "SIGTERM"},
		{"FROM fid/base:1\nWORKDIR /etc/passwd", 2, "Cannot mkdir: /etc/passwd is not a directory", "another directory"},
		{"FROM fid/base:1\nUSER ghost\nRUN true", 3, "unable to find user ghost: no matching entries in passwd file", "a number"},
		{"FROM fid/base:1\nRUN [\"nope\"]", 2, `exec: "nope": executable file not found in $PATH`, "PATH"},
	} {
		e := w.build(t.Context(), request{dir: dir, dockerfile: tc.dockerfile}).Error
		if e == nil || e.Line != tc.line || !strings.Contains(e.Message, tc.message) || !strings.Contains(e.Hint, tc.hint) {
			t.Errorf("%q:\n got line %d, %q, hint %q\nwant line %d, %q, hint %q", tc.dockerfile, e.GetLine(), e.GetMessage(), e.GetHint(), tc.line, tc.message, tc.hint)
		}
	}
}

// Whatever the version of cgroups, running out of memory is told from another
// failure.
func TestOutOfMemory(t *testing.T) {
	w := newWorld(t)
	w.opts.Limits.Memory = 32e6
	for script, want := range map[string]string{
		"x=; while :; do x=$x$x-; done": "ran out of memory, of which a step has 0.032 GB (the daemon's --build-memory)",
		"exit 7":                        "the output above says why",
	} {
		e := w.build(t.Context(), request{dir: t.TempDir(), dockerfile: "FROM fid/base:1\nRUN " + script}).Error
		if e == nil || !strings.Contains(e.Hint, want) {
			t.Errorf("%s: %q, hint %q; want %q", script, e.GetMessage(), e.GetHint(), want)
		}
	}
}
