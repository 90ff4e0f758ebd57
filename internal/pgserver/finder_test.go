package pgserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// fakes is a finder whose ways note that they were tried and then work or fail.
type fakes struct {
	env       map[string]string
	tried     []string
	stopped   []string
	container error
	noEngine  bool // no Container registered at all
	download  error
	offline   bool // no Download registered at all
	local     error
	version   error
	log       []string
}

func (f *fakes) find(ctx context.Context) (*Server, error) {
	way := func(name string, err error) (*Server, error) {
		f.tried = append(f.tried, name)
		if err != nil {
			return nil, err
		}
		return &Server{URL: "postgres://" + name + "/postgres", From: "by " + name, Temporary: true, stop: func(context.Context) error {
			f.stopped = append(f.stopped, name)
			return nil
		}}, nil
	}
	finder := finder{
		getenv: func(name string) string { return f.env[name] },
		local:  func(context.Context) (*Server, error) { return way("local", f.local) },
		version: func(context.Context, string) (string, error) {
			return "18.4", f.version
		},
		logf: func(format string, args ...any) { f.log = append(f.log, fmt.Sprintf(format, args...)) },
	}
	if !f.noEngine {
		finder.container = func(context.Context) (string, func(context.Context) error, error) {
			server, err := way("container", f.container)
			if err != nil {
				return "", nil, err
			}
			return server.URL, server.stop, nil
		}
	}
	if !f.offline {
		finder.download = func(context.Context, func(string, ...any)) (string, error) {
			f.tried = append(f.tried, "download")
			return "/downloaded", f.download
		}
		finder.fetched = func(_ context.Context, binaries string) (*Server, error) { return way(binaries, nil) }
	}
	return finder.find(ctx)
}

func TestFindOrder(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken on purpose")
	given := "postgres://me:secret@given:5432/postgres"

	for name, test := range map[string]struct {
		fakes     fakes
		wantTried []string
		wantURL   string
		wantErr   []string // parts of the error; none means it must work
	}{
		"url before all": {
			fakes:   fakes{env: map[string]string{urlVariable: given}},
			wantURL: given,
		},
		"container before local": {
			wantTried: []string{"container"},
			wantURL:   "postgres://container/postgres",
		},
		"local after a container that failed": {
			fakes:     fakes{container: broken},
			wantTried: []string{"container", "local"},
			wantURL:   "postgres://local/postgres",
		},
		"local where none registers a container": {
			fakes:     fakes{noEngine: true},
			wantTried: []string{"local"},
			wantURL:   "postgres://local/postgres",
		},
		"nothing works": {
			fakes:     fakes{container: broken, local: fmt.Errorf("%w: no initdb", ErrNoBinaries), download: errors.New("no network")},
			wantTried: []string{"container", "local", "download"},
			wantErr:   []string{urlVariable + " to a server", "engine such as Docker: broken on purpose", "no initdb", "downloaded: no network"},
		},
		"download where none is installed": {
			fakes:     fakes{container: broken, local: ErrNoBinaries},
			wantTried: []string{"container", "local", "download", "/downloaded"},
			wantURL:   "postgres:///downloaded/postgres",
		},
		"no download in place of a server that does not start": {
			fakes:     fakes{container: broken, local: broken},
			wantTried: []string{"container", "local"},
			wantErr:   []string{"broken on purpose"},
		},
		"no download in place of a folder that was named": {
			fakes:     fakes{container: broken, local: ErrNoBinaries, env: map[string]string{binVariable: "/nowhere"}},
			wantTried: []string{"container", "local"},
			wantErr:   []string{ErrNoBinaries.Error()},
		},
		"none registers a download": {
			fakes:     fakes{noEngine: true, offline: true, local: ErrNoBinaries},
			wantTried: []string{"local"},
			wantErr:   []string{errNoDownload.Error()},
		},
		"only a download": {
			fakes:     fakes{env: map[string]string{choiceVariable: "download", urlVariable: given}},
			wantTried: []string{"download", "/downloaded"},
			wantURL:   "postgres:///downloaded/postgres",
		},
		"only a download, and it fails": {
			fakes:     fakes{env: map[string]string{choiceVariable: "download"}, download: broken},
			wantTried: []string{"download"},
			wantErr:   []string{choiceVariable + "=download", "broken on purpose"},
		},
		"no other server in place of one asked for": {
			fakes:   fakes{env: map[string]string{urlVariable: given}, version: broken},
			wantErr: []string{urlVariable, "does not answer", "broken on purpose", "unset"},
		},
		"url that is a list of settings": {
			fakes:   fakes{env: map[string]string{urlVariable: "host=given password=secret"}},
			wantErr: []string{urlVariable, "write it as postgres://"},
		},
		"url that does not parse": {
			fakes:   fakes{env: map[string]string{urlVariable: "postgres://me:secret@gi ven/postgres"}},
			wantErr: []string{urlVariable, "write it as postgres://"},
		},
		"url without a database": {
			fakes:   fakes{env: map[string]string{urlVariable: "postgres://me:secret@given"}},
			wantErr: []string{urlVariable, "write it as postgres://"},
		},
		"only url": {
			fakes:   fakes{env: map[string]string{choiceVariable: "url", urlVariable: given}},
			wantURL: given,
		},
		"only url, and none set": {
			fakes:   fakes{env: map[string]string{choiceVariable: "url"}},
			wantErr: []string{choiceVariable + "=url", "set " + urlVariable},
		},
		"only a container, though a url is set": {
			fakes:     fakes{env: map[string]string{choiceVariable: "container", urlVariable: given}},
			wantTried: []string{"container"},
			wantURL:   "postgres://container/postgres",
		},
		"only a container, and it fails": {
			fakes:     fakes{env: map[string]string{choiceVariable: "container"}, container: broken},
			wantTried: []string{"container"},
			wantErr:   []string{choiceVariable + "=container", "broken on purpose"},
		},
		"only a container, and none registered": {
			fakes:   fakes{env: map[string]string{choiceVariable: "container"}, noEngine: true},
			wantErr: []string{choiceVariable + "=container", errNoContainer.Error()},
		},
		"only local": {
			fakes:     fakes{env: map[string]string{choiceVariable: "local", urlVariable: given}},
			wantTried: []string{"local"},
			wantURL:   "postgres://local/postgres",
		},
		"only local, and it fails": {
			fakes:     fakes{env: map[string]string{choiceVariable: "local"}, local: broken},
			wantTried: []string{"local"},
			wantErr:   []string{choiceVariable + "=local", "broken on purpose"},
		},
		"unknown choice": {
			fakes:   fakes{env: map[string]string{choiceVariable: "docker"}},
			wantErr: []string{`"docker"`, "url, container, local or download"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := test.fakes
			server, err := f.find(t.Context())
			if !slices.Equal(f.tried, test.wantTried) {
				t.Errorf("tried %q, want %q", f.tried, test.wantTried)
			}
			if len(test.wantErr) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if server.URL != test.wantURL {
					t.Errorf("took %s, want %s", server.URL, test.wantURL)
				}
				if !strings.HasPrefix(server.From, "PostgreSQL 18.4 ") || strings.Contains(server.From, "secret") {
					t.Errorf("From is %q, want the version and no password", server.From)
				}
				if last := f.log[len(f.log)-1]; last != server.From {
					t.Errorf("logged %q, want %q", last, server.From)
				}
				return
			}
			if err == nil {
				t.Fatalf("took %s, want an error", server.From)
			}
			for _, part := range test.wantErr {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error lacks %q:\n%v", part, err)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error shows the password:\n%v", err)
			}
		})
	}
}

func TestFindSaysWhyNoContainer(t *testing.T) {
	t.Parallel()
	f := fakes{container: errors.New("engine is down")}
	if _, err := f.find(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.log[0], "engine is down") {
		t.Errorf("logged %q first, want why there is no container", f.log[0])
	}
}

func TestFindStopsAServerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	f := fakes{version: errors.New("no answer")}
	if _, err := f.find(t.Context()); err == nil {
		t.Fatal("took a server that does not answer")
	}
	if want := []string{"container", "local"}; !slices.Equal(f.stopped, want) {
		t.Errorf("stopped %q, want %q", f.stopped, want)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	var f fakes
	server, err := f.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := server.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"container"}; !slices.Equal(f.stopped, want) {
		t.Errorf("stopped %q after two calls, want %q", f.stopped, want)
	}
	given := fakes{env: map[string]string{urlVariable: "postgres://given/postgres"}}
	server, err = given.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if server.Temporary {
		t.Error("a server that was already there counts as temporary")
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Errorf("stop of a server that was already there: %v", err)
	}
}
