package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Owner returns the org that was the first to build an app of that name, ""
// if nobody did.
func (s *Store) Owner(ctx context.Context, app string) (string, error) {
	var org string
	err := s.db.QueryRowContext(ctx, `select org from builds where app = $1 order by id limit 1`, app).Scan(&org)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("owner of app %s: %w", app, err)
	}
	return org, nil
}
