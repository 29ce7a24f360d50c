package buildkit

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/util/gitutil"
)

func TestWordMayNameSSH(t *testing.T) {
	for word, want := range map[string]bool{
		"file": false, "./a b": false, "https://h/x.git": false, "https://$H/x.git": false, "HTTPS://${H}": false, "http://$H": false,
		"target/$JAR": false, "./$X": false, "/$X": false, "a.$X": false, "*$X": false, "github.com/$X": false,
		"ssh://git@h/x": true, "SSH://h/x": true, "git@h:x": true, "git://h/x": true,
		"$X": true, "${X}": true, "ssh://$H/x": true, "ssh:$X": true, "ss$X": true, "git@$H": true, "git$X": true, "a_b-c$X": true,
		`"s"sh://h`: true, `'s'sh://h`: true, `s\sh://h`: true, "s`sh://h": true, "htt$X": true, "http:$X": true, "http:/$X": true, "https:/$X": true,
	} {
		if got := wordMayNameSSH(word); got != want {
			t.Errorf("%s: %v", word, got)
		}
	}
}

func TestMayNameSSH(t *testing.T) {
	for file, want := range map[string]bool{
		"FROM a\nADD ssh://h/x /x":                       true,
		"FROM a\nARG X\nADD a $X /x/":                    true,
		"FROM a\nONBUILD ADD $X /x":                      true,
		"FROM a\nONBUILD RUN $X":                         false,
		"FROM a\nADD [\"$X\", \"/x\"]":                   true,
		"FROM a\nADD a https://$X /x/\nRUN ssh $X":       false,
		"FROM a\nCOPY $X /x":                             false,
		"FROM a\nADD <<EOF /x\nADD ssh://h/x /x\nEOF\n":  false,
		"FROM a\nADD --chown=$U a /x":                    false,
		"FROM a\nA\\\nDD \\\nssh://h/x /x":               true,
		"# escape=`\nFROM a\nADD `\n$X /x":               true,
		"FROM a\nFROM b\nadd $X /x":                      true,
		"\xef\xbb\xbf# syntax=x\nFROM a\nADD ssh://h /x": true,
		"ADD": false, "": false,
	} {
		if got := mayNameSSH(strings.NewReader(file)); got != want {
			t.Errorf("%q: %v", file, got)
		}
	}
}

// Triggers come with images: those that a build begins with, and those that
// other builds of a bake hand to it.
func TestTriggersThatMayNameSSH(t *testing.T) {
	config := func(triggers ...string) []byte {
		raw, err := json.Marshal(map[string]any{"config": map[string]any{"OnBuild": triggers}})
		fatal(t, err)
		return raw
	}
	input := func(key string, config []byte) map[string]string {
		raw, err := json.Marshal(map[string][]byte{key: config})
		fatal(t, err)
		return map[string]string{"input-metadata:base": string(raw)}
	}
	for _, tc := range []struct {
		name   string
		config []byte
		apart  bool
	}{
		{"none", config(), false}, {"nothing", nil, false}, {"harmless", config("RUN true", "ADD a /a"), false},
		{"second", config("RUN true", "ADD $X /a"), true}, {"no JSON", []byte("{"), true},
		{"two in one", config("RUN true\nADD ssh://h/x /x"), true}, {"no instruction", config("WHAT"), true},
	} {
		if err := checkConfig(tc.config); errors.Is(err, errApart) != tc.apart {
			t.Errorf("%s: %v", tc.name, err)
		}
		for _, key := range []string{"containerimage.config", "containerimage.config/linux/amd64"} {
			if err := checkInputs(input(key, tc.config)); errors.Is(err, errApart) != tc.apart {
				t.Errorf("%s as %s: %v", tc.name, key, err)
			}
		}
	}
	if err := checkInputs(map[string]string{"input-metadata:base": "?"}); !errors.Is(err, errApart) {
		t.Errorf("no JSON: %v", err)
	}
	if err := checkInputs(map[string]string{"build-arg:X": "?"}); err != nil {
		t.Error(err)
	}
}

// Whatever BuildKit takes for an SSH address, with the quotes and variables
// around it that a Dockerfile may have, is known for one.
func FuzzWordMayNameSSH(f *testing.F) {
	for _, s := range []string{"ssh://h/x", "git@h:x", "SSH://h", "a/ssh://h", "https://h", "ssh:/x", "_-@h:x"} {
		f.Add(s, 0)
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, address string, from int) {
		ref, _, err := dfgitutil.ParseGitRef(address)
		if err != nil || ref.IndistinguishableFromLocal {
			return
		}
		u, err := gitutil.ParseURL(ref.Remote)
		if err != nil || u.Scheme != gitutil.SSHProtocol {
			return
		}
		from = max(0, min(from, len(address)))
		if !wordMayNameSSH(address) || !wordMayNameSSH(address[:from]+"$X") || !wordMayNameSSH(address[:from]+`\`+address[from:]) {
			t.Errorf("%q at %d is an address", address, from)
		}
	})
}
