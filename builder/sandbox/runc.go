package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func (r *Runner) runcVersion(ctx context.Context) (string, error) {
	return r.runcCommand(ctx, "--version")
}

// runcCommand runs a short command of the runtime and returns what it printed.
func (r *Runner) runcCommand(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, r.runc, append([]string{"--root", r.runcDir}, args...)...)
	cmd.Env = runtimeEnv
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", r.runc, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// discard removes a container and every process in it, whatever state the
// runtime left it in.
func (r *Runner) discard(ctx context.Context, id string) error {
	state := filepath.Join(r.runcDir, id)
	var err error
	if exists(state) {
		_, err = r.runcCommand(ctx, "delete", "--force", id)
	}
	if failed := r.cgroups.removeChild(ctx, id); failed != nil {
		return errors.Join(err, failed)
	}
	if err != nil {
		r.log.Warn("runc could not delete a container", "container", id, "error", err)
	}
	return os.RemoveAll(state)
}

// runtimeError returns the last error in the runtime's log.
func runtimeError(logFile string) string {
	f, err := os.Open(logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	var last string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(lines.Bytes(), &entry) != nil {
			continue
		}
		if entry.Level == "error" || entry.Level == "fatal" {
			last = entry.Msg
		}
	}
	return complaints.ReplaceAllString(last, "")
}
