package classic_test

import (
	"testing"

	"github.com/slipwayhq/slipway/builder/failure"
)

// What other builders clone is refused, not downloaded as a page.
func TestAddOfGit(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	w.write(dir, map[string]string{"app.git": "a file", "a@b": "another"})
	for _, tc := range []struct{ source, code string }{
		{"https://git.test/org/repo.git", failure.NotSupported},
		{"https://git.test/org/repo.git/", failure.NotSupported},
		{"https://git.test/org/repo.git#v1:docs", failure.NotSupported},
		{"http://git.test/org/repo.git?depth=1#v1", failure.NotSupported},
		{"https://git.test/org/repo#main", failure.NotSupported},
		{"git://git.test/org/repo", failure.NotSupported},
		{"ssh://git@git.test/org/repo", failure.NotSupported},
		{"git@git.test:org/repo.git#v1", failure.NotSupported},
		{"app.git https://git.test/org/repo.git", failure.NotSupported},
		{"$REPO", failure.NotSupported},
		{"http://127.0.0.1:1/package.whl#sha256=0123", failure.FetchFailed},
		{"http://127.0.0.1:1/repo.git.tar.gz", failure.FetchFailed},
		{"http://127.0.0.1:1/x?repo=a.git", failure.FetchFailed},
		{"app.git a@b", ""},
	} {
		o := w.build(t.Context(), request{dir: dir, dockerfile: "FROM scratch\nARG REPO=https://git.test/org/repo.git\nADD " + tc.source + " /src/"})
		if got := o.Error.GetCode(); got != tc.code {
			t.Errorf("ADD %s: %v, want %q", tc.source, o.Error, tc.code)
		}
		if e := o.Error; tc.code == failure.NotSupported && (e.GetLine() != 3 || e.GetHint() == "") {
			t.Errorf("ADD %s: line %d, hint %q", tc.source, e.GetLine(), e.GetHint())
		}
	}
}
