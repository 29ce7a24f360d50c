// Package client talks to a Slipway daemon: it connects, runs a build and
// answers what the daemon asks meanwhile, watches builds across lost
// connections, and turns whatever goes wrong into one [Error] with an exit
// code.
//
// Read [Client.Build] first; everything else serves it.
package client
