//go:build !unix

package pgserver

import (
	"context"
	"fmt"
	"runtime"
)

// Local is a server that StartLocal started.
type Local struct {
	*Server
}

// startFetched is not offered here either.
var startFetched func(ctx context.Context, binaries string) (*Server, error)

// StartLocal is not offered here: the server's supervisor is a POSIX shell.
func StartLocal(context.Context, *LocalOptions) (*Local, error) {
	return nil, fmt.Errorf("%w that can be started on %s", ErrNoBinaries, runtime.GOOS)
}
