package storeserver

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// Which way is taken, and which are tried, by what the variables say.
func TestFirst(t *testing.T) {
	errAway := errors.New("away")
	for name, c := range map[string]struct {
		choice, url string
		local       error
		want        string
		tried       []string
		err         error
	}{
		"nothing is said":                   {"", "", nil, "local", []string{"local"}, nil},
		"the first one is away":             {"", "", errAway, "container", []string{"local", "container"}, nil},
		"a URL goes before all":             {"", "x://y", nil, "x://y", nil, nil},
		"one way is chosen":                 {"container", "x://y", nil, "container", []string{"container"}, nil},
		"the chosen one alone, and away":    {"local", "", errAway, "", []string{"local"}, errAway},
		"a URL is chosen and there is none": {"url", "", nil, "", nil, errNoURL},
		"no such way":                       {"moon", "", nil, "", nil, errNoWay},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SAMECOMMIT_TEST", c.choice)
			t.Setenv("SAMECOMMIT_TEST_URL", c.url)
			var tried []string
			try := func(name string, err error) way {
				return way{name, func(context.Context) (*Server, error) {
					tried = append(tried, name)
					return &Server{URL: name}, err
				}}
			}
			server, err := first(t.Context(), "TEST", try("local", c.local), try("container", nil))
			if !errors.Is(err, c.err) || !slices.Equal(tried, c.tried) {
				t.Fatalf("%v tried, %v; want %v, %v", tried, err, c.tried, c.err)
			}
			if errors.Is(err, ErrNone) {
				t.Error("who asks for a server by name is not to go on without")
			}
			if err == nil && (server.URL != c.want || !slices.Equal(server.Environ(), []string{"SAMECOMMIT_TEST_URL=" + c.want})) {
				t.Errorf("%+v, %v; want %s", server, server.Environ(), c.want)
			}
		})
	}
}

func TestNoServerAtAll(t *testing.T) {
	t.Setenv("SAMECOMMIT_TEST", "")
	t.Setenv("SAMECOMMIT_TEST_URL", "")
	_, err := first(t.Context(), "TEST", way{"local", func(context.Context) (*Server, error) { return nil, errors.New("away") }})
	if !errors.Is(err, ErrNone) {
		t.Errorf("got %v, want that there is none", err)
	}
	if none := (&Server{}); none.Environ() != nil || none.Stop(t.Context()) != nil {
		t.Error("the zero server names itself, or does not end")
	}
}
