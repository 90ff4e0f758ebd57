package pgserver

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a PostgreSQL server that can be connected to.
type Server struct {
	// URL names a database of the server, with a role that may create others.
	URL string
	// From says in one line what was taken: the version, and which way.
	From string
	// Temporary is set on a server that Start started: it ends with Stop, or
	// with this process, and everything in it is gone.
	Temporary bool

	// binaries is the folder of the programs it was started from, if this
	// process started any.
	binaries string
	stop     func(context.Context) error
}

// Options configures Start.
type Options struct {
	// Container starts a server in a container. It must fail rather than wait
	// when there is no container engine. Defaults to none: the libraries that
	// talk to an engine stay out of this module.
	Container func(ctx context.Context) (url string, stop func(context.Context) error, err error)
	// Download returns the folder of a server's programs, which it fetches where
	// none are installed, and tells its own Logf so. Defaults to none.
	Download func(ctx context.Context, logf func(format string, args ...any)) (folder string, err error)
	// Logf is told which server was taken, and why an earlier way was not.
	// Defaults to discarding.
	Logf func(format string, args ...any)
}

// Start finds or starts a server. Nil options mean all defaults. Its error
// lists every way to get a server and why each did not work.
func Start(ctx context.Context, opts *Options) (*Server, error) {
	if opts == nil {
		opts = &Options{}
	}
	f := finder{
		getenv:    os.Getenv,
		container: opts.Container,
		local: func(ctx context.Context) (*Server, error) {
			local, err := StartLocal(ctx, nil)
			if err != nil {
				return nil, err
			}
			return local.Server, nil
		},
		download: opts.Download,
		fetched:  startFetched,
		version:  serverVersion,
		logf:     opts.Logf,
	}
	if f.logf == nil {
		f.logf = func(string, ...any) {}
	}
	return f.find(ctx)
}

// LocalOptions configures StartLocal.
type LocalOptions struct {
	// Settings are settings of the server's, such as "fsync=on". Defaults to
	// what suits a server whose data is thrown away.
	Settings []string
	// Restart starts the server again, with its data, whenever it ends before
	// Stop: for a test that kills it.
	Restart bool
	// Primary makes the server a streaming standby of this one, with a copy of
	// its data. Defaults to a new server that follows none.
	Primary *Local
}

// Environ are the settings, for the environment of another process, with which
// its Start takes this server.
func (s *Server) Environ() []string {
	environ := []string{choiceVariable + "=url", urlVariable + "=" + s.URL}
	if s.binaries != "" {
		// For servers that its tests start beside this one.
		environ = append(environ, binVariable+"="+s.binaries)
	}
	return environ
}

// Stop ends a server that Start started and removes its data. A server that
// was already there is left alone. A second call does nothing.
func (s *Server) Stop(ctx context.Context) error {
	stop := s.stop
	if stop == nil {
		return nil
	}
	s.stop = nil
	if err := stop(ctx); err != nil {
		return fmt.Errorf("pgserver: stop %s: %w", s.From, err)
	}
	return nil
}

// serverVersion connects to url and returns the server's version: proof that
// the server answers before a caller depends on it.
func serverVersion(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	version := conn.PgConn().ParameterStatus("server_version")
	return version, conn.Close(ctx)
}
