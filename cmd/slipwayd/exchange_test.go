package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/tokens/oidc/oidctest"
)

// A job of a CI system deploys without a secret.
func TestDeployWithIDToken(t *testing.T) {
	issuer := oidctest.New(t)
	d := startDaemon(t, "--oidc-ca", issuer.CAFile())
	admin := d.client()
	if r := admin.slipway("trust", "create", "shop-main", "--issuer", issuer.URL(), "--claim", "repository=acme/shop", "--claim", "ref=refs/heads/*", "-a", "shop"); r.code() != exitDone {
		t.Fatal(r.text())
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	job := func(claims map[string]any, env ...string) *client {
		id := issuer.Token("slipway://"+d.grpc, claims)
		return admin.with(append([]string{"SLIPWAY_API_TOKEN=", "SLIPWAY_ID_TOKEN=" + id}, env...)...)
	}
	good := map[string]any{"repository": "acme/shop", "ref": "refs/heads/main"}

	once := job(good, "SLIPWAY_OIDC=1")
	r := once.slipway("deploy", "-a", "shop", dir)
	if r.code() != exitDone || !strings.Contains(r.stdout.String(), "@sha256:") {
		t.Fatalf("deploy: %s", r.text())
	}
	if r := once.slipway("deploy", "-a", "shop", dir); r.code() != exitAuth || !strings.Contains(r.text(), "exchanged before") {
		t.Errorf("with the same ID token: %s", r.text())
	}
	if r := job(good, "SLIPWAY_OIDC=1").slipway("deploy", "-a", "other", dir); r.code() != exitAuth {
		t.Errorf("another app: %s", r.text())
	}
	evil := map[string]any{"repository": "evil/shop", "ref": "refs/heads/main"}
	if r := job(evil).slipway("tokens", "exchange", "--export"); r.code() != exitAuth || r.stdout.String() != "" || !strings.Contains(r.text(), `repository "evil/shop"`) {
		t.Errorf("another repository: %s", r.text())
	}
	r = job(good).slipway("tokens", "exchange")
	if r.code() != exitDone {
		t.Fatal(r.text())
	}
	token := strings.TrimSpace(r.stdout.String())
	if r := admin.with("SLIPWAY_API_TOKEN="+token).slipway("whoami", "--json"); r.code() != exitDone || !strings.Contains(r.text(), `"app":"shop"`) {
		t.Errorf("whoami: %s", r.text())
	}
	audit := admin.slipway("audit", "export", "--json")
	for _, want := range []string{"trust.create", "token.exchange", "shop-main", `not acme/shop`} {
		if !strings.Contains(audit.text(), want) {
			t.Errorf("the audit log lacks %q:\n%s", want, audit.text())
		}
	}
	for _, secret := range []string{token, d.token, "eyJ"} {
		if strings.Contains(audit.text()+d.log.String(), secret) {
			t.Errorf("a token is in the audit log or in the daemon's")
		}
	}
}
