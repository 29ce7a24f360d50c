package sandbox

import "strings"

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// An environment is a list of NAME=VALUE with each name once, in the order of
// first appearance.
type environment struct {
	list  []string
	index map[string]int
}

// set gives the variable of entry its value. An entry without = is ignored.
func (e *environment) set(entry string) {
	name, _, ok := strings.Cut(entry, "=")
	if !ok {
		return
	}
	if e.index == nil {
		e.index = map[string]int{}
	}
	if i, known := e.index[name]; known {
		e.list[i] = entry
		return
	}
	e.index[name] = len(e.list)
	e.list = append(e.list, entry)
}

// setDefault sets name unless it is set already.
func (e *environment) setDefault(name, value string) {
	if _, known := e.index[name]; !known {
		e.set(name + "=" + value)
	}
}

// newEnvironment completes what the image and the build set, as Docker does.
func newEnvironment(set []string, hostname, home string) *environment {
	var e environment
	e.set("PATH=" + defaultPath)
	e.set("HOSTNAME=" + hostname)
	for _, entry := range set {
		e.set(entry)
	}
	if home == "" {
		home = "/"
	}
	if i, known := e.index["HOME"]; known && e.list[i] == "HOME=" {
		e.set("HOME=" + home)
	}
	e.setDefault("HOME", home)
	return &e
}

// environment returns what a process gets that wants set, with what we add.
func (s *bundle) environment(set []string, home string, t *Terminal) []string {
	env := newEnvironment(set, s.spec.hostname, home)
	for _, entry := range s.defaults {
		name, value, _ := strings.Cut(entry, "=")
		env.setDefault(name, value)
	}
	if t != nil {
		env.setDefault("TERM", "xterm")
	}
	return env.list
}
