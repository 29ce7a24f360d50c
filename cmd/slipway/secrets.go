package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// maxSecret is the most that a build secret may hold.
const maxSecret = 500 << 10

// secrets are build secrets by id. They are read when they are asked for and
// appear in no message.
type secrets map[string]func() ([]byte, error)

// parseSecrets reads --build-secret: NAME=VALUE, or as Docker writes it
// id=NAME[,src=FILE|,env=VARIABLE].
func parseSecrets(specs []string, getenv func(string) string) (secrets, error) {
	s := secrets{}
	for _, spec := range specs {
		name, value, ok := strings.Cut(spec, "=")
		if !ok || name == "" {
			return nil, client.UserError("--build-secret: want NAME=VALUE or id=NAME,src=FILE", "")
		}
		read, err := text(name, value)
		if isDocker(name, spec) {
			name, read, err = dockerSecret(spec, getenv)
		}
		if err != nil {
			return nil, err
		}
		if s[name] != nil {
			return nil, client.UserError(fmt.Sprintf("--build-secret: %s comes twice", name), "Give each secret once.")
		}
		s[name] = read
	}
	return s, nil
}

// isDocker reports whether a spec whose first key is name is one of fields.
func isDocker(name, spec string) bool {
	switch name {
	case "id", "type":
		return true
	case "src", "source", "env":
		return strings.Contains(spec, ",id=")
	}
	return false
}

// dockerSecret reads a spec of fields, which may be quoted as in CSV.
func dockerSecret(spec string, getenv func(string) string) (id string, read func() ([]byte, error), err error) {
	fields, err := csv.NewReader(strings.NewReader(spec)).Read()
	if err != nil {
		return "", nil, client.UserError("--build-secret: a quote is out of place", "Quote a whole field: \"src=a,b\".")
	}
	var kind, file, variable string
	for _, field := range fields {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "id":
			id = value
		case "src", "source":
			file = value
		case "env":
			variable = value
		case "type":
			kind = value
		default:
			return "", nil, client.UserError(fmt.Sprintf("--build-secret: field %q is none of id, src, env, type", key), "")
		}
	}
	switch {
	case kind != "" && kind != "file" && kind != "env":
		return "", nil, client.UserError(fmt.Sprintf("--build-secret: type %q is neither file nor env", kind), "")
	case id == "":
		return "", nil, client.UserError("--build-secret: id is missing", "")
	case file != "" && variable != "":
		return "", nil, client.UserError(fmt.Sprintf("--build-secret: %s has src and env: which one?", id), "Leave one out.")
	case kind == "file" && variable != "":
		return "", nil, client.UserError(fmt.Sprintf("--build-secret: %s is of type file and has env", id), "Name the file with src=FILE.")
	case kind == "env" && file != "":
		file, variable = "", file // as Docker reads it
	}
	read, err = origin(id, kind, file, variable, getenv)
	return id, read, err
}

// origin finds where a secret comes from. One that names neither file nor
// variable is the variable of its own name, else the file.
func origin(id, kind, file, variable string, getenv func(string) string) (func() ([]byte, error), error) {
	if file == "" && variable == "" {
		if variable = id; kind == "file" || kind == "" && getenv(id) == "" && isFile(id) {
			file, variable = id, ""
		}
	}
	if file != "" {
		return fileSecret(file)
	}
	value := getenv(variable)
	if value == "" {
		return nil, client.UserError(fmt.Sprintf("--build-secret: the environment has no %s for the secret %s", variable, id),
			"Name a file with src=FILE, a variable with env=NAME.")
	}
	return text(id, value)
}

func isFile(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

func text(id, value string) (func() ([]byte, error), error) {
	if len(value) > maxSecret {
		return nil, tooLong(id, int64(len(value)))
	}
	return func() ([]byte, error) { return []byte(value), nil }, nil
}

func tooLong(what string, size int64) error {
	return client.UserError(fmt.Sprintf("--build-secret: %s has %d bytes, %d are allowed", what, size, maxSecret), "Put large files into the context or an image.")
}

func fileSecret(file string) (func() ([]byte, error), error) {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, client.UserError(fmt.Sprintf("--build-secret: %v", err), "")
	case st.IsDir():
		return nil, client.UserError(fmt.Sprintf("--build-secret: %s is a directory", file), "Name a file.")
	case st.Size() > maxSecret:
		return nil, tooLong(file, st.Size())
	}
	return func() ([]byte, error) { return readSecret(file) }, nil
}

func readSecret(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(f, maxSecret+1)); err != nil {
		return nil, err
	}
	if b.Len() > maxSecret {
		return nil, fmt.Errorf("%s holds more than %d bytes", file, maxSecret)
	}
	return b.Bytes(), nil
}

func (s secrets) ids() []string { return slices.Sorted(maps.Keys(s)) }
