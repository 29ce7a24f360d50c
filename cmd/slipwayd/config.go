package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/slipwayhq/slipway/builder/sandbox"
)

// A config is what flags, environment and file say. A flag beats its
// SLIPWAY_ variable, which beats the file.
type config struct {
	file         string
	root         string
	database     string
	grpc         string
	grpcUnix     string
	grpcGroup    string
	http         string
	registryHost string
	mirrors      []string
	insecureRegs []string
	maxRootFS    string
	cacheSize    string
	cacheMinFree string
	maxBuilds    int
	network      string
	buildCA      string
	allowEgress  []string
	buildMemory  string
	buildCPUs    float64
	buildPids    int64
	buildTimeout time.Duration
	keepFailed   time.Duration
	drainTimeout time.Duration
	clientGrace  time.Duration
	runc         string
	tlsCert      string
	tlsKey       string
	tlsClientCA  string
	insecure     bool
	behindProxy  bool
	web          bool
	webURL       string
	oidcIssuer   string
	oidcClient   string
	oidcSecret   string
	oidcScopes   []string
	oidcCA       string
	logFormat    string
	logLevel     string

	maxRootFSBytes   int64
	cacheBytes       int64
	cacheFreeBytes   int64
	buildMemoryBytes int64
	mirrorURLs       map[string][]*url.URL
	egress           []netip.Prefix
	networkMode      sandbox.Mode
	grpcGID          int // -1 for none
	webAddress       *url.URL
}

func (c *config) register(f *pflag.FlagSet) {
	f.StringVar(&c.file, "config", "", "TOML file with these settings, a key for each flag")
	f.StringVar(&c.root, "root", "/var/lib/slipway", "directory for the cache, the registry and all state")
	f.StringVar(&c.database, "database", "", "where builds, tokens and releases are recorded: a file of SQLite, or postgres://USER@HOST/NAME (default records.db in --root)")
	f.StringVar(&c.grpc, "grpc", "127.0.0.1:7070", "address for clients")
	f.StringVar(&c.grpcUnix, "grpc-unix", "", "socket for clients on this machine; root and the daemon's user need no token there")
	f.StringVar(&c.grpcGroup, "grpc-unix-group", "", "group that may connect to --grpc-unix, with tokens")
	f.StringVar(&c.http, "http", "127.0.0.1:7071", "address of the registry (/v2/), /metrics and /healthz")
	f.StringVar(&c.registryHost, "registry-host", "", "host by which images of the embedded registry are named (default: the address of --http; needed where that is every address)")
	f.StringArrayVar(&c.mirrors, "registry-mirror", nil, "HOST=URL: ask URL before registry HOST; repeatable")
	f.StringArrayVar(&c.insecureRegs, "insecure-registry", nil, "HOST[:PORT] that may be spoken to in plain HTTP; repeatable")
	f.StringVar(&c.maxRootFS, "max-rootfs", "8GB", "largest unpacked root file system of an image; 0 for no limit")
	f.StringVar(&c.cacheSize, "cache-size", "50GB", "ceiling of the cache; above 0")
	f.StringVar(&c.cacheMinFree, "cache-min-free", "", "free disk space that the cache leaves, 0 for none (default 5 %, at most 5GB)")
	f.IntVar(&c.maxBuilds, "max-builds", 4, "builds at a time; more wait in the queue")
	f.StringVar(&c.network, "network", "sandbox", "network of RUN steps: sandbox, none or host")
	f.StringVar(&c.buildCA, "build-ca", "", "PEM bundle that RUN steps trust; it never gets into an image")
	f.StringArrayVar(&c.allowEgress, "allow-egress", nil, "CIDR of a private range that builds may reach; repeatable")
	f.StringVar(&c.buildMemory, "build-memory", "", "memory of a RUN step, like 4GB (default no limit)")
	f.Float64Var(&c.buildCPUs, "build-cpus", 0, "CPUs of a RUN step (default no limit)")
	f.Int64Var(&c.buildPids, "build-pids", 32768, "processes of a RUN step; 0 for no limit")
	f.DurationVar(&c.buildTimeout, "build-timeout", time.Hour, "longest time of one build; 0 for no limit")
	f.DurationVar(&c.keepFailed, "keep-failed", 15*time.Minute, "how long what a failed RUN step leaves is kept for slipway builds shell; 0 keeps nothing")
	f.DurationVar(&c.drainTimeout, "drain-timeout", 10*time.Minute, "how long SIGTERM lets running builds go on")
	f.DurationVar(&c.clientGrace, "client-grace", time.Minute, "how long a build goes on when its client is gone and may come back; 0 cancels it at once")
	f.StringVar(&c.runc, "runc", "runc", "runc binary")
	f.StringVar(&c.tlsCert, "tls-cert", "", "certificate file of both addresses")
	f.StringVar(&c.tlsKey, "tls-key", "", "key file of --tls-cert")
	f.StringVar(&c.tlsClientCA, "tls-client-ca", "", "PEM certificates; clients of --grpc may show a certificate that one of them signed instead of a token")
	f.BoolVar(&c.insecure, "insecure", false, "allow plaintext on addresses that others can reach")
	f.BoolVar(&c.behindProxy, "behind-proxy", false, "requests to --http come through a proxy that sets X-Forwarded-For and X-Forwarded-Proto: believe them")
	f.BoolVar(&c.web, "web", true, "serve pages for browsers on --http")
	f.StringVar(&c.webURL, "web-url", "", "URL by which browsers reach those pages, like https://slipway.example.com; needed for OIDC, and where TLS ends before the daemon")
	f.StringVar(&c.oidcIssuer, "oidc-issuer", "", "OpenID Connect provider that people sign in with on the pages; trust rules say who gets in")
	f.StringVar(&c.oidcClient, "oidc-client-id", "", "ID that the provider knows this daemon by")
	f.StringVar(&c.oidcSecret, "oidc-client-secret-file", "", "file with the secret of --oidc-client-id; left out for a public client")
	f.StringSliceVar(&c.oidcScopes, "oidc-scope", []string{"profile", "email"}, "scopes to ask the provider for besides openid; repeatable")
	f.StringVar(&c.oidcCA, "oidc-ca", "", "PEM certificates to trust besides the system's when OIDC issuers are asked for their keys")
	f.StringVar(&c.logFormat, "log-format", "text", "text or json")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
}

// complete fills in what the flags leave open, and checks everything.
func (c *config) complete(f *pflag.FlagSet, env func(string) (string, bool)) error {
	if err := fromEnv(f, env); err != nil {
		return err
	}
	if c.file != "" {
		if err := fromFile(f, c.file); err != nil {
			return err
		}
	}
	return c.check()
}

// fromEnv sets the flags that were not given from SLIPWAY_ variables. Lists
// are separated by commas.
func fromEnv(f *pflag.FlagSet, env func(string) (string, bool)) error {
	var errs []error
	f.VisitAll(func(flag *pflag.Flag) {
		name := "SLIPWAY_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		v, ok := env(name)
		if flag.Changed || !ok {
			return
		}
		values := []string{v}
		if flag.Value.Type() == "stringArray" {
			values = strings.Split(v, ",")
		}
		for _, v := range values {
			if err := f.Set(flag.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	return errors.Join(errs...)
}

// fromFile sets the flags that were not given from a TOML file.
func fromFile(f *pflag.FlagSet, file string) error {
	keys, err := readTOML(file)
	if err != nil {
		return err
	}
	var errs []error
	for key, v := range keys {
		flag := f.Lookup(key)
		if flag == nil || key == "config" {
			errs = append(errs, fmt.Errorf("config: %s has no setting %q; settings are named as flags are", file, key))
			continue
		}
		if flag.Changed {
			continue
		}
		values, ok := v.([]any)
		if !ok {
			values = []any{v}
		}
		for _, v := range values {
			if err := f.Set(key, fmt.Sprint(v)); err != nil {
				errs = append(errs, fmt.Errorf("config: %s: %s: %w", file, key, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (c *config) check() error {
	var err error
	if c.root, err = filepath.Abs(c.root); err != nil {
		return err
	}
	if c.maxRootFSBytes, err = size("max-rootfs", c.maxRootFS); err != nil {
		return err
	}
	if c.maxRootFSBytes == 0 {
		c.maxRootFSBytes = -1
	}
	if err := c.checkCache(); err != nil {
		return err
	}
	if c.buildMemoryBytes, err = size("build-memory", c.buildMemory); err != nil {
		return err
	}
	if c.networkMode, err = sandbox.ParseMode(c.network); err != nil {
		return fmt.Errorf("--network: %w", err)
	}
	if c.maxBuilds < 1 {
		return errors.New("--max-builds: at least 1")
	}
	if c.clientGrace < 0 {
		return fmt.Errorf("--client-grace: %v is no length of time", c.clientGrace)
	}
	if c.keepFailed < 0 {
		return fmt.Errorf("--keep-failed: %v is no length of time", c.keepFailed)
	}
	for _, s := range c.allowEgress {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("--allow-egress: %w", err)
		}
		c.egress = append(c.egress, p)
	}
	if (c.tlsCert == "") != (c.tlsKey == "") {
		return errors.New("--tls-cert and --tls-key belong together")
	}
	if c.tlsClientCA != "" && c.tlsCert == "" {
		return errors.New("--tls-client-ca: certificates of clients come with TLS; give --tls-cert and --tls-key")
	}
	if err := c.checkGRPCUnix(); err != nil {
		return err
	}
	if c.buildCA != "" {
		if _, err := os.Stat(c.buildCA); err != nil {
			return fmt.Errorf("--build-ca: %w", err)
		}
	}
	if err := c.parseMirrors(); err != nil {
		return err
	}
	if err := c.checkWeb(); err != nil {
		return err
	}
	if err := errors.Join(c.checkAddr("grpc", c.grpc), c.checkAddr("http", c.http)); err != nil {
		return err
	}
	return c.checkRegistryHost()
}

// checkGRPCUnix makes the socket's path absolute, and its group's name a
// number.
func (c *config) checkGRPCUnix() (err error) {
	c.grpcGID = -1
	if c.grpcUnix == "" {
		if c.grpcGroup != "" {
			return errors.New("--grpc-unix-group: give --grpc-unix, the socket that the group may connect to")
		}
		return nil
	}
	if c.grpcUnix, err = filepath.Abs(c.grpcUnix); err != nil || c.grpcGroup == "" {
		return err
	}
	group, err := user.LookupGroup(c.grpcGroup)
	if err != nil {
		group, err = user.LookupGroupId(c.grpcGroup)
	}
	if err != nil {
		return fmt.Errorf("--grpc-unix-group: this machine has no group %q", c.grpcGroup)
	}
	c.grpcGID, err = strconv.Atoi(group.Gid)
	return err
}

// checkCache reads the sizes of the cache. Left out, they are the cache's own
// defaults, which it knows by 0.
func (c *config) checkCache() (err error) {
	if c.cacheBytes, err = size("cache-size", c.cacheSize); err != nil {
		return err
	}
	if c.cacheSize != "" && c.cacheBytes == 0 {
		return fmt.Errorf("--cache-size: a cache of %s holds nothing; give it a size like 50GB", c.cacheSize)
	}
	if c.cacheFreeBytes, err = size("cache-min-free", c.cacheMinFree); err != nil {
		return err
	}
	if c.cacheMinFree != "" && c.cacheFreeBytes == 0 {
		c.cacheFreeBytes = -1
	}
	return nil
}

func size(flag, s string) (int64, error) {
	if s == "" || s == "0" {
		return 0, nil
	}
	n, err := units.FromHumanSize(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--%s: %q is no size; write it like 8GB", flag, s)
	}
	return n, nil
}

func (c *config) parseMirrors() error {
	c.mirrorURLs = map[string][]*url.URL{}
	for _, m := range c.mirrors {
		host, text, ok := strings.Cut(m, "=")
		u, err := url.Parse(text)
		if !ok || err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("--registry-mirror: %q; write it like docker.io=http://127.0.0.1:5000", m)
		}
		c.mirrorURLs[host] = append(c.mirrorURLs[host], u)
	}
	return nil
}

// checkWeb reads the address of the pages, and refuses half of what OIDC needs.
func (c *config) checkWeb() (err error) {
	if c.webURL != "" {
		c.webAddress, err = url.Parse(c.webURL)
		if err != nil || c.webAddress.Host == "" || c.webAddress.Scheme != "http" && c.webAddress.Scheme != "https" || strings.Trim(c.webAddress.Path, "/") != "" {
			return fmt.Errorf("--web-url: %q; write it like https://slipway.example.com, without a path", c.webURL)
		}
	}
	switch {
	case c.oidcIssuer == "" && (c.oidcClient != "" || c.oidcSecret != ""):
		return errors.New("--oidc-client-id: give --oidc-issuer, the provider that knows it")
	case c.oidcIssuer == "":
		return nil
	case c.oidcClient == "":
		return errors.New("--oidc-issuer: give --oidc-client-id, by which the provider knows this daemon")
	case c.webAddress == nil:
		return errors.New("--oidc-issuer: give --web-url, to which the provider sends people back")
	case !c.web:
		return errors.New("--oidc-issuer: people sign in on the pages that --web=false turns off")
	}
	return nil
}

// checkAddr refuses plaintext where others can read it.
func (c *config) checkAddr(flag, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("--%s: %w", flag, err)
	}
	if c.insecure || c.tlsCert != "" || host == "localhost" {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("--%s %s: tokens would travel in plaintext to whoever can reach this address; give --tls-cert and --tls-key, or --insecure behind a proxy that does TLS", flag, addr)
}

// checkRegistryHost refuses to guess by which of many addresses others reach
// the registry: its name becomes part of the name of each image.
func (c *config) checkRegistryHost() error {
	host, port, err := net.SplitHostPort(c.http)
	if err != nil || c.registryHost != "" {
		return err
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		return fmt.Errorf("--http %s listens on every address of this machine, and none of them can name images; give --registry-host, like slipway.example.com:%s", c.http, port)
	}
	return nil
}

func (c *config) logger() *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}
