package server

import (
	"context"
	"regexp"
	"slices"

	"github.com/slipwayhq/slipway/builder/failure"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

const (
	// maxSecret is the most that a secret may hold.
	maxSecret = 500 << 10
	// maxNames is how many secrets, and how many agents, a build may have.
	maxNames = 100
)

// secretName is what secrets and agents may be called. A secret's file is
// called after it.
var secretName = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.:@/+-]{0,127}$`)

// A secret is what the client said about one. It stays in memory, and only
// while the build lives.
type secret struct {
	known chan struct{} // closed when the rest is set
	value []byte
	ok    bool
	err   error
}

// checkNames refuses ids of secrets or agents that the flag cannot have meant.
func checkNames(flag string, ids []string) error {
	if len(ids) > maxNames {
		return failure.Userf(failure.InvalidArgument, "leave out what no instruction mounts", "%d times %s, %d are allowed", len(ids), flag, maxNames)
	}
	for i, id := range ids {
		if !secretName.MatchString(id) {
			return failure.Userf(failure.InvalidArgument, "use letters, digits, dots, dashes and underscores, 128 at most", "%s: %q is no id", flag, id)
		}
		if slices.Contains(ids[:i], id) {
			return failure.Userf(failure.InvalidArgument, "give each id once", "%s: the id %s comes twice", flag, id)
		}
	}
	return nil
}

// Secret implements builder.Session. The client is asked once for an id,
// however many want to know.
func (s *session) Secret(ctx context.Context, id string) ([]byte, bool, error) {
	if !slices.Contains(s.start.SecretIds, id) {
		return nil, false, nil
	}
	s.mu.Lock()
	sec, asked := s.secrets[id]
	if !asked {
		sec = &secret{known: make(chan struct{})}
		s.secrets[id] = sec
	}
	s.mu.Unlock()
	if asked {
		if err := s.await(ctx, sec.known); err != nil {
			return nil, false, err
		}
		if sec.err == nil || context.Cause(ctx) != nil || s.lostCause() != nil {
			return sec.value, sec.ok, sec.err
		}
		return s.Secret(ctx, id) // whoever asked gave up
	}
	sec.value, sec.ok, sec.err = s.askSecret(ctx, id)
	if sec.err != nil {
		s.mu.Lock()
		delete(s.secrets, id)
		s.mu.Unlock()
	}
	close(sec.known)
	return sec.value, sec.ok, sec.err
}

func (s *session) askSecret(ctx context.Context, id string) ([]byte, bool, error) {
	a, err := s.ask(ctx, &slipwayv1.Ask{Question: &slipwayv1.Ask_Secret{Secret: id}})
	if err != nil {
		return nil, false, err
	}
	_, ok := a.GetAnswer().(*slipwayv1.Answer_Secret)
	value := a.GetSecret()
	if len(value) > maxSecret {
		clear(value)
		return nil, false, failure.Userf(failure.InvalidArgument, "put large files into the context or an image",
			"the secret %s has %d bytes, %d are allowed", id, len(value), maxSecret)
	}
	return value, ok, nil
}

// gather asks for the secrets of a build whose client may leave before they
// are needed.
func (s *session) gather(ctx context.Context) error {
	if !s.start.Detach {
		return nil
	}
	for _, id := range s.start.SecretIds {
		if _, _, err := s.Secret(ctx, id); err != nil {
			return failure.At(err, failure.Preflight, 0)
		}
	}
	return nil
}

// forget wipes the secrets. Nothing asks for one any more.
func (s *session) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, sec := range s.secrets {
		clear(sec.value)
		delete(s.secrets, id)
	}
}
