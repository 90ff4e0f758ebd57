// Package pgstart finds or starts a PostgreSQL server in every way there is, for
// programs: package pgserver's, with containers and downloads, whose libraries
// stay out of the root module.
package pgstart

import (
	"context"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/tests/pgcontainer"
	"github.com/samecommit/samecommit/tests/pgdownload"
)

// Start is pgserver.Start. Logf is told which server was taken, and why an
// earlier way was not.
func Start(ctx context.Context, logf func(format string, args ...any)) (*pgserver.Server, error) {
	return pgserver.Start(ctx, &pgserver.Options{Container: pgcontainer.Start, Download: pgdownload.Binaries, Logf: logf})
}
