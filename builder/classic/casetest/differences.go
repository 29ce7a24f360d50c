package casetest

// A difference is one that Slipway has on purpose.
type difference struct {
	why string

	skip []string         // sources of steps that are not there
	more map[int][]string // by step of the case: sources of steps that come in addition
	errs map[int]string   // by step of the case: the message instead, "" for none
	miss map[int]string   // by step: a source that is cached instead, or not
	rc   map[int]int

	config func(want map[string]any) // rewrites what is expected
	node   func(want *Node)
}

var differences = map[string][]difference{
	"02-stages-by-name-and-index": {{
		why:  "a stage that the target does not need is not built",
		skip: []string{"FROM fid/base:1 as unused", "RUN echo side-effect > /unused.txt"},
	}},
	"04-unneeded-stage-fails": {{
		why:  "a stage that the target does not need is not built, so that it cannot fail",
		rc:   map[int]int{0: 0},
		skip: []string{"FROM fid/base:1 AS broken", "RUN echo before; exit 3"},
		more: map[int][]string{0: {"FROM fid/base:1", "RUN echo never > /n"}},
		errs: map[int]string{0: ""},
	}},
	"12-file-dir-conflicts": {{
		why: "the engine's own paths are left out of messages",
		errs: map[int]string{
			0: "COPY failed: mkdir /plain: not a directory",
			1: "COPY failed: mkdir /plain: not a directory",
			2: "COPY failed: mkdir /plain: not a directory",
		},
	}},
	"14-chown": {{
		why: "the engine's own paths are left out of messages",
		errs: map[int]string{
			3: "unable to convert uid/gid chown string to host mapping: can't find uid for user root: open /etc/passwd: no such file or directory",
		},
	}},
	"18-dockerignore-star": {{
		why: "a directory of which only some files are let in keeps its own time",
		node: func(want *Node) {
			if want.Path == "/ctx/dir" || want.Path == "/ctx/dir/inner" {
				want.MTime = "1700000000"
			}
		},
	}},
	"20-arg-scope": {{
		why:  "a --build-arg without a value that is not set where the client is does not travel, so that it cannot be warned of",
		errs: map[int]string{0: "[Warning] One or more build-args [UNUSED] were not consumed"},
	}},
	"34-expose-stopsignal-health": {{
		why: "HEALTHCHECK fields left out are not inherited",
		config: func(want map[string]any) {
			health(want)["Healthcheck"] = map[string]any{"Test": []any{"CMD-SHELL", "true"}}
		},
	}},
	"48-base-with-config": {{
		why: "HEALTHCHECK fields left out are not inherited from the parent image",
		config: func(want map[string]any) {
			health(want)["Healthcheck"] = map[string]any{"Test": []any{"CMD-SHELL", "child-check"}, "Timeout": 2e9}
		},
	}},
	"38-add-url": {{
		why:  "another file server, with shorter texts",
		errs: map[int]string{0: "ADD failed: failed to GET http://127.0.0.1:<port>/missing with status 404 Not Found: Nothing matches the given URI."},
	}},
	"40-scratch-run": {{
		why:  "messages have no engine's chain of callers around them",
		errs: map[int]string{1: "unable to start container process: exec: \"/bin/sh\": stat /bin/sh: no such file or directory"},
	}},
	"42-parser": {{
		why:  "ARGs before the first FROM are looked at while the build is planned, and the message says what is missing",
		errs: map[int]string{8: "the Dockerfile (Dockerfile.argonly) has no build stage"},
	}},
}

func health(config map[string]any) map[string]any { return config["config"].(map[string]any) }
