package tokens_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

func adminValue(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(b), "\n")
}

func TestAdminFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	a, err := tokens.AdminFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("file: %v, %v; want mode 0600", fi.Mode(), err)
	}
	value := adminValue(t, path)
	if typ, err := tokens.Check(value); typ != tokens.TypeAdmin || err != nil {
		t.Errorf("Check = %q, %v", typ, err)
	}
	if s := fmt.Sprintf("%+v %#v", a, a); strings.Contains(s, value[3:20]) {
		t.Errorf("the value is kept: %s", s)
	}
	again, err := tokens.AdminFile(path)
	if err != nil || adminValue(t, path) != value {
		t.Fatalf("second start: %v, %q; want %q", err, adminValue(t, path), value)
	}
	for _, a := range []*tokens.Admin{a, again} {
		p, err := a.Authenticate(t.Context(), value)
		if err != nil || p.Org != "default" || p.Type != "admin" || p.App != "" || p.Expired(time.Now().AddDate(100, 0, 0)) {
			t.Errorf("Authenticate = %+v, %v", p, err)
		}
		for _, typ := range tokens.Types() {
			for _, s := range tokens.Scopes(typ) {
				if err := tokens.Allow(p, s, "shop"); err != nil {
					t.Error(err)
				}
			}
		}
		for _, wrong := range []string{"", value[:len(value)-1], value + "\n", strings.ToUpper(value), tokens.New("sa_")} {
			if p, err := a.Authenticate(t.Context(), wrong); !errors.Is(err, tokens.ErrUnauthorized) || p.ID != "" || len(p.Scopes) > 0 {
				t.Errorf("Authenticate(%q) = %+v, %v", wrong, p, err)
			}
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

func TestAdminFileRefuses(t *testing.T) {
	value := tokens.New("sa_")
	for _, tc := range []struct {
		name    string
		content string
		mode    os.FileMode
		want    error
		text    string
	}{
		{"others read", value, 0o604, tokens.ErrExposed, "chmod 600"},
		{"group reads", value, 0o640, tokens.ErrExposed, "mode 0640"},
		{"others write", value, 0o602, tokens.ErrExposed, "mode 0602"},
		{"empty", "", 0o600, tokens.ErrMalformed, "remove it to get a new token"},
		{"damaged", value[:30], 0o600, tokens.ErrMalformed, "admin.token"},
		{"huge", strings.Repeat(value, 10_000), 0o600, tokens.ErrMalformed, "admin.token"},
		{"a deploy token", tokens.New("sd_"), 0o600, nil, "it holds a deploy token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "admin.token")
			if err := errors.Join(os.WriteFile(path, []byte(tc.content), 0o600), os.Chmod(path, tc.mode)); err != nil {
				t.Fatal(err)
			}
			_, err := tokens.AdminFile(path)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("AdminFile: %v; want %v with %q", err, tc.want, tc.text)
			}
			if strings.Contains(err.Error(), value[3:20]) {
				t.Errorf("the error shows the value: %v", err)
			}
			if got := adminValue(t, path); got != tc.content {
				t.Errorf("the file was changed to %q", got)
			}
		})
	}
	if _, err := tokens.AdminFile(t.TempDir()); err == nil {
		t.Error("read a directory")
	}
	if _, err := tokens.AdminFile(filepath.Join(t.TempDir(), "absent", "admin.token")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
}

func TestAdminFileAcceptsWhatAnEditorLeaves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	value := tokens.New("sa_")
	if err := os.WriteFile(path, []byte("\n "+value+"\r\n\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	a, err := tokens.AdminFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(t.Context(), value); err != nil {
		t.Error(err)
	}
}

func TestAdminFileMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.token")
	admins := make([]*tokens.Admin, 16)
	var wg sync.WaitGroup
	for i := range admins {
		wg.Go(func() {
			var err error
			if admins[i], err = tokens.AdminFile(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	value := adminValue(t, path)
	if slices.ContainsFunc(admins, func(a *tokens.Admin) bool {
		_, err := a.Authenticate(t.Context(), value)
		return err != nil
	}) {
		t.Error("daemons that start at once have different tokens")
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}
