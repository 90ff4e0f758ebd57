package pgserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const (
	urlVariable    = "SAMECOMMIT_POSTGRES_URL"
	choiceVariable = "SAMECOMMIT_POSTGRES"
	// binVariable names the folder of the one server to start, such as one of
	// several versions.
	binVariable = "SAMECOMMIT_POSTGRES_BIN"
)

// ErrNoBinaries is in the error of Start when this machine has no PostgreSQL
// server installed.
var ErrNoBinaries = errors.New("no PostgreSQL server is installed")

var errNoContainer = errors.New("this program starts none: run it as make test does, under go run ./tests/withservers")

var errNoDownload = errors.New("this program downloads none: run it as make test does, under go run ./tests/withservers")

// finder holds the order of the ways. Its fields are what a unit test replaces.
type finder struct {
	getenv    func(string) string
	container func(context.Context) (string, func(context.Context) error, error)
	local     func(context.Context) (*Server, error)
	download  func(ctx context.Context, logf func(format string, args ...any)) (folder string, err error)
	fetched   func(ctx context.Context, binaries string) (*Server, error)
	version   func(ctx context.Context, url string) (string, error)
	logf      func(format string, args ...any)
}

func (f *finder) find(ctx context.Context) (*Server, error) {
	var server *Server
	var err error
	switch choice := f.getenv(choiceVariable); choice {
	case "":
		server, err = f.first(ctx)
	case "url":
		server, err = f.given(ctx)
	case "container":
		if server, err = f.contained(ctx); err != nil {
			err = fmt.Errorf("pgserver: %s=container allows nothing but a container: %w; "+
				"mend that, or unset %[1]s to allow other servers", choiceVariable, err)
		}
	case "local":
		if server, err = f.installed(ctx); err != nil {
			err = fmt.Errorf("pgserver: %s=local allows nothing but a server of this machine's own binaries: %w; "+
				"mend that, or unset %[1]s to allow other servers", choiceVariable, err)
		}
	case "download":
		if server, err = f.downloaded(ctx); err != nil {
			err = fmt.Errorf("pgserver: %s=download allows nothing but a server that is downloaded: %w; "+
				"mend that, or unset %[1]s to allow other servers", choiceVariable, err)
		}
	default:
		err = fmt.Errorf("pgserver: %s is %q, which names no way to get a server; "+
			"set it to url, container, local or download, or unset it to take the first that is there", choiceVariable, choice)
	}
	if err != nil {
		return nil, err
	}
	f.logf("%s", server.From)
	return server, nil
}

func (f *finder) first(ctx context.Context) (*Server, error) {
	if f.getenv(urlVariable) != "" {
		// A server that was asked for by name is used or reported. Another one
		// in its place would surprise whoever set the variable.
		return f.given(ctx)
	}
	server, containerErr := f.contained(ctx)
	if containerErr == nil {
		return server, nil
	}
	if !errors.Is(containerErr, errNoContainer) {
		f.logf("no container, so trying this machine's own server binaries: %v", containerErr)
	}
	server, localErr := f.installed(ctx)
	if localErr == nil {
		return server, nil
	}
	downloadErr := errors.New("not tried, since a server was named or is installed")
	// Who named a folder wants that server.
	if errors.Is(localErr, ErrNoBinaries) && f.getenv(binVariable) == "" {
		if server, downloadErr = f.downloaded(ctx); downloadErr == nil {
			return server, nil
		}
	}
	return nil, fmt.Errorf("pgserver: found no PostgreSQL. Do one of these:\n"+
		"  - set %s to a server whose role may create databases: it is not set\n"+
		"  - run a container engine such as Docker: %w\n"+
		"  - install PostgreSQL's server binaries: %w\n"+
		"  - let them be downloaded: %w", urlVariable, containerErr, localErr, downloadErr)
}

// given takes the server that the environment names.
func (f *finder) given(ctx context.Context) (*Server, error) {
	text := f.getenv(urlVariable)
	if text == "" {
		return nil, fmt.Errorf("pgserver: %s=url needs a server: set %s, such as postgres://user:password@host:5432/postgres",
			choiceVariable, urlVariable)
	}
	parsed, err := url.Parse(text)
	// The parser's error repeats the text, and with it the password.
	if err != nil || !strings.HasPrefix(parsed.Scheme, "postgres") || parsed.Path == "" {
		return nil, fmt.Errorf("pgserver: %s is not a URL of a database: write it as postgres://user:password@host:5432/postgres",
			urlVariable)
	}
	server, err := f.checked(ctx, &Server{URL: text, From: fmt.Sprintf("at %s (%s)", urlVariable, parsed.Host)})
	if err != nil {
		return nil, fmt.Errorf("pgserver: the server that %s names does not answer: %w; start it, or unset %[1]s to use another",
			urlVariable, err)
	}
	return server, nil
}

func (f *finder) contained(ctx context.Context) (*Server, error) {
	if f.container == nil {
		return nil, errNoContainer
	}
	address, stop, err := f.container(ctx)
	if err != nil {
		return nil, err
	}
	from := "in a container"
	if parsed, err := url.Parse(address); err == nil {
		from += " (" + parsed.Host + ")"
	}
	return f.checked(ctx, &Server{URL: address, From: from, Temporary: true, stop: stop})
}

func (f *finder) downloaded(ctx context.Context) (*Server, error) {
	if f.download == nil || f.fetched == nil {
		return nil, errNoDownload
	}
	folder, err := f.download(ctx, f.logf)
	if err != nil {
		return nil, err
	}
	server, err := f.fetched(ctx, folder)
	if err != nil {
		return nil, err
	}
	return f.checked(ctx, server)
}

func (f *finder) installed(ctx context.Context) (*Server, error) {
	server, err := f.local(ctx)
	if err != nil {
		return nil, err
	}
	return f.checked(ctx, server)
}

// checked returns server once it answers, and stops it if it does not.
func (f *finder) checked(ctx context.Context, server *Server) (*Server, error) {
	version, err := f.version(ctx, server.URL)
	if err != nil {
		return nil, errors.Join(err, server.Stop(context.WithoutCancel(ctx)))
	}
	server.From = fmt.Sprintf("PostgreSQL %s %s", version, server.From)
	return server, nil
}
