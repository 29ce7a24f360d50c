package main_test

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// lucky is a build that never makes the same twice: what is equal was not made
// again.
func lucky() tree {
	return dockerfile(
		"FROM busybox AS build", "COPY src /src", "RUN cat /src /proc/sys/kernel/random/uuid > /out",
		"FROM busybox", "WORKDIR /app", "COPY --from=build /out /app/out", "RUN cat /proc/sys/kernel/random/uuid > /app/id",
		"ENV A=b", "COPY late /app/late", `CMD ["cat", "/app/out", "/app/id", "/app/late"]`,
	).and("src", "source\n").and("late", "late\n")
}

func (r *call) warnings() []string {
	var all []string
	for _, e := range r.events() {
		if e.Type == "warning" {
			all = append(all, e.Message)
		}
	}
	return all
}

// A runner that begins with nothing takes the steps of another one from a
// registry.
func TestCacheBetweenDaemons(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	_, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	dir := lucky().write(t)
	cache, image := f.host+"/team/cache:main", f.host+"/team/shop:v1"
	first := c.deploy("shop", dir, "--push-to", image, "--cache-from", cache, "--cache-to", "type=registry,ref="+cache+",mode=max", "--cache-to", "type=inline")
	if got := first.warnings(); len(got) != 1 || !strings.Contains(got[0], cache) {
		t.Errorf("warnings %q; want one: there is no cache yet", got)
	}
	printed := runImage(t, f.image("team/shop:v1"))

	t.Run("registry", func(t *testing.T) {
		d, _ := startWithBusybox(t, "--insecure-registry", f.host)
		c := d.client()
		c.login(f.host, foreignUser, foreignPassword)
		again := c.deploy("shop", freshCopy(t, dir), "--push-to", f.host+"/team/shop:v2", "--cache-from", cache, "--cache-to", "type=inline")
		checkUnchanged(t, "on another daemon", first, again)
		if got := again.warnings(); len(got) != 0 {
			t.Errorf("warnings %q", got)
		}
		if got := runImage(t, f.image("team/shop:v2")); got != printed {
			t.Errorf("the image prints %q, want %q", got, printed)
		}
		if !strings.Contains(again.log(), "from "+cache) {
			t.Errorf("nothing says where the steps come from:\n%s", again.log())
		}
		// A changed file: what comes before it is not run.
		other := freshCopy(t, dir)
		writeFile(t, other, "late", "later\n")
		d2, _ := startWithBusybox(t, "--insecure-registry", f.host)
		c2 := d2.client()
		c2.login(f.host, foreignUser, foreignPassword)
		late := c2.deploy("shop", other, "--push-to", f.host+"/team/shop:v3", "--cache-from", cache)
		if ran := ranSteps(late); !slices.Equal(ran, []string{"COPY late /app/late"}) {
			t.Errorf("ran %q", ran)
		}
		if got := runImage(t, f.image("team/shop:v3")); got != strings.Replace(printed, "late", "later", 1) {
			t.Errorf("the image prints %q", got)
		}
	})
	t.Run("inline", func(t *testing.T) {
		d, _ := startWithBusybox(t, "--insecure-registry", f.host)
		c := d.client()
		c.login(f.host, foreignUser, foreignPassword)
		r := c.deploy("shop", freshCopy(t, dir), "--cache-from", image)
		// The stage that the image has nothing of runs, and makes another
		// file; what came before that in the image's own stage is there.
		if ran := ranSteps(r); slices.Contains(ran, "WORKDIR /app") || len(ran) != 5 {
			t.Errorf("ran %q", ran)
		}
		d.pull(r)
	})
}

// The daemon's own registry keeps caches as well, and they outlive its own
// cache.
func TestCacheInTheOwnRegistry(t *testing.T) {
	t.Parallel()
	d, c := startWithBusybox(t)
	dir := lucky().write(t)
	cache := d.http + "/caches/shop:main"
	first := c.deploy("shop", dir, "--cache-to", "type=registry,ref="+cache+",mode=max")
	c.slipway("cache", "prune", "--all")
	again := c.deploy("shop", freshCopy(t, dir), "--cache-from", cache)
	checkUnchanged(t, "after a prune", first, again)
	if got := again.warnings(); len(got) != 0 {
		t.Errorf("warnings %q", got)
	}
}

// Where steps may not go is known before anything runs; a cache that cannot be
// written later on is a warning.
func TestCacheThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	d, c := startWithBusybox(t, "--insecure-registry", f.host)
	dir := lucky().write(t)
	ref := "type=registry,ref=" + f.host + "/team/cache"
	denied := c.deployFails(exitRegistry, "registry_denied", "shop", dir, "--cache-to", ref)
	if ran := ranSteps(denied); len(ran) > 0 || !strings.Contains(denied.Error.Message, "/team/cache:latest") {
		t.Errorf("ran %q, message %s", ran, denied.Error.Message)
	}
	c.deployFails(exitUser, "invalid_argument", "shop", dir, "--cache-to", "type=registry,ref="+f.host+"/UPPER")
	c.deployFails(exitUser, "invalid_argument", "shop", dir, "--cache-to", "type=registry")
	c.deployFails(exitUser, "invalid_argument", "shop", dir, "--cache-from", f.host+"/UPPER")

	c.login(f.host, foreignUser, foreignPassword)
	f.mu.Lock()
	f.refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	f.mu.Unlock()
	r := d.client().with("DOCKER_CONFIG="+c.home+"/.docker").deploy("shop", dir, "--cache-to", ref)
	if got := r.warnings(); len(got) != 1 || !strings.Contains(got[0], "/team/cache:latest was not written") || !strings.Contains(got[0], "403") {
		t.Errorf("warnings %q", got)
	}
	d.pull(r)
}

// A cache that cannot be asked costs a moment, not the build.
func TestCacheThatIsAway(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	d, c := startWithBusybox(t, "--insecure-registry", f.host)
	away := freeAddr(t)
	begun := time.Now()
	r := c.deploy("shop", lucky().write(t), "--cache-from", away+"/team/cache", "--cache-from", f.host+"/team/cache")
	if got := strings.Join(r.warnings(), "\n"); !strings.Contains(got, away+"/team/cache") || !strings.Contains(got, f.host+"/team/cache") {
		t.Errorf("warnings %s; want one for each cache", got)
	}
	if spent := time.Since(begun); spent > time.Minute {
		t.Errorf("took %v", spent)
	}
	d.pull(r)
}

// Layers of the image come side by side, though their steps are looked at one
// after the other.
func TestCachedLayersComeTogether(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	_, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	dir := dockerfile("FROM busybox", "RUN echo 1 > /1", "ENV A=b", "RUN echo 2 > /2", "RUN echo 3 > /3").write(t)
	cache := f.host + "/team/cache:main"
	first := c.deploy("shop", dir, "--cache-to", "type=registry,ref="+cache)

	d, _ := startWithBusybox(t, "--insecure-registry", f.host)
	c = d.client()
	c.login(f.host, foreignUser, foreignPassword)
	asked := make(chan struct{})
	var once sync.Once
	f.mu.Lock()
	f.refuse = func(_ http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method != http.MethodGet || r.Header.Get("Authorization") == "":
		case strings.HasSuffix(r.URL.Path, first.Layers[3].Digest):
			once.Do(func() { close(asked) })
		case strings.HasSuffix(r.URL.Path, first.Layers[1].Digest):
			select {
			case <-asked:
			case <-time.After(30 * time.Second):
				t.Error("the first layer came before anybody asked for the third")
			}
		}
		return false
	}
	f.mu.Unlock()
	checkUnchanged(t, "side by side", first, withoutPushes(c.deploy("shop", dir, "--cache-from", cache)))
}

// withoutPushes takes for present what was new to a registry.
func withoutPushes(d *deployed) *deployed {
	for i := range d.Layers {
		d.Layers[i].Pushed = "present"
	}
	return d
}

// A cache beside the image costs no upload: its layers are mounted.
func TestCacheMountsTheImagesLayers(t *testing.T) {
	t.Parallel()
	f := startForeign(t, false)
	_, c := startWithBusybox(t, "--insecure-registry", f.host)
	c.login(f.host, foreignUser, foreignPassword)
	var mu sync.Mutex
	sent := map[string]bool{} // uploads that got bytes
	f.mu.Lock()
	f.refuse = func(_ http.ResponseWriter, r *http.Request) bool {
		if (r.Method == http.MethodPatch || r.Method == http.MethodPut) && strings.Contains(r.URL.Path, "/team/cache/blobs/uploads/") {
			mu.Lock()
			defer mu.Unlock()
			sent[r.URL.Path] = true
		}
		return false
	}
	f.mu.Unlock()
	dir := dockerfile("FROM busybox", "RUN echo 1 > /1", "RUN echo 2 > /2").write(t)
	c.deploy("shop", dir, "--push-to", f.host+"/team/shop:v1", "--cache-to", "type=registry,ref="+f.host+"/team/cache:main")
	mu.Lock()
	defer mu.Unlock()
	if len(sent) != 1 {
		t.Errorf("%d blobs were uploaded for the cache, want its document only", len(sent))
	}
}
