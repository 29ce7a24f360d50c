package slipway_test

import (
	"go/ast"
	"go/parser"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestDocsComplete finds what the code has and the documentation lacks.
func TestDocsComplete(t *testing.T) {
	for _, tc := range []struct {
		doc, what string
		names     []string
		form      string // how the documentation has a name
	}{
		{"docs/errors.md", "error code", constants(t, "builder/failure/failure.go", `^[A-Z]\w+$`, "Internal", "Cancelled"), "`%`"},
		{"docs/errors.md", "error code", constants(t, "cmd/slipway/client/error.go", `^Code`, "CodeInternal", "CodeCancelled"), "`%`"},
		{"docs/operate.md", "flag", flags(t, "cmd/slipwayd/config.go"), "`--%"},
		{"docs/deploy.md", "flag", flags(t, "cmd/slipway/deployflags.go"), "--%"},
		{"docs/metrics.md", "metric", metrics(t, "server/metrics.go"), "`slipway_%`"},
	} {
		text := read(t, tc.doc)
		if len(tc.names) < 10 {
			t.Errorf("%s: found only %q to look for", tc.doc, tc.names)
		}
		for _, name := range tc.names {
			if form := strings.ReplaceAll(tc.form, "%", name); !strings.Contains(text, form) {
				t.Errorf("%s lacks the %s %s", tc.doc, tc.what, form)
			}
		}
	}
}

// TestDocsLinks follows the links between the documents.
func TestDocsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	top, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for _, doc := range append(top, below...) {
		for _, m := range link.FindAllStringSubmatch(read(t, doc), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
	if links == 0 {
		t.Error("found no links")
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func parse(t *testing.T, file string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// constants returns the strings of the const declaration that has first and
// last, of the names that pattern matches.
func constants(t *testing.T, file, pattern, first, last string) []string {
	t.Helper()
	var values []string
	for _, decl := range parse(t, file).Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		var found []string
		names := map[string]bool{}
		for _, spec := range group.Specs {
			v, ok := spec.(*ast.ValueSpec)
			if !ok || len(v.Values) != 1 || !regexp.MustCompile(pattern).MatchString(v.Names[0].Name) {
				continue
			}
			names[v.Names[0].Name] = true
			if text, ok := literal(v.Values[0]); ok {
				found = append(found, text)
			}
		}
		if names[first] && names[last] {
			values = append(values, found...)
		}
	}
	return values
}

// flags returns the names that a file registers as flags: the second argument
// of calls like f.StringVar.
func flags(t *testing.T, file string) []string {
	t.Helper()
	var names []string
	calls(parse(t, file), func(name string, args []ast.Expr) {
		if (strings.HasSuffix(name, "Var") || strings.HasSuffix(name, "VarP")) && len(args) > 3 {
			if text, ok := literal(args[1]); ok {
				names = append(names, text)
			}
		}
	})
	return names
}

// metrics returns the names of a file's metrics: first arguments of counter
// and fields called Name.
func metrics(t *testing.T, file string) []string {
	t.Helper()
	var names []string
	f := parse(t, file)
	calls(f, func(name string, args []ast.Expr) {
		if text, ok := literal(args[0]); ok && name == "counter" {
			names = append(names, text)
		}
	})
	ast.Inspect(f, func(n ast.Node) bool {
		if kv, ok := n.(*ast.KeyValueExpr); ok {
			if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "Name" {
				if text, ok := literal(kv.Value); ok {
					names = append(names, text)
				}
			}
		}
		return true
	})
	return names
}

// calls visits the calls in a file that have arguments.
func calls(f *ast.File, visit func(name string, args []ast.Expr)) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		switch fun := call.Fun.(type) {
		case *ast.Ident:
			visit(fun.Name, call.Args)
		case *ast.SelectorExpr:
			visit(fun.Sel.Name, call.Args)
		}
		return true
	})
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}
