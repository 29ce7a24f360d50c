package registry

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseScopes(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want string // as far as this registry can use it
	}{
		{nil, "[]"},
		{[]string{""}, "[]"},
		{[]string{"repository:a/b:pull,push"}, "[a/b pull push]"},
		{[]string{" repository:a:push,pull\trepository:b:delete "}, "[a pull push][b delete]"},
		{[]string{"registry:catalog:*", "registry:catalog:search"}, "[ catalog][ catalog]"},
		{[]string{"repository:host:5000/a:pull", "repository:A:pull", "repository::pull", "repository:a:", "repository:a", "a"}, "[a ]"},
	} {
		scopes, err := parseScopes(tc.in)
		if err != nil {
			t.Errorf("%q: %v", tc.in, err)
		}
		var got strings.Builder
		for _, s := range scopes {
			if name, ok := s.repository(); ok {
				fmt.Fprintf(&got, "[%s %s]", name, strings.Join(s.wanted(), " "))
			}
		}
		if got.String() != tc.want && (tc.want != "[]" || got.Len() > 0) {
			t.Errorf("%q: %s, want %s", tc.in, got.String(), tc.want)
		}
	}
}

func FuzzParseScopes(f *testing.F) {
	f.Add("repository:a/b:pull,push registry:catalog:*", "shop")
	f.Add("repository:host:5000/a:*", "")
	f.Add("::: repository::", "a/../b")
	f.Fuzz(func(t *testing.T, text, repository string) {
		scopes, err := parseScopes([]string{text, text})
		if err != nil {
			if strings.Count(text, ":") <= maxScopes/2 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		var rebuilt []string
		for _, s := range scopes {
			name, ok := s.repository()
			if !ok && len(s.wanted()) > 0 {
				t.Fatalf("%q wants %v of nothing", s, s.wanted())
			}
			if ok && name != "" && !repositoryName.MatchString(name) {
				t.Fatalf("%q is for %q", s, name)
			}
			if ok && !covers(scopes, name, s.wanted()) {
				t.Fatalf("%q is not in %v", s, scopes)
			}
			rebuilt = append(rebuilt, s.String())
		}
		again, err := parseScopes([]string{strings.Join(rebuilt, " ")})
		if err != nil || fmt.Sprint(again) != fmt.Sprint(scopes) {
			t.Fatalf("%v reads again as %v, %v", scopes, again, err)
		}
		if covers(scopes, repository, []string{ActionPush}) && !strings.Contains(text, "repository:"+repository+":") {
			t.Fatalf("%q allows to push to %q", text, repository)
		}
	})
}
