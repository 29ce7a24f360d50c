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
	err := s.db.QueryRow(ctx, `select org from builds where app = $1 order by id limit 1`, app).Scan(&org)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("owner of app %s: %w", app, err)
	}
	return org, nil
}

// Owners returns the org that was the first to build each app.
func (s *Store) Owners(ctx context.Context) (map[string]string, error) {
	owners := map[string]string{}
	for row, err := range s.db.Query(ctx, `select b.app, b.org from builds b where b.id = (select min(id) from builds where app = b.app)`) {
		if err != nil {
			return nil, fmt.Errorf("owners of apps: %w", err)
		}
		var app, org string
		if err := row.Scan(&app, &org); err != nil {
			return nil, fmt.Errorf("owners of apps: %w", err)
		}
		owners[app] = org
	}
	return owners, nil
}
