//go:build !unix

package pgserver

import (
	"context"
	"fmt"
	"runtime"
)

// startLocal is not offered here: the server's supervisor is a POSIX shell.
func startLocal(context.Context, *LocalOptions) (*Server, error) {
	return nil, fmt.Errorf("%w that can be started on %s", ErrNoBinaries, runtime.GOOS)
}
