package main_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/tokens"
)

// as returns the same user with another token.
func (c *client) as(token string) *client { return c.with("SLIPWAY_API_TOKEN=" + token) }

// mustRun runs slipway, which must do what it is told.
func (c *client) mustRun(args ...string) *call {
	c.t.Helper()
	r := c.slipway(args...)
	if r.code() != exitDone {
		c.t.Fatalf("%q: %s", args, r.text())
	}
	return r
}

// A build ends with the token that started it, and its container with it.
func TestRevokedTokenEndsItsBuild(t *testing.T) {
	d := startDaemon(t)
	d.push(busyboxBase(t), "library/busybox")
	admin := d.client()
	id, value := admin.issue("tokens", "create", "deploy", "-a", "shop")
	dir := tree{"Dockerfile": "FROM busybox\nRUN echo begun && sleep 600\n"}.write(t)
	build := admin.as(value).startDeploy("shop", dir)
	build.untilLog("begun")
	admin.mustRun("tokens", "revoke", id)
	begun := time.Now()
	if code := build.wait(time.Minute); code != exitAuth || !strings.Contains(build.text(), "revoked") {
		t.Errorf("exit code %d: %s", code, build.text())
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("it went on for %v", took)
	}
	poll(t, 20*time.Second, "the container to end", func() bool { return len(d.containers()) == 0 })
	if r := admin.as(value).slipway("whoami"); r.code() != exitAuth || !strings.Contains(r.text(), "token revoked") {
		t.Errorf("whoami: %s", r.text())
	}
}

// What was said of tokens is true after the daemon was killed.
func TestTokensSurviveAKill(t *testing.T) {
	d := startDaemon(t)
	admin := d.client()
	kept, keptValue := admin.issue("tokens", "create", "org", "--name", "kept")
	ended, endedValue := admin.issue("tokens", "create", "org", "--name", "ended")
	admin.mustRun("tokens", "revoke", ended)
	d.signal(syscall.SIGKILL)
	<-d.ended
	d.start()
	if r := admin.as(keptValue).slipway("whoami", "--json"); r.code() != exitDone || !strings.Contains(r.stdout.String(), kept) {
		t.Errorf("the token that was made: %s", r.text())
	}
	if r := admin.as(endedValue).slipway("whoami"); r.code() != exitAuth {
		t.Errorf("the token that was revoked: %s", r.text())
	}
	if r := admin.slipway("tokens", "delete", kept); r.code() != exitUser {
		t.Errorf("a good token was deleted: %s", r.text())
	}
	admin.mustRun("tokens", "delete", ended)
	var actions []string
	for line := range strings.Lines(admin.mustRun("audit", "export", "--json").stdout.String()) {
		var entry struct{ Action, Resource string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if strings.Contains(entry.Resource, ended) {
			actions = append(actions, entry.Action)
		}
	}
	if want := []string{"token.create", "token.revoke", "token.delete"}; !slices.Equal(actions, want) {
		t.Errorf("the audit log has %v, want %v", actions, want)
	}
}

// Every service of a daemon is known here, and none lets in who should not be.
func TestEveryServiceWantsAToken(t *testing.T) {
	d := startDaemon(t)
	admin := d.client()
	revoked, revokedValue := admin.issue("tokens", "create", "org")
	admin.mustRun("tokens", "revoke", revoked)
	_, exec := admin.issue("tokens", "create", "machine-exec", "-a", "shop", "--command", "true")
	cc, err := grpc.NewClient(d.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	descs := map[string]grpc.ServiceDesc{}
	for _, s := range []grpc.ServiceDesc{
		controlapi.Control_ServiceDesc, gateway.LLBBridge_ServiceDesc, contentapi.Content_ServiceDesc,
		slipwayv1.BuildService_ServiceDesc, slipwayv1.CacheService_ServiceDesc, slipwayv1.SystemService_ServiceDesc, slipwayv1.TokenService_ServiceDesc,
		slipwayv1.OrgService_ServiceDesc, slipwayv1.EnvironmentService_ServiceDesc, slipwayv1.ShellService_ServiceDesc,
	} {
		descs[s.ServiceName] = s
	}
	for _, name := range d.services(cc) {
		if _, known := descs[name]; !known && !strings.HasPrefix(name, "grpc.health.") && !strings.HasPrefix(name, "grpc.reflection.") {
			t.Errorf("service %s is tried by nobody", name)
		}
	}
	for name, desc := range descs {
		for _, method := range methodsOf(desc) {
			full := "/" + name + "/" + method
			if full == slipwayv1.TokenService_ExchangeToken_FullMethodName {
				continue // takes tokens of others
			}
			for what, value := range map[string]string{"none": "", "revoked": revokedValue, "forged": tokens.New("sa_"), "cut": d.token[:20], "doubled": d.token + d.token} {
				err := callWith(t, cc, full, value)
				if c := status.Code(err); c != codes.Unauthenticated && c != codes.ResourceExhausted {
					t.Errorf("%s, token %s: %v", full, what, err)
				}
			}
			if err := callWith(t, cc, full, d.token); status.Code(err) == codes.PermissionDenied {
				t.Errorf("%s refuses the admin: %v", full, err)
			}
			if _, ours := strings.CutPrefix(name, "slipway."); !ours && status.Code(callWith(t, cc, full, exec)) != codes.PermissionDenied {
				t.Errorf("%s lets a token for one command in", full)
			}
		}
	}
}

// services asks a daemon what it serves.
func (d *daemon) services(cc *grpc.ClientConn) []string {
	d.t.Helper()
	ctx := metadata.AppendToOutgoingContext(d.t.Context(), "authorization", "Bearer "+d.token)
	s, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
	if err == nil {
		err = s.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	}
	if err != nil {
		d.t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, s := range m.GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	if len(names) < 10 {
		d.t.Fatalf("it serves %v only", names)
	}
	return names
}

func methodsOf(desc grpc.ServiceDesc) (names []string) {
	for _, m := range desc.Methods {
		names = append(names, m.MethodName)
	}
	for _, s := range desc.Streams {
		names = append(names, s.StreamName)
	}
	return names
}

// callWith calls a method of any kind with an empty message.
func callWith(t *testing.T, cc *grpc.ClientConn, method, token string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = s.SendMsg(&emptypb.Empty{})
	_ = s.CloseSend()
	return s.RecvMsg(&emptypb.Empty{})
}

// Every route of the HTTP port asks for a token, or has a reason not to.
func TestEveryRouteWantsAToken(t *testing.T) {
	d := startDaemon(t)
	admin := d.client()
	revoked, value := admin.issue("tokens", "create", "org")
	admin.mustRun("tokens", "revoke", revoked)
	for _, path := range []string{
		"/v2/", "/v2/_catalog", "/v2/shop/tags/list", "/v2/shop/manifests/v1", "/v2/shop/blobs/sha256:" + strings.Repeat("0", 64), "/v2/shop/blobs/uploads/x",
	} {
		for what, secret := range map[string]string{"none": "", "revoked": value, "forged": tokens.New("sa_"), "cut": d.token[:20]} {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete} {
				req, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.http+path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				if secret != "" {
					req.SetBasicAuth("x", secret)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusMethodNotAllowed {
					t.Errorf("%s %s, token %s: %s %s", method, path, what, resp.Status, body)
				}
			}
		}
	}
}
