// Package slipway is the root of a remote image build service. It holds no
// code; its test keeps the module's packages apart.
//
// The daemon is [github.com/slipwayhq/slipway/cmd/slipwayd], the client
// [github.com/slipwayhq/slipway/cmd/slipway]. ARCHITECTURE.md has the way of a
// build through the packages.
package slipway
