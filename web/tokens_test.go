package web_test

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/tokens"
)

var valueField = regexp.MustCompile(`id="value" value="([^"]*)"`)

// create makes a token on the pages and returns its value and record.
func (d *daemon) create(b *browser, pairs ...string) (string, tokens.Token) {
	d.t.Helper()
	pairs = append([]string{"expires", time.Now().UTC().AddDate(0, 0, 30).Format(time.DateOnly)}, pairs...)
	page := b.follow(b.post("/tokens", pairs...))
	page.want(d.t, 200, "shown this once")
	m := valueField.FindStringSubmatch(page.text)
	if m == nil {
		d.t.Fatalf("no value:\n%s", page.text)
	}
	p := d.principal(m[1])
	tok, err := d.store.Token(context.Background(), p.Org, p.ID)
	check(d.t, err)
	return m[1], tok
}

func TestCreateToken(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	b.get("/tokens/new").want(t, 200, "machine-exec", "Never expires")
	for _, tc := range []struct {
		form []string
		want tokens.Token
	}{
		{[]string{"type", "deploy", "name", "ci", "app", "shop", "permission", "read-only", "command", "left over"}, tokens.Token{Type: "deploy", Name: "ci", App: "shop"}},
		{[]string{"type", "registry", "permission", "read-write"}, tokens.Token{Type: "registry", Name: "registry", Permission: "read-write"}},
		{[]string{"type", "org", "app", "left-over"}, tokens.Token{Type: "org", Name: "org"}},
		{[]string{"type", "machine-exec", "app", "shop", "command", "bin/migrate\r\n--all \r\n"}, tokens.Token{Type: "machine-exec", Name: "machine-exec", App: "shop", Command: []string{"bin/migrate", "--all "}}},
		{[]string{"type", "readonly", "never", "1"}, tokens.Token{Type: "readonly", Name: "readonly"}},
	} {
		value, tok := d.create(b, tc.form...)
		if tok.Type != tc.want.Type || tok.Name != tc.want.Name || tok.App != tc.want.App || tok.Permission != tc.want.Permission ||
			strings.Join(tok.Command, "|") != strings.Join(tc.want.Command, "|") || tok.CreatedBy != "admin" || tok.Parent != "" {
			t.Errorf("%v made %+v", tc.form, tok)
		}
		if days := time.Until(tok.Expires).Hours() / 24; tc.form[len(tc.form)-2] != "never" && (days < 30 || days > 31) || tc.form[len(tc.form)-2] == "never" && !tok.Expires.IsZero() {
			t.Errorf("%v expires %v", tc.form, tok.Expires)
		}
		if strings.Contains(b.get("/tokens").text, value) {
			t.Error("the list shows a value")
		}
	}
}

// TestValueIsShownOnce to whom made it, and to nobody again.
func TestValueIsShownOnce(t *testing.T) {
	d := start(t, nil)
	b, other := d.signedIn(d.admin), d.signedIn(d.admin)
	a := b.post("/tokens", "type", "org", "expires", "2099-01-01")
	if a.StatusCode != 422 { // more than 20 years
		t.Errorf("status %d", a.StatusCode)
	}
	a = b.post("/tokens", "type", "org", "expires", time.Now().UTC().Format(time.DateOnly))
	to := a.Header.Get("Location")
	other.get(to).want(t, http.StatusGone)
	first := b.get(to)
	first.want(t, 200)
	value := valueField.FindStringSubmatch(first.text)[1]
	if cc := first.Header.Get("Cache-Control"); cc != "no-store" || strings.Contains(to, value) {
		t.Errorf("the page may be kept (%s), or its address has the value", cc)
	}
	again := b.get(to)
	again.want(t, http.StatusGone, "shown once")
	if strings.Contains(again.text, value) {
		t.Error("a reload shows the value")
	}
}

func TestFormSaysWhatIsWrong(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	for _, tc := range []struct{ form, want []string }{
		{[]string{"type", "deploy", "expires", "2026-12-31"}, []string{"is for one app"}},
		{[]string{"type", "deploy", "app", "shop", "expires", "2020-01-01"}, []string{"expired already", `value="shop"`}},
		{[]string{"type", "deploy", "app", "shop", "expires", ""}, []string{"Choose the day"}},
		{[]string{"type", "deploy", "app", "<b>", "expires", "2026-12-31"}, []string{"&lt;b&gt;"}},
		{[]string{"type", "user", "never", "1"}, []string{"no type of token"}},
		{[]string{"type", "machine-exec", "app", "shop", "expires", "2026-12-31"}, []string{"one command"}},
	} {
		a := b.post("/tokens", tc.form...)
		a.want(t, 422, append(tc.want, `role="alert"`)...)
		if strings.Contains(a.text, "<b>") {
			t.Error("the form does not escape")
		}
	}
}

func TestRevokeAndDelete(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	value, tok := d.create(b, "type", "org", "name", `<img src=x onerror=alert(1)>"'`)
	list := b.get("/tokens")
	list.want(t, 200, "&lt;img", "/tokens/"+tok.ID+"/revoke")
	if strings.Contains(list.text, "<img") || strings.Contains(list.text, "/tokens/"+tok.ID+"/delete") {
		t.Error("the list does not escape, or offers to delete a good token")
	}
	b.post("/tokens/"+tok.ID+"/delete").want(t, 422)
	b.get("/tokens/"+tok.ID+"/revoke").want(t, 200, `action="/tokens/`+tok.ID+`/revoke"`, "&lt;img")
	d.principal(value)
	b.follow(b.post("/tokens/"+tok.ID+"/revoke")).want(t, 200, "The token is revoked.", ">Revoked<", "/tokens/"+tok.ID+"/delete")
	if _, err := d.authority.Authenticate(context.Background(), value); err == nil {
		t.Error("the token is still good")
	}
	b.follow(b.post("/tokens/"+tok.ID+"/revoke")).want(t, 200, "had ended before")
	b.get("/tokens/"+tok.ID+"/delete").want(t, 200, "Delete record")
	if page := b.follow(b.post("/tokens/" + tok.ID + "/delete")); strings.Contains(page.text, `id="`+tok.ID) {
		t.Error("the record is still listed")
	}
}

// TestRoles: developers see and end their own tokens only, and have no users.
func TestRoles(t *testing.T) {
	d := start(t, nil)
	admin := d.signedIn(d.admin)
	dev := d.signedIn(d.user("dev", tokens.RoleDeveloper))
	_, others := d.create(admin, "type", "org", "name", "of-admin")
	_, own := d.create(dev, "type", "deploy", "app", "shop", "name", "of-dev")

	page := dev.get("/tokens")
	page.want(t, 200, "of-dev")
	if strings.Contains(page.text, "of-admin") || strings.Contains(page.text, `href="/users"`) {
		t.Error("a developer sees what is the admins'")
	}
	dev.post("/tokens/"+others.ID+"/revoke").want(t, 404)
	dev.get("/users").want(t, 403, "user:read")
	dev.post("/users", "name", "eve", "role", "admin").want(t, 403)
	dev.post("/users/dev/role", "role", "admin").want(t, 403)
	if form := dev.get("/tokens/new"); strings.Contains(form.text, "Never expires") {
		t.Error("the form offers never to a developer")
	}
	dev.post("/tokens", "type", "org", "never", "1").want(t, 403, "only admins")
	admin.get("/tokens").want(t, 200, "of-dev", "of-admin")
	admin.follow(admin.post("/tokens/"+own.ID+"/revoke")).want(t, 200, "is revoked")
}

func TestUsers(t *testing.T) {
	d := start(t, nil)
	b := d.signedIn(d.admin)
	page := b.follow(b.post("/users", "name", "kim", "role", "developer"))
	page.want(t, 200, "login of kim")
	kim := d.signedIn(valueField.FindStringSubmatch(page.text)[1])
	kim.get("/users").want(t, 403)
	b.follow(b.post("/users/kim/role", "role", "admin")).want(t, 200, "kim is admin from now on.")
	kim.get("/users").want(t, 200, ">you<")
	b.get("/users/kim/remove").want(t, 200, "Remove kim?")
	b.follow(b.post("/users/kim/remove")).want(t, 200, "kim is removed")
	kim.get("/builds").want(t, http.StatusSeeOther)
	b.post("/users", "name", "<b>", "role", "admin").want(t, 422, "&lt;b&gt;")
	b.post("/users/admin/role", "role", "developer").want(t, 422, "only admin")
}

func TestCacheAndEnvironments(t *testing.T) {
	d := start(t, succeed)
	d.build("shop")
	b := d.signedIn(d.admin)
	b.get("/cache").want(t, 200, "free on the disk")
	b.get("/cache/prune?age=7d").want(t, 200, "not used for 7 days", `name="age" value="7d"`)
	b.get("/cache/prune?age=1s").want(t, 422)
	b.post("/cache/prune", "age", "").want(t, 422)
	b.follow(b.post("/cache/prune", "age", "all")).want(t, 200, "freed")

	b.get("/environments").want(t, 200, "slipway envs create production")
	page := b.follow(b.post("/environments", "name", "production"))
	page.want(t, 200, "New environment production")
	d.principal(valueField.FindStringSubmatch(page.text)[1])
	b.get("/environments").want(t, 200, "/environments/production")
	b.get("/environments/production").want(t, 200, "Nothing was released to production yet.")
	b.get("/environments/nowhere").want(t, 404)
	b.follow(b.post("/environments/production/delete")).want(t, 200, "production is deleted; 1 token ended.")
	reader, _ := d.create(b, "type", "readonly")
	r := d.signedIn(reader)
	r.get("/cache").want(t, 200)
	r.post("/cache/prune", "age", "all").want(t, 403)
	r.post("/environments", "name", "production").want(t, 403)
}
