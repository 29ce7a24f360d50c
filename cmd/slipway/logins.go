package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
)

// logins is the file in which login keeps tokens, each for one daemon only: a
// token never goes to another address than the one that it was given for.
type logins struct {
	Current string  `json:"current"` // address
	Logins  []login `json:"logins"`

	file string
}

// login is how to reach one daemon and what to say who one is.
type login struct {
	Address    string `json:"address"`
	Token      string `json:"token"`
	Name       string `json:"name,omitempty"`
	Org        string `json:"org,omitempty"`
	CAFile     string `json:"tls_ca,omitempty"`
	SkipVerify bool   `json:"tls_skip_verify,omitempty"`
	Insecure   bool   `json:"insecure,omitempty"`
}

// defaultLoginFile returns where logins are saved: $SLIPWAY_LOGIN_FILE, or a
// file in the user's configuration directory; empty if there is no such place.
// SLIPWAY_CONFIG is the daemon's; where it names a JSON file, which the daemon
// would not read, it was meant for us.
func defaultLoginFile(getenv func(string) string) string {
	if f := getenv("SLIPWAY_LOGIN_FILE"); f != "" {
		return f
	}
	if f := getenv("SLIPWAY_CONFIG"); strings.HasSuffix(f, ".json") {
		return f
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "slipway", "login.json")
}

// loadLogins reads file. One that does not exist is empty.
func loadLogins(file string) (*logins, error) {
	l := &logins{file: file}
	if file == "" {
		return l, nil
	}
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, client.UserError(fmt.Sprintf("saved login: %v", err), "")
	}
	if err := json.Unmarshal(data, l); err != nil {
		return nil, client.UserError(fmt.Sprintf("saved login %s: %v", file, err), "Delete the file and run slipway login.")
	}
	return l, nil
}

// find returns the login for the daemon at a, nil if there is none. TLS does
// not count: a login that was made over TLS is used over TLS.
func (l *logins) find(a client.Address) *login {
	i := slices.IndexFunc(l.Logins, func(x login) bool {
		b, err := client.ParseAddress(x.Address)
		return err == nil && b.HostPort() == a.HostPort()
	})
	if i < 0 {
		return nil
	}
	return &l.Logins[i]
}

// put saves x as the current login, in place of an earlier one there.
func (l *logins) put(a client.Address, x login) error {
	l.drop(a)
	l.Logins = append(l.Logins, x)
	l.Current = x.Address
	return l.save()
}

// drop forgets the login at a and reports whether there was one.
func (l *logins) drop(a client.Address) bool {
	old := l.find(a)
	if old == nil {
		return false
	}
	address := old.Address
	l.Logins = slices.DeleteFunc(l.Logins, func(x login) bool { return x.Address == address })
	if l.Current == address {
		l.Current = ""
	}
	return true
}

// save replaces the file as a whole; nobody but the user may read it.
func (l *logins) save() error {
	if l.file == "" {
		return client.UserError("there is no place to save a login: no home directory", "Set SLIPWAY_LOGIN_FILE to a file.")
	}
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("save login: %w", err)
	}
	if err := replaceFile(l.file, append(data, '\n')); err != nil {
		return client.UserError(fmt.Sprintf("save login: %v", err), "Set SLIPWAY_LOGIN_FILE to a file that can be written.")
	}
	return nil
}

func replaceFile(file string, data []byte) (err error) {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".login-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
