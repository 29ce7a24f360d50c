package main

import (
	"bytes"
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
		if name != "id" && name != "type" {
			s[name] = func() ([]byte, error) { return []byte(value), nil }
			continue
		}
		if err := s.docker(spec, getenv); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s secrets) docker(spec string, getenv func(string) string) error {
	var id, file, variable string
	for field := range strings.SplitSeq(spec, ",") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "id":
			id = value
		case "src", "source":
			file = value
		case "env":
			variable = value
		case "type":
			if value != "file" && value != "env" {
				return client.UserError(fmt.Sprintf("--build-secret: type %q is neither file nor env", value), "")
			}
		default:
			return client.UserError(fmt.Sprintf("--build-secret: field %q is none of id, src, env", key), "")
		}
	}
	if id == "" {
		return client.UserError("--build-secret: id is missing", "")
	}
	if file == "" {
		if variable == "" {
			variable = id
		}
		value := getenv(variable)
		if value == "" {
			return client.UserError(fmt.Sprintf("--build-secret: the environment has no %s for the secret %s", variable, id), "Name a file with src=FILE, a variable with env=NAME.")
		}
		s[id] = func() ([]byte, error) { return []byte(value), nil }
		return nil
	}
	if _, err := os.Stat(file); err != nil {
		return client.UserError(fmt.Sprintf("--build-secret: %v", err), "")
	}
	s[id] = func() ([]byte, error) { return readSecret(file) }
	return nil
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
		return nil, fmt.Errorf("%s holds more than %d kB", file, maxSecret>>10)
	}
	return b.Bytes(), nil
}

func (s secrets) ids() []string { return slices.Sorted(maps.Keys(s)) }
