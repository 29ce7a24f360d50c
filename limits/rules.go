package limits

import "strings"

// An origin is a kind of instruction that writes files, as a bit.
type origin uint8

const (
	fromBase origin = 1 << iota
	fromContext
	fromStage
	fromRun

	anyStep = fromContext | fromStage | fromRun
)

// origin returns what kind of instruction s is; 0 for those that write little.
func (s Source) origin() origin {
	word, rest, _ := strings.Cut(strings.TrimSpace(s.Text), " ")
	switch strings.ToUpper(word) {
	case "RUN":
		return fromRun
	case "COPY", "ADD":
		for arg := range strings.FieldsSeq(rest) {
			if !strings.HasPrefix(arg, "--") {
				break
			}
			if strings.HasPrefix(strings.ToLower(arg), "--from=") {
				return fromStage
			}
		}
		return fromContext
	case "FROM":
		return fromBase
	}
	if s.Line == 0 {
		return fromBase
	}
	return 0
}

// A rule knows directories that images rarely need.
type rule struct {
	dir  string // an absolute path, or the last components of one
	with string // a name in it, without which it is something else; may be empty
	by   origin // whoever else wrote it needs it
	help help
	how  string // what help is about
}

// A help is the kind of thing that a rule tells people to do.
type help uint8

const (
	ignoreIt help = iota // how: the pattern
	cleanUp              // how: the command that ends the RUN
	optOut               // how: the command that keeps nothing
	stageIt              // how: what it is
)

// rules come in no order: what takes most is told first.
var rules = []rule{
	{dir: "node_modules", by: fromContext, help: ignoreIt, how: "**/node_modules"},
	{dir: ".git", by: fromContext, help: ignoreIt, how: "**/.git"},
	{dir: ".hg", by: fromContext, help: ignoreIt, how: "**/.hg"},
	{dir: ".svn", by: fromContext, help: ignoreIt, how: "**/.svn"},
	{dir: ".venv", by: fromContext, help: ignoreIt, how: "**/.venv"},
	{dir: "venv", with: "pyvenv.cfg", by: fromContext, help: ignoreIt, how: "**/venv"},
	{dir: "__pycache__", by: fromContext, help: ignoreIt, how: "**/__pycache__"},
	{dir: ".tox", by: fromContext, help: ignoreIt, how: "**/.tox"},
	{dir: ".cache", by: fromContext, help: ignoreIt, how: "**/.cache"},
	{dir: ".next/cache", by: fromContext, help: ignoreIt, how: "**/.next/cache"},
	{dir: ".gradle", by: fromContext, help: ignoreIt, how: "**/.gradle"},
	{dir: ".terraform", by: fromContext, help: ignoreIt, how: "**/.terraform"},
	{dir: "target", with: "CACHEDIR.TAG", by: fromContext, help: ignoreIt, how: "**/target"},
	{dir: "target", with: "debug", by: fromContext, help: ignoreIt, how: "**/target"},
	{dir: "target", with: "classes", by: fromContext, help: ignoreIt, how: "**/target"},

	{dir: "/var/lib/apt/lists", by: fromRun, help: cleanUp, how: "rm -rf /var/lib/apt/lists/*"},
	{dir: "/var/cache/apt", by: fromRun, help: cleanUp, how: "apt-get clean"},
	{dir: "/var/cache/dnf", by: fromRun, help: cleanUp, how: "dnf clean all"},
	{dir: "/var/cache/libdnf5", by: fromRun, help: cleanUp, how: "dnf clean all"},
	{dir: "/var/cache/yum", by: fromRun, help: cleanUp, how: "yum clean all"},
	{dir: "/var/cache/zypp", by: fromRun, help: cleanUp, how: "zypper clean --all"},
	{dir: ".npm/_cacache", by: fromRun, help: cleanUp, how: "npm cache clean --force"},
	{dir: ".cache/yarn", by: fromRun, help: cleanUp, how: "yarn cache clean"},
	{dir: ".yarn/berry/cache", by: fromRun, help: cleanUp, how: "yarn cache clean --all"},
	{dir: ".local/share/pnpm/store", by: fromRun, help: cleanUp, how: "rm -rf ~/.local/share/pnpm/store"},
	{dir: ".cache/composer", by: fromRun, help: cleanUp, how: "composer clear-cache"},
	{dir: "conda/pkgs", by: fromRun, help: cleanUp, how: "conda clean --all --yes"},

	{dir: "/var/cache/apk", by: fromRun, help: optOut, how: "apk add --no-cache"},
	{dir: ".cache/pip", by: fromRun, help: optOut, how: "pip install --no-cache-dir"},
	{dir: ".cache/uv", by: fromRun, help: optOut, how: "uv --no-cache"},
	{dir: ".cache/pypoetry", by: fromRun, help: optOut, how: "poetry install --no-cache"},

	{dir: ".cache/go-build", by: anyStep, help: stageIt, how: "build caches"},
	{dir: "go/pkg/mod", by: anyStep, help: stageIt, how: "build caches"},
	{dir: ".m2/repository", by: anyStep, help: stageIt, how: "build caches"},
	{dir: ".gradle/caches", by: fromStage | fromRun, help: stageIt, how: "build caches"},
	{dir: ".cargo/registry", by: anyStep, help: stageIt, how: "build caches"},
	{dir: "/usr/local/cargo/registry", by: anyStep, help: stageIt, how: "build caches"},
	{dir: ".nuget/packages", by: anyStep, help: stageIt, how: "build caches"},
	{dir: "target", with: "CACHEDIR.TAG", by: fromRun, help: stageIt, how: "build caches"},

	{dir: "/usr/local/go", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "/usr/lib/gcc", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "/usr/libexec/gcc", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "/usr/local/rustup", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: ".rustup", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "/usr/share/maven", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "/opt/gradle", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "/usr/share/dotnet/sdk", by: fromBase | anyStep, help: stageIt, how: "build tools"},
	{dir: "jmods", by: fromBase | anyStep, help: stageIt, how: "build tools"},
}

// rulesByName returns the rules for each name of a directory.
func rulesByName() map[string][]*rule {
	m := map[string][]*rule{}
	for i := range rules {
		_, name := split(rules[i].dir)
		m[name] = append(m[name], &rules[i])
	}
	return m
}

// fits reports whether a directory's path is one of r's.
func (r *rule) fits(path string) bool {
	return path == r.dir || r.dir[0] != '/' && strings.HasSuffix(path, "/"+r.dir)
}
