package pgserver_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"testing"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// holdVariable makes this test binary a process that holds a server until it
// is killed. See TestLocalServerEndsWithItsProcess.
const holdVariable = "SAMECOMMIT_HOLD_SERVER"

// exitNoBinaries is how that process ends where no server is installed.
const exitNoBinaries = 3

func TestMain(m *testing.M) {
	if os.Getenv(holdVariable) != "" {
		holdServer()
	}
	pgtest.Main(m)
}

func holdServer() {
	// As a program that shuts down in its own time would.
	signal.Ignore(os.Interrupt)
	server, err := pgserver.Start(context.Background(), nil)
	if err != nil {
		fmt.Println(err)
		if errors.Is(err, pgserver.ErrNoBinaries) {
			os.Exit(exitNoBinaries)
		}
		os.Exit(1)
	}
	fmt.Println(server.URL)
	select {}
}
