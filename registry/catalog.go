package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/distribution/distribution/v3/registry/api/errcode"
)

// catalogPath is where clients list repositories.
const catalogPath = "/v2/_catalog"

const (
	catalogPage    = 100  // repositories in an answer to who does not say how many
	maxCatalogPage = 1000 // and at most
)

// serveCatalog lists the repositories that the caller may pull from, a page at
// a time. What it may not see does not count, nor does it show in the link to
// the next page.
func (r *Registry) serveCatalog(g *gate, c *caller, req *http.Request) {
	w := c.answer
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		_ = errcode.ServeJSON(w, errcode.ErrorCodeUnsupported)
		return
	}
	if err := g.may(req.Context(), c, "", []string{ActionCatalog}); err != nil {
		(&refusal{gate: g, err: err, scopes: []scope{scopeOf("")}}).serve(w, req)
		return
	}
	n, err := pageSize(req.URL.Query().Get("n"))
	if err != nil {
		_ = errcode.ServeJSON(w, errcode.ErrorCodePaginationNumberInvalid.WithMessage(err.Error()))
		return
	}
	names, more, err := r.visible(withLog(req.Context(), r.entry), g, c, n, req.URL.Query().Get("last"))
	if err != nil {
		(&refusal{gate: g, err: err, scopes: []scope{scopeOf("")}}).serve(w, req)
		return
	}
	if more {
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {names[len(names)-1]}}
		w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, catalogPath, next.Encode()))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string][]string{"repositories": names}) // the client is gone: nothing to tell it
}

// pageSize reads how many repositories a client wants at a time. It never gets
// more than maxCatalogPage.
func pageSize(n string) (int, error) {
	if n == "" {
		return catalogPage, nil
	}
	size, err := strconv.Atoi(n)
	if err != nil || size < 0 {
		return 0, errors.New("n must be a number")
	}
	return min(size, maxCatalogPage), nil
}

// visible returns the first n repositories after last that the caller may pull
// from, and whether there are more. The order is distribution's.
func (r *Registry) visible(ctx context.Context, g *gate, c *caller, n int, last string) (names []string, more bool, err error) {
	names = make([]string, 0, min(n, catalogPage))
	page := make([]string, catalogPage)
	for n > 0 {
		found, err := r.images.Repositories(ctx, page, last)
		end := errors.Is(err, io.EOF) || isNotFound(err)
		if err != nil && !end {
			return nil, false, fmt.Errorf("list repositories: %w", err)
		}
		for _, name := range page[:found] {
			switch ok, err := g.sees(ctx, c, name); {
			case err != nil:
				return nil, false, err
			case !ok:
			case len(names) == n:
				return names, true, nil
			default:
				names = append(names, name)
			}
		}
		if end || found == 0 {
			return names, false, nil
		}
		last = page[found-1]
	}
	return names, false, nil
}
