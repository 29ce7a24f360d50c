package main

import "github.com/slipwayhq/slipway/registry"

// RegistryAccess is how the daemon decides who may do what in its registry, for
// tests that bring tokens of their own.
func RegistryAccess(p principals, owner ownerFunc) registry.Access {
	return registryAccess{principals: p, owner: owner}
}
