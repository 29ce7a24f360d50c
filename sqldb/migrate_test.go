package sqldb_test

import (
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/slipwayhq/slipway/sqldb"
)

func files(texts map[string]string) fstest.MapFS {
	all := fstest.MapFS{}
	for name, text := range texts {
		all[name] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + text + "\n")}
	}
	return all
}

func TestMigrate(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		all := files(map[string]string{
			"0001_n.sql":          "create table n (n bigint, dialect text);",
			"0002_n.sqlite.sql":   "insert into n values (2, 'sqlite');",
			"0002_n.postgres.sql": "select pg_sleep(0.1);\ninsert into n values (2, 'postgres');",
			"0003_n.postgres.sql": "insert into n values (3, 'postgres');",
			"0004_n.sql":          "insert into n values (4, '');",
		})
		var wg sync.WaitGroup
		for range 8 {
			db := open(t, url)
			wg.Go(func() {
				if err := db.Migrate(t.Context(), all, "n_version"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		db := open(t, url)
		want := int64(6)
		if db.Dialect() == sqldb.PostgreSQL {
			want = 9
		}
		if n := number(t, db, `select sum(n) from n where dialect in ('', $1)`, string(db.Dialect())); n != want {
			t.Errorf("sum %d, want %d", n, want)
		}
		if n := number(t, db, `select sum(n) from n`); n != want {
			t.Errorf("sum of both dialects %d, want %d", n, want)
		}
		other := files(map[string]string{"0001_m.sql": "create table m (m bigint);"})
		if err := db.Migrate(t.Context(), other, "m_version"); err != nil {
			t.Error(err)
		}
		exec(t, db, `insert into m values (1)`)
	})
}

func TestMigrateFails(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db := open(t, url)
		bad := files(map[string]string{"0001_n.sql": "create table n (n bigint);", "0002_bad.sql": "create table m (m bigint);\nnonsense;"})
		err := db.Migrate(t.Context(), bad, "n_version")
		if err == nil || !strings.Contains(err.Error(), "version:2") || !strings.Contains(err.Error(), db.String()) {
			t.Errorf("Migrate: %v", err)
		}
		exec(t, db, `insert into n values (1)`)
		good := files(map[string]string{"0001_n.sql": "create table n (n bigint);", "0002_bad.sql": "create table m (m bigint);"})
		if err := db.Migrate(t.Context(), good, "n_version"); err != nil {
			t.Errorf("once it is mended: %v", err)
		}
		exec(t, db, `insert into m values (1)`)
	})
}
