package gitfetch

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/slipwayhq/slipway/builder/failure"
)

// ErrClosed is what the error of [Options].Dial wraps if the address is one
// that may not be reached.
var ErrClosed = errors.New("closed address")

// scpLike is how Git writes an SSH address without a scheme, such as
// git@github.com:org/repo.
var scpLike = regexp.MustCompile(`^([\w.-]+)@([\w.-]+):`)

// IsOther reports whether s is the address of a repository in a protocol that a
// Fetcher does not speak; remedy tells what to do then.
func IsOther(s string) (remedy string, other bool) {
	if at := scpLike.FindStringSubmatch(s); at != nil {
		return "write https://" + at[2] + "/" + strings.TrimPrefix(s, at[0]) + "; a private repository needs the build secret GIT_AUTH_TOKEN", true
	}
	lower := strings.ToLower(s)
	if strings.HasPrefix(lower, "ssh://") || strings.HasPrefix(lower, "git://") {
		return "write the repository's https:// address; a private one needs the build secret GIT_AUTH_TOKEN", true
	}
	return "", false
}

// Explain tells people what became of a source. The message begins with what,
// which names it without secrets; most is the max that Fetch had. An err that
// is none of Resolve's or Fetch's own is returned as it is.
func Explain(err error, what string, most int64) error {
	var git *Error
	e := &failure.Error{Code: failure.FetchFailed, Blame: failure.User, Message: fmt.Sprintf("%s: %v", what, err), Err: err}
	switch {
	case errors.Is(err, ErrClosed):
		e.Hint = "copy the repository into the context, or ask the operator for --allow-egress"
	case errors.Is(err, ErrRedirect):
		e.Hint = "write the address that it redirects to: credentials are sent to no other server than the one that is named"
	case errors.Is(err, ErrNoRef):
		e.Hint = "name a branch, a tag or a commit's full hash that the repository has"
	case errors.Is(err, ErrTooLarge):
		e.Code, e.Hint = failure.TooLarge, "fetch a smaller repository, or an archive of what the image needs"
		e.Message = fmt.Sprintf("%s: with its history, it takes more than twice the limit of %d bytes", what, most)
	case errors.Is(err, ErrNoGit):
		e.Code, e.Blame, e.Hint = failure.NotSupported, failure.Builder, "the operator installs git where the daemon runs"
	case errors.As(err, &git) && git.Auth:
		e.Hint = "check the address; a private repository needs the build secret GIT_AUTH_TOKEN with a token that may read it"
	case errors.As(err, &git):
		e.Hint = "check the address and the ref; a private repository needs the build secret GIT_AUTH_TOKEN"
	case isConnection(err):
		e.Blame, e.Retryable, e.Hint = failure.Net, true, "check the address; the daemon reaches public addresses only, unless the operator allows more"
	default:
		return err
	}
	return e
}

// isConnection reports whether a network failed, not a server.
func isConnection(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) || errors.As(err, &dns)
}
