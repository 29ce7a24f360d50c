package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
)

var postgres sqldbtest.Cluster

// A daemon that records in PostgreSQL has nothing of it in its root, knows it
// again after a restart, and tells nobody the password.
func TestDatabase(t *testing.T) {
	t.Parallel()
	url := strings.Replace(postgres.Database(t), "postgres:///", "postgres://postgres:s3cret@/", 1)
	d := newDaemon(t)
	d.env = append(d.env, "SLIPWAY_DATABASE="+url)
	d.start()
	c := d.client()
	files := dockerfile("FROM scratch", "COPY a /a").and("a", "a").write(t)
	first := c.deploy("shop", files)
	was := d.token
	d.stop()
	d.start()
	if d.token != was {
		t.Error("a restart changed the admin's token")
	}
	var builds []struct{ ID, App, Status string }
	c.slipway("builds", "list", "--json").value(&builds)
	if len(builds) != 1 || builds[0].App != "shop" || builds[0].ID != first.BuildID {
		t.Errorf("builds %+v, want %s", builds, first.BuildID)
	}
	if r := c.slipway("tokens", "list", "--json"); r.code() != exitDone || !strings.Contains(r.text(), "admin.token") {
		t.Errorf("tokens: exit code %d\n%s", r.code(), r.text())
	}
	if left, err := filepath.Glob(filepath.Join(d.root, "records.db*")); err != nil || len(left) > 0 {
		t.Errorf("the root has %v, %v", left, err)
	}
	if log := d.log.String(); strings.Contains(log, "s3cret") || !strings.Contains(log, `database="test`) {
		t.Errorf("the log has the password, or not the name of the database:\n%s", log)
	}
}

// Where the database is not as it must be, the daemon does not start, and says
// what to do.
func TestNoDatabase(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		database string // empty for one in the root that is damaged
		want     []string
	}{
		"damaged":     {"", []string{"records.db is damaged", "backup"}},
		"unreachable": {"postgres://ann:s3cret@127.0.0.1:1/slipway", []string{"slipway on 127.0.0.1:1 cannot be reached", "server runs"}},
		"no URL":      {"postgres://ann:s3cret@[::1/slipway", []string{"no URL", "postgres://USER:PASSWORD@HOST"}},
		"unknown":     {"mysql://ann:s3cret@localhost/slipway", []string{"no such kind", "mysql"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			if tc.database != "" {
				d.args = append(d.args, "--database", tc.database)
			} else if err := os.WriteFile(filepath.Join(d.root, "records.db"), []byte(strings.Repeat("dear diary ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
			d.launch()
			select {
			case <-d.ended:
			case <-time.After(20 * time.Second):
				t.Fatalf("it runs\n%s", d.log)
			}
			log := d.log.String()
			for _, want := range tc.want {
				if d.exit == nil || !strings.Contains(log, want) || strings.Contains(log, "s3cret") {
					t.Errorf("ended with %v, want %q and no password in\n%s", d.exit, want, log)
				}
			}
		})
	}
}
