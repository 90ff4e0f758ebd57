// Package storeserver finds or starts the servers of the stores that are not
// PostgreSQL's, for tests and programs: Redis and MongoDB.
package storeserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Server is a server that can be connected to.
type Server struct {
	URL string
	// From says in one line what was taken.
	From string
	// Double says that it only stands in for what it is called, in tests of behaviour:
	// its speed says nothing.
	Double bool

	// name is that of its variables: SAMECOMMIT_name says which way to get it, and
	// SAMECOMMIT_name_URL where it is.
	name string
	stop func(context.Context) error
}

// Environ is the setting, for the environment of another process, with which its tests
// take this server: none of the zero Server.
func (s *Server) Environ() []string {
	if s.URL == "" {
		return nil
	}
	return []string{urlVariable(s.name) + "=" + s.URL}
}

// Stop ends a server that was started, and removes its data. A server that was already
// there is left alone.
func (s *Server) Stop(ctx context.Context) error {
	if s.stop == nil {
		return nil
	}
	return s.stop(ctx)
}

// ErrNone is in the error where no way gave a server, and none was asked for by name.
var ErrNone = errors.New("storeserver: no server was found or could be started")

var (
	errNoURL = errors.New("is not set")
	errNoWay = errors.New("it names no way to get a server")
)

func urlVariable(name string) string { return "SAMECOMMIT_" + name + "_URL" }

// way is a way to get a server.
type way struct {
	name  string
	start func(ctx context.Context) (*Server, error)
}

// first takes the server that the variables of this name ask for, or else the first that
// can be had.
func first(ctx context.Context, name string, ways ...way) (*Server, error) {
	choice, url := os.Getenv("SAMECOMMIT_"+name), os.Getenv(urlVariable(name))
	ways = slices.Insert(ways, 0, way{"url", func(context.Context) (*Server, error) {
		if url == "" {
			return nil, fmt.Errorf("%s: %w", urlVariable(name), errNoURL)
		}
		return &Server{URL: url, From: "the server of " + urlVariable(name)}, nil
	}})
	if choice == "" && url != "" {
		choice = "url" // another one in its place would surprise whoever set it
	}
	var names []string
	var failures []error
	for _, w := range ways {
		names = append(names, w.name)
		if choice != "" && choice != w.name {
			continue
		}
		server, err := w.start(ctx)
		if err == nil {
			server.name = name
			return server, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", w.name, err))
	}
	switch {
	case choice == "":
		return nil, fmt.Errorf("%w: %w", ErrNone, errors.Join(failures...))
	case len(failures) == 0:
		return nil, fmt.Errorf("storeserver: SAMECOMMIT_%s is %q: %w: set it to one of %s, or unset it", name, choice, errNoWay, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("storeserver: SAMECOMMIT_%s=%s allows nothing else: %w", name, choice, failures[0])
}
