package client

import slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

// Exit codes of every command.
const (
	ExitDone        = 0
	ExitInternal    = 1
	ExitUser        = 2
	ExitAuth        = 3
	ExitTooLarge    = 4
	ExitRegistry    = 5
	ExitUnavailable = 6
	ExitNetwork     = 7
	ExitCancelled   = 130
)

var exitByCode = map[string]int{
	CodeInternal:     ExitInternal,
	CodeTooLarge:     ExitTooLarge,
	CodeUnauthorized: ExitAuth,
	CodeUnavailable:  ExitUnavailable,
	CodeBusy:         ExitUnavailable,
	"daemon_stopped": ExitUnavailable,
	"disk_full":      ExitUnavailable,
	CodeCancelled:    ExitCancelled,
}

var exitByBlame = map[slipwayv1.Blame]int{
	slipwayv1.Blame_BLAME_USER:     ExitUser,
	slipwayv1.Blame_BLAME_REGISTRY: ExitRegistry,
	slipwayv1.Blame_BLAME_NETWORK:  ExitNetwork,
}

// ExitCode returns what a command that failed with e exits with. A code that
// has its own number decides; otherwise it follows from whom to blame. What a
// registry refuses is the registry's matter whatever the code.
func (e *Error) ExitCode() int {
	if e == nil {
		return ExitDone
	}
	if e.GetBlame() == slipwayv1.Blame_BLAME_REGISTRY && e.GetCode() != CodeTooLarge && e.GetCode() != CodeCancelled {
		return ExitRegistry
	}
	if e.GetCode() == CodePermissionDenied && (e.GetPhase() == "auth" || e.GetPhase() == "preflight" || e.GetPhase() == "") {
		return ExitAuth
	}
	if code, ok := exitByCode[e.GetCode()]; ok {
		return code
	}
	if code, ok := exitByBlame[e.GetBlame()]; ok {
		return code
	}
	return ExitInternal
}
