package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Where a process finds the operator's certificates. /dev is a tmpfs in every
// container: mount points below it are made there and reach no layer.
const (
	caPath  = "/dev/slipway/ca.crt"
	aptPath = "/dev/slipway/apt.conf"
)

// caVariables name the bundle to what does not look for one by itself. OpenSSL,
// Go, Rust and Ruby read the first.
var caVariables = []string{
	"SSL_CERT_FILE",
	"CURL_CA_BUNDLE",
	"GIT_SSL_CAINFO",
	"NODE_EXTRA_CA_CERTS",
	"NPM_CONFIG_CAFILE",
	"REQUESTS_CA_BUNDLE",
	"PIP_CERT",
	"AWS_CA_BUNDLE",
	"CARGO_HTTP_CAINFO",
	"DENO_CERT",
	"BUNDLE_SSL_CA_CERT",
	"COMPOSER_CAFILE",
	"HEX_CACERTS_PATH",
	"NIX_SSL_CERT_FILE",
	"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
	"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
}

const aptConfig = `Acquire::https::CAInfo "` + caPath + `";` + "\n"

// systemBundles are where distributions keep the certificates they trust.
var systemBundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// stageCA writes the operator's certificates into dir, followed by those that
// the image trusts: most programs read the file instead of the system's, not in
// addition. It returns the mounts that show the files to a process.
func stageCA(dir, bundle, rootfs string) ([]bind, error) {
	own, err := os.Open(bundle)
	if err != nil {
		return nil, fmt.Errorf("build CA: %w", err)
	}
	defer own.Close()
	trusted, err := openSystemBundle(rootfs)
	if err != nil {
		return nil, fmt.Errorf("build CA: %w", err)
	}
	defer trusted.Close()

	ca := bind{filepath.Join(dir, "ca.crt"), caPath}
	f, err := os.OpenFile(ca.source, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(f, own)
	if r := trusted.reader(); err == nil && r != nil {
		_, err = io.Copy(f, io.MultiReader(newline(), r))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("build CA: %w", err)
	}

	apt := bind{filepath.Join(dir, "apt.conf"), aptPath}
	return []bind{ca, apt}, os.WriteFile(apt.source, []byte(aptConfig), 0o644)
}

func openSystemBundle(rootfs string) (optional, error) {
	for _, path := range systemBundles {
		if f, err := openIn(rootfs, path); err != nil || f.f != nil {
			return f, err
		}
	}
	return optional{}, nil
}
