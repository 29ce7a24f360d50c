package web

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path/filepath"
	"time"
)

// An asset is a file that pages load.
type asset struct {
	data []byte
	typ  string
	sum  string // of its content: part of its address, so that it can be kept for ever
}

// readAssets returns the embedded files by name.
func readAssets() map[string]asset {
	all := map[string]asset{}
	entries, err := fs.ReadDir(files, "assets")
	if err != nil {
		panic(err) // they are embedded
	}
	for _, e := range entries {
		data, err := fs.ReadFile(files, "assets/"+e.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(data)
		all[e.Name()] = asset{data, mime.TypeByExtension(filepath.Ext(e.Name())), hex.EncodeToString(sum[:6])}
	}
	return all
}

// assetURL returns the address of a file.
func (s *site) assetURL(name string) string { return "/assets/" + name + "?" + s.assets[name].sum }

// asset serves a file.
func (v *visit) asset() error {
	name := v.r.PathValue("file")
	a, ok := v.assets[name]
	if !ok {
		return v.nowhere()
	}
	h := v.w.Header()
	h.Set("Content-Type", a.typ)
	h.Set("ETag", `"`+a.sum+`"`)
	if v.r.URL.RawQuery == a.sum {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "no-cache")
	}
	http.ServeContent(v.w, v.r, name, time.Time{}, bytes.NewReader(a.data))
	return nil
}
