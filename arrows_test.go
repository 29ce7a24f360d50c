package slipway_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/slipwayhq/slipway/"

// arrows says what of ours a package and those below it may import. The longest
// entry that holds a package decides; its own subpackages are always allowed.
var arrows = map[string][]string{
	"limits":           {},
	"pushd":            {},
	"tokens":           {},
	"tokens/oidc":      {"tokens"},
	"fleet":            {},
	"proto":            {},
	"registry":         {},
	"sqldb":            {},
	"unixsocket":       {},
	"layercache":       {"limits"},
	"buildctx":         {"proto"},
	"sshagent":         {"proto"},
	"fleet/fleettest":  {"fleet"},
	"pushd/targettest": {"pushd"},
	"tokens/store":     {"sqldb", "tokens"},
	"tokens/storetest": {"tokens"},
	"pushd/compress":   {},

	// builder joins the stages; what a pipeline stands on does not know it.
	"builder":          {"buildctx", "layercache", "limits", "pushd", "proto"},
	"builder/failure":  {"limits"},
	"builder/rootfs":   {},
	"builder/thread":   {},
	"builder/sandbox":  {"builder/thread"},
	"builder/gitfetch": {"builder/failure", "builder/rootfs", "builder/thread"},
	"builder/layer":    {"builder/failure", "builder/rootfs", "layercache", "limits", "pushd"},
	"builder/base":     {"builder/failure", "builder/layer", "layercache", "limits"},
	"builder/classic":  {"builder", "buildctx", "layercache", "limits", "proto"},
	"builder/shell":    {"builder", "layercache", "limits"},
	"builder/buildkit": {"builder", "buildctx", "layercache", "limits", "proto", "pushd"},
	"builder/prebuilt": {"builder", "buildctx", "layercache", "limits", "proto", "pushd"},

	"builder/stepcache":        {"layercache"},
	"builder/classic/casetest": {},

	"builder/buildkit/executor": {"builder/sandbox"},

	"server":         {"builder", "fleet", "layercache", "sqldb", "tokens", "proto", "buildctx", "limits", "sshagent"},
	"server/records": {"sqldb"},

	"web": {"proto"},

	"cmd/slipwayd": {"builder", "buildctx", "fleet", "layercache", "limits", "proto", "pushd", "registry", "server", "sqldb", "tokens", "unixsocket", "web"},
	"cmd/slipway":  {"buildctx", "proto", "sshagent", "unixsocket"},
	"examples":     {},
}

// everywhere is what any package may import.
var everywhere = []string{"rescue"}

func TestArrows(t *testing.T) {
	found := false
	for dir, pkg := range packages(t) {
		allowed, owner := allowedFor(dir)
		for _, file := range pkg {
			for _, spec := range file.Imports {
				full, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				name, ours := strings.CutPrefix(full, module)
				if !ours {
					continue
				}
				found = true
				ownSub := owner != "" && within(name, owner)
				if !ownSub && !slices.Contains(everywhere, name) && !slices.ContainsFunc(allowed, func(a string) bool { return within(name, a) }) {
					t.Errorf("%s may not import %s; it may import %v of ours", dir, name, allowed)
				}
			}
		}
	}
	if !found {
		t.Error("no package imports another: this test does not see them")
	}
}

// TestServerHasNoPipeline keeps what only cmd may join out of reach of the
// packages that an entry of arrows names as a whole.
func TestServerHasNoPipeline(t *testing.T) {
	all := packages(t)
	for dir, forbidden := range map[string][]string{
		"server":  {"builder/classic", "builder/buildkit", "builder/prebuilt", "builder/sandbox", "builder/shell", "builder/layer", "builder/rootfs", "builder/base"},
		"builder": {"builder/classic", "builder/buildkit", "builder/prebuilt", "builder/sandbox", "builder/shell", "server", "cmd"},
	} {
		for _, file := range all[dir] {
			for _, spec := range file.Imports {
				for _, f := range forbidden {
					if within(strings.TrimPrefix(strings.Trim(spec.Path.Value, `"`), module), f) {
						t.Errorf("%s imports %s", dir, f)
					}
				}
			}
		}
	}
}

// TestState refuses what makes a package more than its functions and types:
// init functions, exported variables other than errors, and variables that
// are assigned to after they were declared.
func TestState(t *testing.T) {
	for dir, pkg := range packages(t) {
		if within(dir, "proto") {
			continue // generated
		}
		uses := resolve(t, dir, pkg)
		for _, file := range pkg {
			for _, decl := range file.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.Name == "init" {
						t.Errorf("%s has an init function", where(d.Pos()))
					}
					assigned(d, uses, func(id *ast.Ident) {
						t.Errorf("%s: package variable %s is assigned to", where(id.Pos()), id.Name)
					})
				case *ast.GenDecl:
					exportedVars(d, func(id *ast.Ident) {
						t.Errorf("%s: exported package variable %s is not an error", where(id.Pos()), id.Name)
					})
				}
			}
		}
	}
}

func exportedVars(d *ast.GenDecl, report func(*ast.Ident)) {
	if d.Tok != token.VAR {
		return
	}
	for _, spec := range d.Specs {
		for _, id := range spec.(*ast.ValueSpec).Names {
			if id.IsExported() && !strings.HasPrefix(id.Name, "Err") {
				report(id)
			}
		}
	}
}

// assigned reports the package variables that a function assigns to.
func assigned(f *ast.FuncDecl, uses map[*ast.Ident]types.Object, report func(*ast.Ident)) {
	check := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
				continue
			case *ast.SelectorExpr:
				e = x.X
				continue
			case *ast.StarExpr:
				e = x.X
				continue
			case *ast.Ident:
				if v, ok := uses[x].(*types.Var); ok && v.Pkg() != nil && v.Parent() == v.Pkg().Scope() {
					report(x)
				}
			}
			return
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.AssignStmt:
			for _, e := range s.Lhs {
				check(e)
			}
		case *ast.IncDecStmt:
			check(s.X)
		}
		return true
	})
}

// resolve says which declaration each name of a package stands for. Imports
// are not looked at: what comes from there stays unknown.
func resolve(t *testing.T, dir string, files []*ast.File) map[*ast.Ident]types.Object {
	t.Helper()
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: nothing{}, Error: func(error) {}}
	config.Check(module+dir, fset, files, info) // errors are expected
	return info.Uses
}

// nothing imports every package as an empty one.
type nothing struct{}

func (nothing) Import(p string) (*types.Package, error) {
	pkg := types.NewPackage(p, path.Base(p))
	pkg.MarkComplete()
	return pkg, nil
}

var fset = token.NewFileSet()

func where(p token.Pos) string { return fset.Position(p).String() }

// within reports whether a package is p or below it.
func within(name, p string) bool { return name == p || strings.HasPrefix(name, p+"/") }

// allowedFor returns the entry of arrows for a package.
func allowedFor(dir string) (allowed []string, owner string) {
	for at := dir; at != "." && at != ""; at = path.Dir(at) {
		if a, ok := arrows[at]; ok {
			return a, at
		}
	}
	return nil, ""
}

// packages parses the files that go into programs, tests left out, by
// directory. Nested modules are not part of it.
func packages(t *testing.T) map[string][]*ast.File {
	t.Helper()
	all := map[string][]*ast.File{}
	err := filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if p != "." && (strings.HasPrefix(e.Name(), ".") || e.Name() == "bin" || isModule(p)) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(p) != ".go" || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		dir := filepath.ToSlash(filepath.Dir(p))
		all[dir] = append(all[dir], file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found packages %v only", slices.Sorted(maps.Keys(all)))
	}
	return all
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}
