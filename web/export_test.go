package web

// A Route is what tests see of one.
type Route struct {
	Method, Pattern string
	Open, Session   bool
}

// Routes returns all of them.
func Routes() []Route {
	var out []Route
	for _, r := range (&site{}).routes() {
		out = append(out, Route{r.method, r.pattern, r.access == open, r.access == session})
	}
	return out
}
