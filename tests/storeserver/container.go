package storeserver

import (
	"context"
	"errors"
	"fmt"

	"github.com/testcontainers/testcontainers-go"

	"github.com/samecommit/samecommit/tests/pgcontainer"
)

// contain starts a server in a container, and returns it when ready has.
func contain(ctx context.Context, image, port string, ready func(ctx context.Context, container testcontainers.Container) (url string, err error),
	options ...testcontainers.ContainerCustomizer,
) (*Server, error) {
	if err := pgcontainer.Engine(ctx); err != nil {
		return nil, err
	}
	container, err := testcontainers.Run(ctx, image, append(options, testcontainers.WithExposedPorts(port))...)
	stop := func(ctx context.Context) error {
		return testcontainers.TerminateContainer(container, testcontainers.StopContext(ctx))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run image %s: %w", image, err), stop(context.WithoutCancel(ctx)))
	}
	url, err := ready(ctx, container)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for image %s: %w", image, err), stop(context.WithoutCancel(ctx)))
	}
	return &Server{URL: url, From: "a container of " + image, stop: stop}, nil
}
