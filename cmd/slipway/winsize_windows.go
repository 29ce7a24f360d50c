package main

import "context"

// watchSize does nothing: a console tells its size to who reads its events.
func watchSize(ctx context.Context, _ func()) { <-ctx.Done() }
