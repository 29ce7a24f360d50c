package classic_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// TestHistory holds each instruction to the words of history and to the config
// that Docker's classic builder writes.
func TestHistory(t *testing.T) {
	w := newWorld(t)
	const sh, fs = "/bin/sh -c #(nop)  ", "/bin/sh -c #(nop) "
	for _, tc := range []struct {
		name, dockerfile string
		args             map[string]string
		history          []string // of the lines after the base; "!" has no layer, "@x" is by x
		config           string   // what it adds to the config, as JSON
		err              string   // the whole message
	}{
		{
			name: "ENV", dockerfile: "FROM scratch\nENV a=1 b=2\nENV a=$b b=$a c=\nENV k rest  of $a line",
			history: []string{"!" + sh + "ENV a=1 b=2", "!" + sh + "ENV a=2 b=1 c=", "!" + sh + "ENV k=rest  of 2 line"},
			config:  `{"Env":["a=2","b=1","c=","k=rest  of 2 line"]}`,
		},
		{
			name: "ENV over the base's", dockerfile: "FROM fid/base:1\nENV PATH=/x:$PATH Q='a b' R=\"$Q$PATH\"",
			history: []string{"!" + sh + "ENV PATH=/x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin Q=a b R=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		{
			name: "CMD", dockerfile: "FROM scratch\nCMD a \"$b\"\nCMD [\"x\", \"y z\", \"\\\"q\"]\nCMD ['x']",
			history: []string{"!" + sh + `CMD ["/bin/sh" "-c" "a \"$b\""]`, "!" + sh + `CMD ["x" "y z" "\"q"]`, "!" + sh + `CMD ["/bin/sh" "-c" "['x']"]`},
			config:  `{"Cmd":["/bin/sh","-c","['x']"]}`,
		},
		{
			name: "CMD of nothing is unset", dockerfile: "FROM fid/base:1\nCMD []\nENTRYPOINT []",
			history: []string{"!" + sh + "CMD []", "!" + sh + "ENTRYPOINT []"}, config: `{}`,
		},
		{
			name: "CMD without words is the shell, and not counted as set", dockerfile: "FROM scratch\nCMD\nENTRYPOINT",
			history: []string{"!" + sh + `CMD ["/bin/sh" "-c"]`, "!" + sh + "ENTRYPOINT []"}, config: `{}`,
		},
		{
			name: "ENTRYPOINT clears an inherited CMD", dockerfile: "FROM fid/base:1\nCMD []\nENTRYPOINT [\"e\"]",
			history: []string{"!" + sh + "CMD []", "!" + sh + `ENTRYPOINT ["e"]`}, config: `{"Entrypoint":["e"]}`,
		},
		{
			name: "but not the stage's own", dockerfile: "FROM scratch\nCMD c\nENTRYPOINT e",
			history: []string{"!" + sh + `CMD ["/bin/sh" "-c" "c"]`, "!" + sh + `ENTRYPOINT ["/bin/sh" "-c" "e"]`},
			config:  `{"Entrypoint":["/bin/sh","-c","e"],"Cmd":["/bin/sh","-c","c"]}`,
		},
		{
			name: "SHELL", dockerfile: "FROM scratch\nSHELL [\"/bin/ash\", \"-e\", \"-c\"]\nENV A=b\nWORKDIR /w\nCMD x",
			history: []string{"!/bin/ash -e -c #(nop)  SHELL [/bin/ash -e -c]", "!/bin/ash -e -c #(nop)  ENV A=b", "/bin/ash -e -c #(nop) WORKDIR /w", `!/bin/ash -e -c #(nop)  CMD ["/bin/ash" "-e" "-c" "x"]`},
			config:  `{"Env":["A=b"],"Cmd":["/bin/ash","-e","-c","x"],"WorkingDir":"/w","Shell":["/bin/ash","-e","-c"]}`,
		},
		{
			name: "MAINTAINER", dockerfile: "FROM scratch AS a\nENV A=b\nMAINTAINER Jo  <j@x>\nENV C=d\nFROM a\nENV E=f",
			history: []string{"!" + sh + "ENV A=b", "!@Jo  <j@x>@" + sh + "MAINTAINER Jo  <j@x>", "!@Jo  <j@x>@" + sh + "ENV C=d", "!" + sh + "ENV E=f"},
		},
		{
			name: "VOLUME", dockerfile: "FROM scratch\nENV v=/c\nVOLUME /a  /b\nVOLUME [\"/a b\", \"$v\"]",
			history: []string{"!" + sh + "ENV v=/c", "!" + sh + "VOLUME [/a /b]", "!" + sh + "VOLUME [/a b /c]"},
			config:  `{"Env":["v=/c"],"Volumes":{"/a":{},"/a b":{},"/b":{},"/c":{}}}`,
		},
		{name: "VOLUME on a file", dockerfile: "FROM fid/base:1\nRUN true\nVOLUME /srv /new /opt/escape\nENV A=b", err: "cannot mount volume over existing file, file exists /etc/passwd"},
		{
			name: "VOLUME on a directory", dockerfile: "FROM fid/base:1\nVOLUME /srv/link\nRUN touch /srv/data/lost && test -f /srv/link/keep.txt", history: []string{"!" + sh + "VOLUME [/srv/link]", "!/bin/sh -c touch /srv/data/lost && test -f /srv/link/keep.txt"},
		},
		{name: "VOLUME of nothing", dockerfile: "FROM scratch\nVOLUME $no", err: "VOLUME specified can not be an empty string"},
		{
			name: "EXPOSE", dockerfile: "FROM scratch\nENV p=\"9 8/udp\"\nEXPOSE $p 7-8/TCP\nEXPOSE $no",
			history: []string{"!" + sh + "ENV p=9 8/udp", "!" + sh + "EXPOSE 9 8/udp 7-8/TCP", "!" + sh + "EXPOSE "},
			config:  `{"ExposedPorts":{"7/tcp":{},"8/tcp":{},"8/udp":{},"9/tcp":{}},"Env":["p=9 8/udp"]}`,
		},
		{
			name: "USER", dockerfile: "FROM scratch\nARG u=x:y\nUSER $u\nUSER $no", history: []string{"!" + sh + "ARG u=x:y", "!" + sh + "USER x:y", "!" + sh + "USER "}, config: `{}`,
		},
		{
			name: "STOPSIGNAL", dockerfile: "FROM scratch\nENV s=9\nSTOPSIGNAL $s", history: []string{"!" + sh + "ENV s=9", "!" + sh + "STOPSIGNAL 9"}, config: `{"Env":["s=9"],"StopSignal":"9"}`,
		},
		{
			name: "LABEL", dockerfile: "FROM scratch\nENV x=1\nLABEL a=$x \"b c\"=\"d e\" f=\nLABEL legacy of words",
			history: []string{"!" + sh + "ENV x=1", "!" + sh + "LABEL a=1 b c=d e f=", "!" + sh + "LABEL legacy=of words"},
			config:  `{"Env":["x=1"],"Labels":{"a":"1","b c":"d e","f":"","legacy":"of words"}}`,
		},
		{
			name: "ONBUILD", dockerfile: "FROM scratch\nENV x=1\nONBUILD RUN  echo $x\nonbuild copy a b", history: []string{"!" + sh + "ENV x=1", "!" + sh + "ONBUILD RUN  echo $x", "!" + sh + "ONBUILD copy a b"},
			config: `{"Env":["x=1"],"OnBuild":["RUN  echo $x","copy a b"]}`,
		},
		{
			name: "ARG", dockerfile: "FROM scratch\nARG a=1 b\nARG c=$a\nENV d=$a$b$c", args: map[string]string{"b": "2"},
			history: []string{"!" + sh + "ARG a=1 b", "!" + sh + "ARG c=1", "!" + sh + "ENV d=121"}, config: `{"Env":["d=121"]}`,
		},
		{
			name: "ARG sees what was before its line", dockerfile: "ARG a=1 b=[$a]\nARG c=[$a]\nFROM scratch\nARG b\nARG c\nARG d=2 e=[$d]\nLABEL l=$b$c$e",
			history: []string{"!" + sh + "ARG b", "!" + sh + "ARG c", "!" + sh + "ARG d=2 e=[]", "!" + sh + "LABEL l=[][1][]"},
		},
		{
			name: "ENV hides ARG", dockerfile: "FROM scratch\nENV a=env\nARG a=def\nLABEL l=$a", args: map[string]string{"a": "given"},
			history: []string{"!" + sh + "ENV a=env", "!" + sh + "ARG a=def", "!" + sh + "LABEL l=env"},
		},
		{
			name: "ARG again without a value", dockerfile: "FROM scratch\nARG a=1\nARG a\nLABEL l=[$a]", history: []string{"!" + sh + "ARG a=1", "!" + sh + "ARG a", "!" + sh + "LABEL l=[]"},
		},
		{
			name: "WORKDIR", dockerfile: "FROM fid/base:1\nWORKDIR a/../srv\nWORKDIR data/\nWORKDIR .", history: []string{"!" + fs + "WORKDIR /srv", "!" + fs + "WORKDIR /srv/data", "!" + fs + "WORKDIR /srv/data"},
		},
		{name: "WORKDIR on a file", dockerfile: "FROM fid/base:1\nWORKDIR /opt/escape", err: "Cannot mkdir: /opt/escape is not a directory"},
		{name: "WORKDIR below a file", dockerfile: "FROM fid/base:1\nWORKDIR /etc/passwd/x", err: "mkdir /etc/passwd: not a directory"},
		{
			name: "RUN", dockerfile: "FROM fid/base:1\nRUN echo one &&   \\\n  echo two\nRUN [\"echo\", \"a b\"]\nRUN ['x'] || true\nSHELL [\"/bin/ash\",\"-c\"]\nRUN x=1",
			history: []string{"!/bin/sh -c echo one &&     echo two", "!echo a b", "!/bin/sh -c ['x'] || true", "!/bin/ash -c #(nop)  SHELL [/bin/ash -c]", "!/bin/ash -c x=1"},
		},
		{
			name: "RUN with arguments", dockerfile: "FROM fid/base:1\nARG z=1 a=2\nRUN true\nRUN [\"true\"]\nENV z=e\nRUN true",
			history: []string{"!" + sh + "ARG z=1 a=2", "!|2 a=2 z=1 /bin/sh -c true", "!|2 a=2 z=1 true", "!" + sh + "ENV z=e", "!|1 a=2 /bin/sh -c true"},
		},
		{
			name: "RUN with a proxy", dockerfile: "FROM fid/base:1\nRUN true\nARG HTTP_PROXY\nRUN true", args: map[string]string{"HTTP_PROXY": "p"},
			history: []string{"!|0 /bin/sh -c true", "!" + sh + "ARG HTTP_PROXY", "!|1 HTTP_PROXY=p /bin/sh -c true"},
		},
		{name: "RUN of nothing", dockerfile: "FROM fid/base:1\nCMD [\"touch\", \"/x\"]\nRUN []\nENTRYPOINT [\"/bin/true\"]\nRUN []",
			history: []string{"!" + sh + `CMD ["touch" "/x"]`, "", "!" + sh + `ENTRYPOINT ["/bin/true"]`, "!"}},
		{
			name: "ONBUILD in a child", dockerfile: "FROM scratch AS one\nENV x=1\nONBUILD ENV a=$x\nONBUILD ARG b\nFROM one AS two\nENV x=$a$b\nFROM two\nENV y=$x", args: map[string]string{"b": "2"},
			history: []string{"!" + sh + "ENV x=1", "!" + sh + "ONBUILD ENV a=$x", "!" + sh + "ONBUILD ARG b", "!" + sh + "ENV a=1", "!" + sh + "ARG b", "!" + sh + "ENV x=12", "!" + sh + "ENV y=12"},
			config:  `{"Env":["x=12","a=1","y=12"]}`,
		},
		{
			name: "only metadata over nothing", dockerfile: "FROM scratch\nLABEL a=b", history: []string{"!" + sh + "LABEL a=b"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.on(t)
			o := w.build(t.Context(), request{org: "history", dockerfile: tc.dockerfile, start: &slipwayv1.Start{BuildArgs: tc.args}})
			if tc.err != "" {
				if o.Error == nil || o.Error.Message != tc.err {
					t.Errorf("error %v, want %q", o.Error, tc.err)
				}
				return
			}
			img := o.pull()
			if got := wrote(img); !slices.Equal(got, tc.history) {
				t.Errorf("history\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.history, "\n"))
			}
			if tc.config != "" {
				wantConfig(t, img, tc.config)
			}
		})
	}
}

// wrote is the image's history, in a short form, without that of fid/base.
func wrote(img *image) []string {
	var out []string
	for _, h := range img.config.History {
		if h.Comment != "" {
			continue
		}
		text := h.CreatedBy
		if h.Author != "" {
			text = "@" + h.Author + "@" + text
		}
		if h.EmptyLayer {
			text = "!" + text
		}
		out = append(out, text)
	}
	return out
}

// wantConfig compares the config, but for the default PATH.
func wantConfig(t *testing.T, img *image, want string) {
	t.Helper()
	c := img.config.Config
	c.Env = slices.DeleteFunc(slices.Clone(c.Env), func(kv string) bool { return strings.HasPrefix(kv, "PATH=") })
	if len(c.Env) == 0 {
		c.Env = nil
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != want {
		t.Errorf("config %s\nwant   %s", raw, want)
	}
}
