package pushd_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/slipwayhq/slipway/pushd"
	"github.com/slipwayhq/slipway/pushd/targettest"
)

const place = host + "/" + repo

func openJournal(t testing.TB, dir string) *pushd.JournalDir {
	t.Helper()
	j, err := pushd.OpenJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func anySession(pushd.Session) bool { return true }

func aSession(id string) pushd.Session {
	return pushd.Session{
		ID: id, Target: place, Location: "https://" + host + "/v2/upload?_state=secret",
		Offset: 100, MinChunk: 5, Digest: digest.FromString("blob"),
		Head: pushd.Sum{Bytes: 10, CRC: 1}, Sum: pushd.Sum{Bytes: 100, CRC: 2},
	}
}

func TestJournalDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "push")
	j := openJournal(t, dir)
	j.Save(t.Context(), aSession("A"))
	if _, ok := j.Take(t.Context(), place, anySession); ok {
		t.Error("a session in use was given away")
	}

	// Another process finds it, once.
	j = openJournal(t, dir)
	if _, ok := j.Take(t.Context(), "elsewhere.test/x", anySession); ok {
		t.Error("took a session of another target")
	}
	if _, ok := j.Take(t.Context(), place, func(pushd.Session) bool { return false }); ok {
		t.Error("took a session that does not match")
	}
	got, ok := j.Take(t.Context(), place, anySession)
	if want := aSession("A"); !ok || got != want {
		t.Errorf("took %+v, %v; want %+v", got, ok, want)
	}
	if _, ok := j.Take(t.Context(), place, anySession); ok {
		t.Error("took a session twice")
	}
	j.Leave(t.Context(), "A")

	// Of two the one that came further.
	further := aSession("B")
	further.Offset = 101
	j.Save(t.Context(), further)
	j.Leave(t.Context(), "B")
	if got, _ := j.Take(t.Context(), place, anySession); got.ID != "B" {
		t.Errorf("took %s, want B", got.ID)
	}
	j.Drop(t.Context(), "B")
	j.Drop(t.Context(), "A")
	if _, ok := openJournal(t, dir).Take(t.Context(), place, anySession); ok {
		t.Error("a session that was dropped is there")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("files left: %v", left)
	}
}

func TestJournalDirIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "push")
	j := openJournal(t, dir)
	for i, location := range []string{
		"https://user:word@" + host + "/x", "https://user@" + host + "/x",
		"ftp://" + host + "/x", "/v2/x", "", "https://" + host + "/" + strings.Repeat("x", 100<<10),
	} {
		s := aSession(fmt.Sprint("S", i))
		s.Location = location
		j.Save(t.Context(), s)
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("kept %v", files)
	}
	j.Save(t.Context(), aSession("A"))
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "A.json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

// What a crash leaves is no record, and goes.
func TestJournalDirSurvivesDamage(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	j.Save(t.Context(), aSession("A"))
	good, err := os.ReadFile(filepath.Join(dir, "A.json"))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{
		"empty.json": "", "cut.json": string(good[:len(good)/2]), "null.json": "null",
		"B.json":     string(good), // of A
		"C.json":     strings.Replace(string(good), `"id":"A"`, `"id":"../C"`, 1),
		"D.json":     strings.NewReplacer(`"id":"A"`, `"id":"D"`, "https://", "https://u:p@").Replace(string(good)),
		"E.json":     strings.NewReplacer(`"id":"A"`, `"id":"E"`, `"offset":100`, `"offset":-1`).Replace(string(good)),
		"F.json":     strings.NewReplacer(`"id":"A"`, `"id":"F"`, "sha256:", "sha256:zz").Replace(string(good)),
		"A.json.tmp": string(good),
	}
	for name, text := range bad {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j = openJournal(t, dir)
	if got, ok := j.Take(t.Context(), place, anySession); !ok || got != aSession("A") {
		t.Errorf("took %+v, %v", got, ok)
	}
	if got, ok := j.Take(t.Context(), place, anySession); ok {
		t.Errorf("took %+v of a damaged file", got)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("files left: %v", files)
	}
}

func TestJournalDirIsBounded(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		j := openJournal(t, dir)
		const most = 1000
		for i := range most + 20 {
			j.Save(t.Context(), aSession(fmt.Sprint("S", i)))
			j.Leave(t.Context(), fmt.Sprint("S", i))
			time.Sleep(time.Second)
		}
		if files, _ := os.ReadDir(dir); len(files) != most {
			t.Errorf("%d files, want %d", len(files), most)
		}
		if _, ok := j.Take(t.Context(), place, func(s pushd.Session) bool { return s.ID == "S0" }); ok {
			t.Error("the oldest is still there")
		}
		if _, ok := j.Take(t.Context(), place, func(s pushd.Session) bool { return s.ID == "S1019" }); !ok {
			t.Error("the newest is not there")
		}
		time.Sleep(8 * 24 * time.Hour)
		if s, ok := j.Take(t.Context(), place, anySession); ok {
			t.Errorf("took %s after more than a week", s.ID)
		}
		openJournal(t, dir)
		if files, _ := os.ReadDir(dir); len(files) != 0 {
			t.Errorf("%d files after more than a week", len(files))
		}
	})
}

// A journal that cannot be written costs nothing but its use.
func TestJournalDirThatCannotBeWritten(t *testing.T) {
	g := newRegistry(t)
	dir := filepath.Join(t.TempDir(), "push")
	data := targettest.Noise(size, 1)
	synctest.Test(t, func(t *testing.T) {
		g.start(t)
		j := openJournal(t, dir)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := g.target(t, &pushd.HTTPOptions{Journal: j}).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); err != nil {
			t.Fatal(err)
		}
		g.mustHave(t, data)
	})
}

func TestJournalDirConcurrently(t *testing.T) {
	j := openJournal(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				s := aSession(fmt.Sprint("S", i))
				s.Offset = int64(n + 100)
				j.Save(t.Context(), s)
				if n%7 == 0 {
					j.Drop(t.Context(), s.ID)
				}
				j.Leave(t.Context(), s.ID)
				if s, ok := j.Take(t.Context(), place, anySession); ok {
					j.Leave(t.Context(), s.ID)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzJournalDir(f *testing.F) {
	f.Add([]byte(`{"id":"A","target":"registry.test/acme/web","location":"https://registry.test/x","offset":1,"digest":"` + digest.FromString("x").String() + `","saved":"` + time.Now().Format(time.RFC3339) + `"}`))
	f.Add([]byte(`{"id":"A","target":"t","location":"https://h/","head":{"bytes":1},"sum":{"bytes":2}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "A.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, ok := openJournal(t, dir).Take(t.Context(), place, anySession)
		if ok && (s.ID != "A" || s.Offset < 0 || !strings.HasPrefix(s.Location, "http") || strings.Contains(s.Location[:strings.LastIndex(s.Location, "/")+1], "@"+host)) {
			t.Errorf("took %+v", s)
		}
		if files, _ := os.ReadDir(dir); (len(files) == 1) != ok && len(files) != 1 {
			t.Errorf("took %v, %d files", ok, len(files))
		}
	})
}

// After a restart only the rest is sent: of a finished blob, of one that was
// being made, also when it is made again.
func TestResumeAfterRestart(t *testing.T) {
	data := targettest.Noise(size, 3)
	changed := append([]byte("x"), data[1:]...)
	late := append([]byte(nil), data...)
	late[6*chunk+5]++
	for _, tc := range []struct {
		name   string
		before string // how the first process saw the blob: finished, finishing, growing
		after  string
		data   []byte // that the second process has
		broken int    // chunk in which the first process is killed
		sent   int64  // by the second at most
	}{
		{"finished", "finished", "finished", data, 8, size - 7*chunk - 1000},
		{"finished in the first chunk", "finished", "finished", data, 1, size - 1000},
		{"completed while a chunk was sent", "finishing", "finished", data, 4, size - 3*chunk - 1000},
		{"made again, then", "finishing", "growing", data, 4, size - 3*chunk - 1000},
		{"made again", "growing", "growing", data, 4, size - 3*chunk - 1000},
		{"made again and ready at once", "growing", "finished growing", data, 4, size - 3*chunk - 1000},
		{"made anew", "growing", "growing", changed, 4, size},
		{"made anew from the middle on", "growing", "growing", late, 8, size},
		{"another, finished", "finished", "finished", changed, 8, size},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := newFileRegistry(t)
			dir := t.TempDir()
			first, second := targettest.NewSpool(t), targettest.NewSpool(t)
			first.Write(data)
			var known, then ocispec.Descriptor
			if tc.before == "finished" {
				known = first.Commit(t)
			}
			if strings.HasPrefix(tc.after, "finished") {
				second.Write(tc.data)
				then = second.Commit(t)
				if tc.after != "finished" {
					then = ocispec.Descriptor{}
				}
			}
			synctest.Test(t, func(t *testing.T) {
				stuck := make(chan struct{})
				g.faults = []*fault{{class: "chunk", from: tc.broken, do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 1000), errReader{}))
					next.ServeHTTP(&recorder{header: make(http.Header)}, r)
					<-stuck
					hangUp(w)
				}}}
				g.start(t)
				o := &pushd.HTTPOptions{Journal: openJournal(t, dir)}
				died := make(chan struct{})
				go func() {
					defer close(died)
					_, _ = g.target(t, o).Upload(t.Context(), known, first, pushd.Ignore())
				}()
				synctest.Wait()
				if tc.before == "finishing" {
					first.Commit(t)
					synctest.Wait()
				}
				// Of the killed process the files are left as they are now.
				left := copyDir(t, dir)
				g.faults = nil

				done := make(chan struct{})
				if then.Digest == "" && tc.after == "growing" {
					go func() {
						defer close(done)
						for p := tc.data; len(p) > 0; p = p[min(len(p), 100_000):] {
							second.Write(p[:min(len(p), 100_000)])
							time.Sleep(time.Millisecond)
						}
						second.Commit(t)
					}()
				} else {
					close(done)
				}
				w := &watcher{}
				j := openJournal(t, left)
				if _, err := g.target(t, &pushd.HTTPOptions{Journal: j}).Upload(t.Context(), then, second, w); err != nil {
					t.Fatal(err)
				}
				<-done
				g.mustHave(t, tc.data)
				if w.sent > tc.sent {
					t.Errorf("sent %d bytes, want at most %d", w.sent, tc.sent)
				}
				if files, _ := os.ReadDir(left); len(files) != 0 && tc.sent != size {
					t.Errorf("%d sessions are still kept", len(files))
				}
				first.Abort(errors.New("killed"))
				close(stuck)
				<-died
			})
		})
	}
}

func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	files, _ := os.ReadDir(dir)
	for _, f := range files { // CopyFS gives them the umask's mode
		_ = os.Chmod(filepath.Join(to, f.Name()), 0o600)
	}
	return to
}

// A push that gives up on a registry that is away leaves its session to the
// next in the same process.
func TestSessionIsLeftToTheNext(t *testing.T) {
	g := newRegistry(t)
	data := targettest.Noise(size, 3)
	src := targettest.Finished(t, data)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "chunk", from: 8, to: -1, do: answer(503, "")}}
		g.start(t)
		o := &pushd.HTTPOptions{Journal: openJournal(t, dir), Retries: -1}
		if _, err := g.target(t, o).Upload(t.Context(), described(data), src, pushd.Ignore()); !errors.Is(err, pushd.ErrUnavailable) {
			t.Fatalf("Upload: %v", err)
		}
		g.faults = nil
		w := &watcher{}
		if _, err := g.target(t, o).Upload(t.Context(), described(data), src, w); err != nil {
			t.Fatal(err)
		}
		g.mustHave(t, data)
		if w.sent != size-7*chunk {
			t.Errorf("sent %d bytes, want %d", w.sent, size-7*chunk)
		}
		if files, _ := os.ReadDir(dir); len(files) != 0 {
			t.Error("the session is still kept")
		}
	})
}

// Small blobs, such as configs, are not worth a record.
func TestSmallBlobsAreNotNoted(t *testing.T) {
	g := newRegistry(t)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		g.faults = []*fault{{class: "finish", from: 1, to: -1, do: answer(503, "")}}
		g.start(t)
		o := &pushd.HTTPOptions{Journal: openJournal(t, dir), Retries: -1}
		for size, want := range map[int]int{1000: 0, 1 << 20: 1} {
			data := targettest.Noise(size, 1)
			if _, err := g.target(t, o).Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); !errors.Is(err, pushd.ErrUnavailable) {
				t.Fatalf("Upload: %v", err)
			}
			files, _ := os.ReadDir(dir)
			if len(files) != want {
				t.Errorf("%d sessions kept of a blob of %d bytes, want %d", len(files), size, want)
			}
			for _, f := range files {
				_ = os.Remove(filepath.Join(dir, f.Name()))
			}
		}
	})
}

// The address of a session may not lead credentials from HTTPS to HTTP.
func TestJournalIsNotTrustedWithPlainHTTP(t *testing.T) {
	j := openJournal(t, t.TempDir())
	data := []byte("data")
	s := aSession("A")
	s.Location, s.Digest = "http://"+host+"/v2/upload", digest.FromBytes(data)
	j.Save(t.Context(), s)
	j.Leave(t.Context(), "A")
	synctest.Test(t, func(t *testing.T) {
		asked := make(map[string]bool)
		tr := roundTripper(func(r *http.Request) (*http.Response, error) {
			asked[r.URL.Scheme] = true
			return nil, errors.New("nobody there")
		})
		target, err := pushd.NewHTTP("https://"+place, &pushd.HTTPOptions{Journal: j, Transport: tr, Retries: -1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := target.Upload(t.Context(), described(data), pushd.Bytes(data), pushd.Ignore()); !errors.Is(err, pushd.ErrUnavailable) {
			t.Errorf("Upload: %v", err)
		}
		if asked["http"] || !asked["https"] {
			t.Errorf("asked by %v", asked)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
