package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

func TestSecretSpecs(t *testing.T) {
	dir := tree(t, map[string]string{"a,b": "of a file", "own": "of its own", "empty": ""})
	t.Chdir(dir)
	vars := map[string]string{"VAR": "of a variable", "npm": "of npm"}
	for spec, want := range map[string]string{
		"npm=a=b, c":                            "npm: a=b, c",
		"npm=":                                  "npm: ",
		"id=x,src=own":                          "x: of its own",
		"id=x,source=own,type=file":             "x: of its own",
		"src=own,id=x":                          "x: of its own",
		`id=x,"src=a,b"`:                        "x: of a file",
		"id=x,src=empty":                        "x: ",
		"id=x,env=VAR":                          "x: of a variable",
		"id=x,type=env,src=VAR":                 "x: of a variable",
		"type=env,id=npm":                       "npm: of npm",
		"id=npm":                                "npm: of npm",
		"id=own":                                "own: of its own",
		"id=own,type=file":                      "own: of its own",
		"src=plain value":                       "src: plain value",
		"VAR=" + strings.Repeat("x", maxSecret): "VAR: " + strings.Repeat("x", maxSecret),
	} {
		s, err := parseSecrets([]string{spec}, func(n string) string { return vars[n] })
		if err != nil {
			t.Errorf("%.40s: %v", spec, err)
			continue
		}
		id := s.ids()[0]
		value, err := s[id]()
		if got := id + ": " + string(value); err != nil || got != want {
			t.Errorf("%.40s: %.40s, %v; want %.40s", spec, got, err, want)
		}
	}
}

// A file that grew after the flag was read is refused when it is asked for.
func TestSecretThatGrows(t *testing.T) {
	file := filepath.Join(tree(t, map[string]string{"s": "short"}), "s")
	s, err := parseSecrets([]string{"id=f,src=" + file}, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, maxSecret+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s["f"](); err == nil {
		t.Error("a secret that is too long was read")
	}
}

func TestSecretSpecsThatAreRefused(t *testing.T) {
	big := strings.Repeat("x", maxSecret+1)
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n", "big": big})
	for spec, says := range map[string]string{
		"x":                                     "want NAME=VALUE",
		"=x":                                    "want NAME=VALUE",
		"id=":                                   "id is missing",
		"type=file,src=x":                       "id is missing",
		"id=x,src=a,env=b":                      "which one?",
		"id=x,type=file,env=b":                  "of type file and has env",
		"id=x,type=dir,src=a":                   `type "dir" is neither`,
		"id=x,target=/y":                        `field "target" is none of`,
		`id=x,"src=a`:                           "quote",
		"id=x,src=" + filepath.Join(dir, "-"):   "no such file",
		"id=x,src=" + dir:                       "is a directory",
		"id=x,src=" + filepath.Join(dir, "big"): "big has 512001 bytes, 512000 are allowed",
		"x=" + big:                              "x has 512001 bytes",
		"id=x,env=BIG":                          "x has 512001 bytes",
		"id=x,env=NOWHERE":                      "the environment has no NOWHERE",
		"id=nowhere":                            "the environment has no nowhere",
	} {
		c := newCLI(t, nil)
		c.vars["BIG"] = big
		c.want(2, "deploy", dir, "--build-secret", spec)
		c.sees(&c.stderr, says)
		if strings.Contains(c.stderr.String(), "xxx") {
			t.Errorf("%.40s: the secret is shown", spec)
		}
	}
	c := newCLI(t, nil)
	c.want(2, "deploy", dir, "--build-secret", "a=1", "--build-secret", "id=a,src="+filepath.Join(dir, "Dockerfile"))
	c.sees(&c.stderr, "a comes twice")
}

func TestCacheFlags(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "FROM scratch\n"})
	d := startDaemon(t, simple(succeeded()))
	c := newCLI(t, d)
	c.want(0, "deploy", dir, "--plan", "--no-cache-filter", "deps,build", "--no-cache-filter", "test", "--cache-from", "r.example/shop:cache",
		"--cache-from", "type=registry,ref=r.example/base", "--cache-to", "type=inline", "--cache-to", "r.example/a:x",
		"--cache-to", "type=registry,ref=r.example/b,mode=max", "--cache-to", "type=registry,mode=min,ref=r.example/c")
	s := d.started
	if !s.PlanOnly || strings.Join(s.NoCacheStages, " ") != "deps build test" || strings.Join(s.CacheFrom, " ") != "r.example/shop:cache r.example/base" {
		t.Errorf("start %v", s)
	}
	var to []string
	for _, e := range s.CacheTo {
		to = append(to, strings.TrimPrefix(e.Type.String(), "CACHE_EXPORT_TYPE_")+" "+e.Ref+map[bool]string{true: " all"}[e.All])
	}
	if got := strings.Join(to, "; "); got != "INLINE ; REGISTRY r.example/a:x; REGISTRY r.example/b all; REGISTRY r.example/c" {
		t.Errorf("cache to %s", got)
	}
	for args, says := range map[string]string{
		"--no-cache-filter=,":                        "want the name of a stage",
		"--cache-from=type=gha":                      `type "gha" is not supported`,
		"--cache-from=type=registry":                 "ref is missing",
		"--cache-from=":                              "want fields",
		"--cache-from=UPPER/x":                       "UPPER/x",
		"--cache-from=type=registry,ref=a,mode=max":  `field "mode" is none of type, ref`,
		"--cache-to=type=local,dest=x":               `field "dest"`,
		"--cache-to=type=local":                      `type "local" is neither inline nor registry`,
		"--cache-to=ref=r.example/x":                 `type "" is neither`,
		"--cache-to=type=registry":                   "ref is missing",
		"--cache-to=type=registry,ref=a/b,mode=most": `mode "most" is neither min nor max`,
		"--cache-to=type=inline,mode=max":            "mode=max do not go with it",
		"--cache-to=type=inline,ref=a/b":             "ref and mode=max do not go with it",
		"--plan --detach":                            "--plan",
		"--plan --image=x":                           "--plan",
		"--plan --idempotency-key=x":                 "--plan",
		"--image=x --ssh=default":                    "--ssh, --no-cache-filter",
		"--image=x --no-cache-filter=x":              "--ssh, --no-cache-filter",
		"--image=x --cache-from=x":                   "--ssh, --no-cache-filter",
		"--image=x --cache-to=type=inline":           "--ssh, --no-cache-filter",
	} {
		c := newCLI(t, nil)
		c.want(2, append([]string{"deploy", dir}, strings.Fields(args)...)...)
		c.sees(&c.stderr, says)
	}
}

func TestDeployShowsLint(t *testing.T) {
	dir := tree(t, map[string]string{"Dockerfile": "from scratch as x\n"})
	script := func(s *session) error {
		if err := s.accept(); err != nil {
			return err
		}
		w := &slipwayv1.Warning{Message: "'as' and 'FROM' keywords' casing do not match", Line: 3, Rule: "FromAsCasing", Url: "https://docs.docker.com/go/x/"}
		return s.say(plan("FROM scratch"), &slipwayv1.Event{Event: &slipwayv1.Event_Warning{Warning: w}}, end(succeeded()))
	}
	c := newCLI(t, startDaemon(t, script))
	c.want(0, "deploy", dir, "--progress", "plain")
	c.sees(&c.stderr, "! Dockerfile:3: FromAsCasing: 'as' and 'FROM' keywords' casing do not match (https://docs.docker.com/go/x/)\n")
	c = newCLI(t, startDaemon(t, script))
	c.want(0, "deploy", dir, "--json")
	for _, l := range c.lines() {
		if l["type"] == "warning" && (l["rule"] != "FromAsCasing" || l["url"] != "https://docs.docker.com/go/x/" || l["line"] != 3.0) {
			t.Errorf("warning %v", l)
		}
	}
}
