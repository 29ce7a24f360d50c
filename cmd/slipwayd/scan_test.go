package main_test

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// A bell counts who connects to a port of this machine.
type bell struct {
	addr, host, port string
	rung             atomic.Int64
}

func startBell(t *testing.T) *bell {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bell{addr: l.Addr().String()}
	b.host, b.port, _ = strings.Cut(b.addr, ":")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.rung.Add(1)
			fmt.Fprint(c, "SSH-2.0-bell\r\n")
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return b
}

// However a Dockerfile names an SSH server, nobody asks it for its key: it could
// be the daemon's own machine.
func TestNobodyAsksForSSHKeys(t *testing.T) {
	t.Parallel()
	d, deploys := startWithBusybox(t)
	c := d.stock()
	b := startBell(t)
	url := "ssh://git@" + b.addr + "/x.git"
	trigger, err := mutate.Config(empty.Image, v1.Config{OnBuild: []string{"ADD " + url + " /x"}})
	if err != nil {
		t.Fatal(err)
	}
	d.push(trigger, "trigger:1")
	for name, lines := range map[string][]string{
		"plain":            {"FROM scratch", "ADD " + url + " /x"},
		"argument":         {"FROM scratch", "ARG U=" + url, "ADD $U /x"},
		"before FROM":      {"ARG U=" + url, "FROM scratch", "ARG U", "ADD ${U} /x"},
		"host":             {"FROM scratch", "ARG H=" + b.addr, "ADD ssh://git@${H}/x.git /x"},
		"scheme":           {"FROM scratch", "ARG S=s", "ADD s${S}h://git@" + b.addr + "/x.git /x"},
		"environment":      {"FROM scratch", "ENV U=" + url, `ADD "${U}" /x`},
		"quotes":           {"FROM scratch", `ADD s's'h://git@` + b.addr + `/x.git /x`},
		"backslash":        {"FROM scratch", `ADD s\sh://git@` + b.addr + `/x.git /x`},
		"default":          {"FROM scratch", "ADD ${U:-" + url + "} /x"},
		"JSON":             {"FROM scratch", "ARG U=" + url, `ADD ["$U", "/x"]`},
		"continued line":   {"FROM scratch", `AD\`, `D ` + url + " /x"},
		"backtick":         {"# escape=`", "FROM scratch", "ADD s`sh://git@" + b.addr + "/x.git /x"},
		"capitals":         {"FROM scratch", "ARG U=SSH://git@" + b.addr + "/x.git", "ADD $U /x"},
		"own trigger":      {"FROM scratch AS base", "ONBUILD ADD " + url + " /x", "FROM base", "COPY Dockerfile /y"},
		"trigger of image": {"FROM " + d.http + "/trigger:1", "COPY Dockerfile /y"},
		"unused stage":     {"FROM scratch AS other", "ARG U=" + url, "ADD $U /x", "FROM scratch", "COPY --from=other /x /x"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := dockerfile(lines...).write(t)
			c.build(dir).refused(t, "over https and http only", "write the repository's https:// address")
			r := deploys.tryDeploy("asks", dir, "--buildkit")
			if r.code() != exitUser || r.Error == nil || r.Error.Code != "not_supported" || !strings.Contains(r.Error.Hint, "https://") {
				t.Errorf("deploy: exit code %d, %+v", r.code(), r.Error)
			}
			if n := b.rung.Swap(0); n > 0 {
				t.Errorf("%d connections came", n)
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		c.buildctl("build", "--frontend", "dockerfile.v0", "--opt", "context="+url).refused(t, "over https and http only")
		c.buildctl("build", "--frontend", "dockerfile.v0", "--opt", "context:other="+url, "--local", "context=.", "--local", "dockerfile="+dockerfile("FROM other").write(t)).refused(t, "other")
		if n := b.rung.Swap(0); n > 0 {
			t.Errorf("%d connections came", n)
		}
	})
	// What only might name one works as ever.
	t.Run("file", func(t *testing.T) {
		dir := dockerfile("FROM busybox", "ARG F=data", "ADD ${F} /there", "RUN cat /there").and("data", "DATA\n").write(t)
		r := c.build(dir, "--output", "type=image,push=true,name="+d.http+"/file:1").ok(t)
		if got := fileOf(t, c.image(t, "file:1", r), "there"); got != "DATA\n" {
			t.Errorf("there is %q", got)
		}
		again := c.build(dir, "--output", "type=image,push=true,name="+d.http+"/file:1").ok(t)
		if again.digest(t) != r.digest(t) || !strings.Contains(again.text, "CACHED") {
			t.Errorf("unchanged: %s", again.text)
		}
		broken := dockerfile("FROM busybox", "ARG F=data", "ADD ${F} /there", "COPY gone /gone").and("data", "DATA\n").write(t)
		c.build(broken).refused(t, "Dockerfile:4", "gone")
		if r := deploys.tryDeploy("file", broken, "--buildkit"); r.Error == nil || r.Error.Line != 4 || r.Error.Code != "file_not_found" {
			t.Errorf("deploy: %+v", r.Error)
		}
	})
}
