package progress

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// An installer is a command that fetches packages. It needs the files that say
// which, and no sources.
type installer struct {
	command string   // how it begins
	needs   []string // files that decide what it does, those to name first
	names   int      // how many of them to name
}

var installers = []installer{
	{"npm ci", []string{"package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc"}, 2},
	{"npm clean-install", []string{"package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc"}, 2},
	{"npm install", []string{"package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc"}, 2},
	{"npm i", []string{"package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc"}, 2},
	{"yarn install", []string{"package.json", "yarn.lock", ".yarnrc", ".yarnrc.yml", ".npmrc"}, 2},
	{"yarn", []string{"package.json", "yarn.lock", ".yarnrc", ".yarnrc.yml", ".npmrc"}, 2},
	{"pnpm install", []string{"package.json", "pnpm-lock.yaml", "pnpm-workspace.yaml", ".npmrc"}, 2},
	{"pnpm i", []string{"package.json", "pnpm-lock.yaml", "pnpm-workspace.yaml", ".npmrc"}, 2},
	{"bundle install", []string{"Gemfile", "Gemfile.lock"}, 2},
	{"go mod download", []string{"go.mod", "go.sum"}, 2},
	{"poetry install --no-root", []string{"pyproject.toml", "poetry.lock"}, 2},
	{"uv sync --no-install-project", []string{"pyproject.toml", "uv.lock"}, 2},
	{"apt-get update", nil, 0}, {"apt-get install", nil, 0}, {"apt-get -y install", nil, 0}, {"apt-get clean", nil, 0},
	{"apt update", nil, 0}, {"apt install", nil, 0}, {"apk add", nil, 0}, {"apk update", nil, 0},
	{"dnf install", nil, 0}, {"yum install", nil, 0}, {"dnf clean", nil, 0}, {"yum clean", nil, 0},
}

// tidy are commands that may stand beside an installer and read nothing.
var tidy = []string{"rm -rf /var/lib/apt/lists", "rm -rf /var/cache", "npm cache clean", "yarn cache clean", "corepack enable", "set -", "true"}

// reorder tells of packages that are installed again for the sake of sources
// that they do not depend on; "" if root and what comes after it are not so.
func reorder(root *step, after []*step) string {
	sources := copied(root.source)
	if sources == nil || root.ended.GetWhy().GetReason() != slipwayv1.MissReason_MISS_REASON_CHANGED {
		return ""
	}
	for _, st := range after {
		in := installs(st.source)
		if st.stage != root.stage || in == nil || !spares(root.ended.GetWhy(), in.needs) {
			continue
		}
		took := seconds(time.Duration(st.ended.GetDurationMs()) * time.Millisecond)
		text := fmt.Sprintf("%s %s comes before %s %s, so every source change reinstalls packages (%s this time). ",
			root.label, clip(root.source, 60), st.label, clip(st.source, 60), took)
		if len(in.needs) == 0 {
			return text + fmt.Sprintf("Put %s before %s.", clip(st.source, 60), clip(root.source, 60))
		}
		return text + fmt.Sprintf("Copy %s first, then %s, then %s", strings.Join(in.needs[:in.names], " and "), clip(st.source, 60), clip(root.source, 60))
	}
	return ""
}

// spares reports whether a miss is for nothing but other files.
func spares(why *slipwayv1.Miss, files []string) bool {
	for _, c := range why.GetChanges() {
		if c.GetPart() != "file" && c.GetPart() != "mode" || slices.Contains(files, path.Base(c.GetName())) {
			return false
		}
	}
	return len(why.GetChanges()) > 0
}

// copied returns the sources of a COPY or ADD of the build context, nil of any
// other instruction.
func copied(source string) []string {
	words := strings.Fields(source)
	if len(words) < 3 || !strings.EqualFold(words[0], "COPY") && !strings.EqualFold(words[0], "ADD") {
		return nil
	}
	words = words[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "--") {
		if strings.HasPrefix(words[0], "--from=") {
			return nil
		}
		words = words[1:]
	}
	if len(words) < 2 || strings.HasPrefix(words[0], "[") || strings.HasPrefix(words[0], "<<") {
		return nil
	}
	return words[:len(words)-1]
}

// installs returns the installer that a RUN is, nil if it does anything else.
func installs(source string) *installer {
	text, ok := strings.CutPrefix(strings.Join(strings.Fields(source), " "), "RUN ")
	for ok && strings.HasPrefix(text, "--") {
		_, text, ok = strings.Cut(text, " ")
	}
	if !ok || strings.ContainsAny(text, "|<>$`([") {
		return nil
	}
	var found *installer
	for _, command := range strings.FieldsFunc(strings.ReplaceAll(text, "&&", ";"), func(r rune) bool { return r == ';' }) {
		command = strings.TrimSpace(command)
		in := installerOf(command)
		switch {
		case in != nil && (found == nil || len(found.needs) == 0):
			found = in
		case in != nil && len(in.needs) == 0:
		case in != nil:
			return nil // two at once
		case !slices.ContainsFunc(tidy, func(t string) bool { return strings.HasPrefix(command, t) }):
			return nil
		}
	}
	return found
}

func installerOf(command string) *installer {
	for i := range installers {
		in := &installers[i]
		rest, ok := strings.CutPrefix(command, in.command)
		if !ok || rest != "" && rest[0] != ' ' {
			continue
		}
		if in.needs == nil || onlyFlags(rest) {
			return in
		}
	}
	return pip(command)
}

func onlyFlags(rest string) bool {
	return !slices.ContainsFunc(strings.Fields(rest), func(w string) bool {
		return !strings.HasPrefix(w, "-") || w == "-g" || w == "--global" || strings.HasPrefix(w, "--prefix")
	})
}

// pip reads which list of requirements a command installs.
func pip(command string) *installer {
	words := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(command, "python3 -m "), "python -m "))
	if len(words) < 3 || words[0] != "pip" && words[0] != "pip3" || words[1] != "install" {
		return nil
	}
	in := &installer{command: command}
	for i := 2; i < len(words); i++ {
		switch w := words[i]; {
		case (w == "-r" || w == "--requirement") && i+1 < len(words):
			i++
			in.needs = append(in.needs, path.Base(words[i]))
		case strings.HasPrefix(w, "-r"):
			in.needs = append(in.needs, path.Base(w[2:]))
		case w == "-e" || w == "--editable" || !strings.HasPrefix(w, "-"):
			return nil // a project, or packages by name with options that take values
		}
	}
	in.names = len(in.needs)
	if in.names == 0 {
		return nil
	}
	return in
}
