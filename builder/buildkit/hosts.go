package buildkit

import (
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Registries says how images are reached.
type Registries struct {
	Mirrors  map[string][]*url.URL // by the host in an image's name
	Insecure []string              // hosts that may be spoken to in plain HTTP

	// Direct reaches the hosts that images and the operator name; Redirect
	// those that they send to.
	Direct, Redirect http.RoundTripper

	// Local reads the daemon's own registry, in this process. Who writes to it
	// does so as everybody else, by the scheme that it is served with.
	Local       http.RoundTripper
	LocalScheme string

	// LocalWrite writes to one repository of it, in this process, for callers
	// that were found to have the right. Nil: they do as everybody else.
	LocalWrite func(repository string) http.RoundTripper
	IsLocal    func(host string) bool
}

// For returns the same registries with another way to read the daemon's own.
func (r *Registries) For(local http.RoundTripper) *Registries {
	other := *r
	other.Local = local
	return &other
}

// Hosts is what BuildKit asks for the places of a host's images.
func (r *Registries) Hosts(host string) ([]docker.RegistryHost, error) {
	if r.IsLocal(host) {
		write := docker.RegistryHost{Client: r.client(), Host: host, Scheme: r.LocalScheme, Path: "/v2", Capabilities: docker.HostCapabilityPush}
		return []docker.RegistryHost{r.own(host), write}, nil
	}
	var out []docker.RegistryHost
	for _, m := range r.Mirrors[host] {
		out = append(out, r.mirror(m))
	}
	at := docker.RegistryHost{
		Client: r.client(), Host: host, Scheme: "https", Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	}
	if host == "docker.io" {
		at.Host = "registry-1.docker.io"
	}
	if r.plain(host) {
		at.Scheme = "http"
	}
	return append(out, at), nil
}

func (r *Registries) mirror(u *url.URL) docker.RegistryHost {
	if r.IsLocal(u.Host) {
		return r.own(u.Host)
	}
	return docker.RegistryHost{
		Client: r.client(), Host: u.Host, Scheme: u.Scheme, Path: path.Join("/v2", u.Path),
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
}

// own is the daemon's registry, to read.
func (r *Registries) own(host string) docker.RegistryHost {
	return docker.RegistryHost{
		Client: &http.Client{Transport: r.Local}, Host: host, Scheme: "http", Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
}

// Own returns the places to write to of "host/path", for callers that may push
// there; nil if it is not in the daemon's own registry.
func (r *Registries) Own(name string) docker.RegistryHosts {
	host, repository, _ := strings.Cut(name, "/")
	if r.LocalWrite == nil || !r.IsLocal(host) {
		return nil
	}
	at := docker.RegistryHost{
		Client: &http.Client{Transport: r.LocalWrite(repository)}, Host: host, Scheme: "http", Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	}
	return func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{at}, nil }
}

func (r *Registries) plain(host string) bool {
	for _, h := range r.Insecure {
		if h == host {
			return true
		}
	}
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

func (r *Registries) client() *http.Client { return &http.Client{Transport: guarded{r}} }

// guarded goes where a redirect leads by other rules than where it was told to
// go.
type guarded struct{ *Registries }

// RoundTrip implements http.RoundTripper.
func (g guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Response != nil {
		return g.Redirect.RoundTrip(req)
	}
	return g.Direct.RoundTrip(req)
}
