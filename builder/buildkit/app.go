package buildkit

import "github.com/moby/buildkit/cache"

// keyApp is where a record of BuildKit notes whose it is.
const keyApp = "slipway.app"

// setApp notes the app that a record belongs to.
func setApp(md cache.RefMetadata, app string) error {
	return md.SetString(keyApp, app, keyApp+":"+app)
}
