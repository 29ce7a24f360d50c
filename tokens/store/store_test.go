package store_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/sqldb"
	"github.com/slipwayhq/slipway/sqldb/sqldbtest"
	"github.com/slipwayhq/slipway/tokens"
	"github.com/slipwayhq/slipway/tokens/store"
	"github.com/slipwayhq/slipway/tokens/storetest"
)

var cluster sqldbtest.Cluster

func TestMain(m *testing.M) { os.Exit(cluster.Main(m)) }

func open(t *testing.T, url string) (*sqldb.DB, *store.Store) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := store.New(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return db, s
}

func place(url func(testing.TB) string) func(*testing.T) func() tokens.Store {
	return func(t *testing.T) func() tokens.Store {
		at := url(t)
		return func() tokens.Store {
			_, s := open(t, at)
			return s
		}
	}
}

func TestSQLite(t *testing.T) { storetest.Run(t, place(sqldbtest.File)) }

func TestPostgreSQL(t *testing.T) { storetest.Run(t, place(cluster.Database)) }

// Not even who has the database's password changes the audit log by mistake.
func TestAuditIsAppendOnly(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db, s := open(t, url)
		want := tokens.Decision{ID: "01", Time: time.UnixMilli(1_700_000_000_000).UTC(), Org: "acme", Actor: "ann", Action: "login", Count: 1}
		if err := s.Record(t.Context(), []tokens.Decision{want}); err != nil {
			t.Fatal(err)
		}
		statements := []string{
			`update decisions set actor = 'eve'`,
			`update decisions set actor = 'eve' where id = '01'`,
			`delete from decisions`,
			`delete from decisions where id = '01'`,
			`insert into decisions (id, time, org, token, actor, action, resource, addr, allowed, reason, count)
				values ('01', 1, 'acme', '', 'eve', '', '', '', 1, '', 1) on conflict (id) do update set actor = 'eve'`,
		}
		if db.Dialect() == sqldb.PostgreSQL {
			statements = append(statements, `truncate decisions`)
		} else {
			statements = append(statements, `insert or replace into decisions (id, time, org, token, actor, action, resource, addr, allowed, reason, count)
				values ('01', 1, 'acme', '', 'eve', '', '', '', 1, '', 1)`)
		}
		for _, statement := range statements {
			n, err := db.Exec(t.Context(), statement)
			if (err == nil || !strings.Contains(err.Error(), "append-only")) && n != 0 {
				t.Errorf("%s: %d rows, %v", statement, n, err)
			}
			for got, err := range s.Decisions(t.Context(), tokens.AuditQuery{Org: "acme"}) {
				if err != nil || got != want {
					t.Errorf("after %s: %+v, %v", statement, got, err)
				}
			}
		}
	})
}

// fill makes tokens the quick way, and as many decisions.
func fill(t *testing.T, db *sqldb.DB, many int) {
	t.Helper()
	for _, statement := range []string{
		`with recursive n (n) as (select 1 union all select n + 1 from n where n < $1)
			insert into tokens (id, hash, org, type, name, app, env, permission, command, session, username, created_by, created)
			select 'tok_' || n, 'hash' || n, 'acme', 'deploy', 'ci', 'shop', '', '', '', 0, 'ann', 'ann', n from n`,
		`with recursive n (n) as (select 1 union all select n + 1 from n where n < $1)
			insert into decisions (id, time, org, token, actor, action, resource, addr, allowed, reason, count)
			select 'd' || n, n, 'acme', '', 'ann', 'login', '', '', 1, '', 1 from n`,
		`with recursive n (n) as (select 1 union all select n + 1 from n where n < $1) insert into apps (name, org, created_by, created) select 'app' || n, 'acme', 'ann', n from n`,
	} {
		if _, err := db.Exec(t.Context(), statement, many); err != nil {
			t.Fatal(err)
		}
	}
}

// However many tokens there are, none of what each call needs reads them all.
func TestIndexes(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db, _ := open(t, url)
		fill(t, db, 10_000)
		if _, err := db.Exec(t.Context(), `insert into revocations (revision, token) select created, id from tokens`); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(t.Context(), `analyze`); err != nil {
			t.Fatal(err)
		}
		for _, query := range []string{
			`select id from tokens where hash = 'hash77'`,
			`select id from tokens where org = 'acme' and id = 'tok_77'`,
			`select id from tokens where org = 'acme' and session = 0 and id < 'tok_5' order by id desc limit 1000`,
			`select id from tokens where parent = 'tok_77'`,
			`select id from tokens where org = 'acme' and username = 'eve'`,
			`select token from revocations where revision > 9990 order by revision, token`,
			`select id from decisions where org = 'acme' and (time, id) > (77, 'd77') order by time, id limit 500`,
			`select name from apps where name = 'app77'`,
		} {
			explain := `explain query plan `
			if db.Dialect() == sqldb.PostgreSQL {
				explain = `explain `
			}
			plan, err := sqldb.Collect(db.Query(t.Context(), explain+query), func(r sqldb.Row) (line string, err error) {
				if db.Dialect() == sqldb.PostgreSQL {
					return line, r.Scan(&line)
				}
				var a, b, c int
				return line, r.Scan(&a, &b, &c, &line)
			})
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("%q", plan)
			if strings.Contains(text, "Seq Scan") || strings.Contains(text, "SCAN") || !strings.Contains(strings.ToLower(text), "index") || strings.Contains(text, "B-TREE") {
				t.Errorf("%s: %s", query, text)
			}
		}
	})
}

// 10 000 tokens are listed, revoked and deleted at once.
func TestManyTokens(t *testing.T) {
	cluster.Each(t, func(t *testing.T, url string) {
		db, s := open(t, url)
		fill(t, db, 10_000)
		var ids []string
		for before := ""; ; {
			page, err := s.Tokens(t.Context(), tokens.TokenQuery{Org: "acme", Before: before})
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, tok := range page {
				ids = append(ids, tok.ID)
			}
			before = ids[len(ids)-1]
		}
		if len(ids) != 10_000 {
			t.Fatalf("listed %d", len(ids))
		}
		at := time.UnixMilli(1_700_000_000_000)
		d := func(id string) tokens.Decision { return tokens.Decision{ID: id, Time: at, Org: "acme", Count: 1} }
		start := time.Now()
		revoked, err := s.RevokeTokens(t.Context(), "acme", ids, "ann", at, d("r"))
		if err != nil || len(revoked) != len(ids) {
			t.Fatalf("revoked %d, %v", len(revoked), err)
		}
		t.Logf("revoked in %v", time.Since(start))
		start = time.Now()
		if err := s.DeleteTokens(t.Context(), "acme", ids, at, d("d")); err != nil {
			t.Fatal(err)
		}
		t.Logf("deleted in %v", time.Since(start))
		if left, err := s.Tokens(t.Context(), tokens.TokenQuery{Org: "acme"}); err != nil || len(left) != 0 {
			t.Errorf("left are %d, %v", len(left), err)
		}
		if ids, _, err := s.RevokedAfter(t.Context(), "0"); err != nil || len(ids) != 10_000 {
			t.Errorf("others hear of %d, %v", len(ids), err)
		}
	})
}
