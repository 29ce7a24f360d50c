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

// Owners returns the org that was the first to build each app.
func (s *Store) Owners(ctx context.Context) (map[string]string, error) {
	rows, err := s.db.QueryContext(ctx, `select b.app, b.org from builds b where b.id = (select min(id) from builds where app = b.app)`)
	if err != nil {
		return nil, fmt.Errorf("owners of apps: %w", err)
	}
	defer rows.Close()
	owners := map[string]string{}
	for rows.Next() {
		var app, org string
		if err := rows.Scan(&app, &org); err != nil {
			return nil, fmt.Errorf("owners of apps: %w", err)
		}
		owners[app] = org
	}
	return owners, rows.Err()
}
