package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// mutant is one way to break the product, and the test that notices.
type mutant struct {
	name   string
	breaks promise
	edits  []edit
	// test is a test of pkg, or a subtest of one: "TestX/what it does".
	test string
	// pkg is the folder of the test's package; tests where it is empty.
	pkg string
}

// edit replaces text that occurs exactly once in a file or, where file ends in #
// and a statement's name, in that statement, without the comment above it.
type edit struct{ file, old, new string }

// promise is what a mutant breaks. The numbers are those of docs/guarantees.md, part
// "Invariants".
type promise string

const (
	once        promise = "I1 one effect for a key"
	keeps       promise = "I2 an answer given stays true"
	together    promise = "I3 effect and key together"
	faithful    promise = "I4 replay byte for byte"
	noRerun     promise = "I5 no run after an answer"
	sameRequest promise = "I7 another request is refused"
	apart       promise = "I8 scopes are apart"
	unstuck     promise = "I9 no stuck keys"
	fenced      promise = "I10 one holder completes"
	honest      promise = "I11 errors tell the truth"
	bounded     promise = "I13 bounded waiting"
	retention   promise = "I14 expiry and sweep"
	neutral     promise = "I15 nothing is left behind"
	everywhere  promise = "I17 the same everywhere"
	secret      promise = "no secret in errors"
	upgrade     promise = "migrations beside others"
)

// apply returns the files with the mutant in them, by their names below root.
func (m *mutant) apply(root string) (map[string]string, error) {
	files := make(map[string]string)
	for _, e := range m.edits {
		name, statement, _ := strings.Cut(e.file, "#")
		text, changed := files[name]
		if !changed {
			content, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.name, err)
			}
			text = string(content)
		}
		start, end := 0, len(text)
		if statement != "" {
			if start, end = find(statement, text); start < 0 {
				return nil, fmt.Errorf("%s: mutant no longer applies: no statement %s", m.name, e.file)
			}
		}
		if found := strings.Count(text[start:end], e.old); found != 1 || e.old == e.new {
			return nil, fmt.Errorf("%s: mutant no longer applies: %s has %d times, not once:\n%s", m.name, e.file, found, e.old)
		}
		files[name] = text[:start] + strings.Replace(text[start:end], e.old, e.new, 1) + text[end:]
	}
	return files, nil
}

// changesQueries reports whether sqlc must generate package db anew.
func (m *mutant) changesQueries() bool {
	return slices.ContainsFunc(m.edits, func(e edit) bool { return strings.HasPrefix(e.file, "queries/") })
}

const nameLine = "-- name: "

// find returns where a statement of a file of queries begins and ends, or -1.
func find(statement, text string) (start, end int) {
	start = strings.Index(text, nameLine+statement+" :")
	if start < 0 {
		return -1, -1
	}
	for strings.HasPrefix(text[start:], "--") {
		_, after, _ := strings.Cut(text[start:], "\n")
		start = len(text) - len(after)
	}
	if next := strings.Index(text[start:], nameLine); next >= 0 {
		return start, start + next
	}
	return start, len(text)
}

func (m *mutant) folder() string { return "./" + cmp.Or(m.pkg, "tests") }

// reported is the name that go test gives to the test.
func (m *mutant) reported() string { return strings.ReplaceAll(m.test, " ", "_") }

// pattern matches the test alone, for go test's -run.
func (m *mutant) pattern() string {
	var parts []string
	for part := range strings.SplitSeq(m.reported(), "/") {
		parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
	}
	return strings.Join(parts, "/")
}

// tests returns the pattern of each test, by folder and name.
func tests(mutants []mutant) map[[2]string]string {
	patterns := make(map[[2]string]string)
	for _, m := range mutants {
		patterns[[2]string{m.folder(), m.reported()}] = m.pattern()
	}
	return patterns
}

// folders returns the folders of the tests, sorted.
func folders(patterns map[[2]string]string) []string {
	set := make(map[string]bool)
	for test := range patterns {
		set[test[0]] = true
	}
	return slices.Sorted(maps.Keys(set))
}
