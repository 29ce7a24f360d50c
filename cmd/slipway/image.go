package main

import (
	"context"
	"errors"

	"github.com/slipwayhq/slipway/buildctx"
	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"

	"github.com/slipwayhq/slipway/cmd/slipway/client"
	"github.com/slipwayhq/slipway/cmd/slipway/imagefile"
)

// imageSource is an image of this machine as a deploy sends it: its blobs are
// the build context.
type imageSource struct {
	*imagefile.Image
	sending buildctx.SenderOptions
}

var _ client.Context = (*imageSource)(nil)

// openImage opens the image that --image names among this machine's files, and
// fills in what the start says of it. It returns nil for one of a registry.
// Loopback says that the daemon is on this machine.
func openImage(ctx context.Context, start *slipwayv1.Start, loopback bool) (*imageSource, error) {
	if !imagefile.Is(start.GetImage()) {
		return nil, nil
	}
	img, err := imagefile.Open(ctx, start.GetImage())
	if err != nil {
		return nil, imageError(err)
	}
	s := &imageSource{Image: img}
	if loopback {
		s.sending.Compress = buildctx.CompressNever
	}
	start.Image = img.Name
	start.Context = &slipwayv1.ContextInfo{
		Entries: uint64(len(img.Manifest.Entries)), Files: uint64(img.Manifest.Files()), Bytes: uint64(img.Manifest.Bytes()),
	}
	return s, nil
}

// imageError says in the terms of the daemon what is wrong with files.
func imageError(err error) error {
	var known *imagefile.Error
	if !errors.As(err, &known) {
		return contextError(err)
	}
	code := "invalid_argument"
	if errors.Is(err, imagefile.ErrInvalid) {
		code = "image_invalid"
	}
	e := client.NewError(code, slipwayv1.Blame_BLAME_USER, known.Message, known.Hint)
	e.Phase = "preflight"
	return e
}

// Manifest implements [client.Context].
func (s *imageSource) Manifest(_ context.Context, send func(*slipwayv1.ManifestPart) error) error {
	return s.Image.Manifest.ToProto(send)
}

// Send implements [client.Context].
func (s *imageSource) Send(ctx context.Context, w *slipwayv1.Want, emit func(*slipwayv1.ContentFrame) error) error {
	return buildctx.NewSender(s.Image.Manifest, s.Image, &s.sending).Send(ctx, w, emit)
}
