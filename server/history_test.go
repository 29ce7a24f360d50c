package server_test

import (
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
	"github.com/slipwayhq/slipway/server"
	"github.com/slipwayhq/slipway/server/records"
)

// A build without an image, as clients of BuildKit may ask for, says nothing
// about the app's next image.
func TestHistoryIsOfImages(t *testing.T) {
	store, err := records.Open(t.Context(), filepath.Join(t.TempDir(), "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for id, bytes := range map[string]uint64{"1": 7, "2": 0, "3": 9, "4": 0} {
		raw, err := proto.Marshal(&slipwayv1.Result{BuildId: id, RootfsBytes: bytes})
		if err != nil {
			t.Fatal(err)
		}
		b := records.Build{ID: id, Org: "acme", App: "shop", Status: records.Succeeded, Created: time.Now(), Ended: time.Now(), Result: raw}
		if _, err := store.Create(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if err := store.End(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	got, err := server.History(store)(t.Context(), "acme", "shop")
	if err != nil || len(got) != 2 || got[0].BuildId != "3" || got[1].BuildId != "1" {
		t.Errorf("%v, %v", got, err)
	}
}
