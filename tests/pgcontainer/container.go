// Package pgcontainer starts a PostgreSQL server in a container, for package
// pgserver to offer.
//
// testcontainers-go runs a second container, a reaper, that removes the first
// when this process is killed. Where the reaper's image cannot be had, or the
// engine forbids it, set TESTCONTAINERS_RYUK_DISABLED=true; a killed process
// then leaves its server running. Where this process runs in a container and
// the engine beside it, set TESTCONTAINERS_HOST_OVERRIDE to the address that
// published ports are reached at.
package pgcontainer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
)

const defaultImage = "postgres:18"

// Start runs a server from the image that SAMECOMMIT_POSTGRES_IMAGE names,
// postgres:18 if it is not set, and returns its URL. stop removes the
// container. Without a container engine it fails at once.
func Start(ctx context.Context) (url string, stop func(context.Context) error, err error) {
	if err := Engine(ctx); err != nil {
		return "", nil, err
	}
	image := cmp.Or(os.Getenv("SAMECOMMIT_POSTGRES_IMAGE"), defaultImage)
	container, err := postgres.Run(ctx, image,
		postgres.BasicWaitStrategies(),
		// The engine may publish the port to the network, not only to this machine.
		postgres.WithPassword(rand.Text()),
		// The data does not outlive the container, and each test makes and
		// removes hundreds of files: a tenth of the time in memory.
		testcontainers.WithTmpfs(map[string]string{"/var/lib/postgresql": "rw"}),
		testcontainers.WithCmdArgs("-c", "max_connections=500", "-c", "max_prepared_transactions=20"),
	)
	stop = func(ctx context.Context) error {
		return testcontainers.TerminateContainer(container, testcontainers.StopContext(ctx))
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("run image %s: %w", image, err), stop(context.WithoutCancel(ctx)))
	}
	url, err = container.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("find the port of image %s: %w", image, err), stop(context.WithoutCancel(ctx)))
	}
	return url, stop, nil
}

// Engine returns an error where no container engine answers. Starting a container
// without one would panic inside testcontainers-go or try for a while.
func Engine(ctx context.Context) error {
	// Its lines about every start and stop would stand between a user's own.
	tclog.SetDefault(log.New(io.Discard, "", 0))
	provider, err := testcontainers.NewDockerProvider()
	if err == nil {
		err = errors.Join(provider.Health(ctx), provider.Close())
	}
	if err != nil {
		return fmt.Errorf("no container engine answered: %w", err)
	}
	return nil
}
