package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/BurntSushi/toml"
)

// readTOML reads the settings in a file. Where that is something else, the
// error says what it looks like: SLIPWAY_CONFIG may have been meant for another
// program.
func readTOML(file string) (map[string]any, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	var keys map[string]any
	err = toml.Unmarshal(data, &keys)
	if err == nil {
		return keys, nil
	}
	if kind := looksLike(data); kind != "" {
		return nil, fmt.Errorf("config: %s is not TOML, it looks like %s; --config and SLIPWAY_CONFIG name the daemon's TOML file", file, kind)
	}
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return nil, fmt.Errorf("config: %s is not TOML: line %d: %s", file, parse.Position.Line, parse.Message)
	}
	return nil, fmt.Errorf("config: %s is not TOML: %w", file, err)
}

// yamlLine is a key of YAML, which no line of TOML looks like.
var yamlLine = regexp.MustCompile(`(?m)^[\w-]+:(\s|$)`)

// looksLike names what a file is that is not TOML, "" if it may be TOML with a
// mistake in it.
func looksLike(data []byte) string {
	var login struct {
		Logins []json.RawMessage `json:"logins"`
	}
	switch trimmed := bytes.TrimSpace(data); {
	case bytes.IndexByte(data, 0) >= 0:
		return "a binary file"
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN ")):
		return "a key or certificate (PEM)"
	case json.Unmarshal(data, &login) == nil && login.Logins != nil:
		return "the login file of the slipway command, which SLIPWAY_LOGIN_FILE names"
	case bytes.HasPrefix(trimmed, []byte("{")):
		return "JSON"
	case yamlLine.Match(data):
		return "YAML"
	}
	return ""
}
