package tests_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/internal/pgtest"
)

// fence is one fenced block of a Markdown file.
var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// Every Go block of README.md that is a full program must build. The first one
// must print, on an empty database, the text block behind it.
func TestReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var programs []string
	want := ""
	for _, block := range fence.FindAllStringSubmatch(string(readme), -1) {
		language, text := block[1], block[2]
		switch {
		case language == "go" && strings.HasPrefix(text, "package main\n"):
			programs = append(programs, text)
		case language == "text" && len(programs) == 1 && want == "":
			want = text
		}
	}
	if len(programs) == 0 || want == "" {
		t.Fatalf("%d programs, the first with output %q; want one and what it prints", len(programs), want)
	}

	for i, source := range programs {
		t.Run(fmt.Sprintf("program %d", i+1), func(t *testing.T) {
			t.Parallel()
			binary := buildProgram(t, source)
			if i > 0 {
				return
			}
			cmd := exec.CommandContext(t.Context(), binary)
			cmd.Env = append(os.Environ(), "DATABASE_URL="+pgtest.URL(t))
			got, err := cmd.CombinedOutput()
			if err != nil || string(got) != want {
				t.Errorf("it printed\n%s(%v); README.md says\n%s", got, err, want)
			}
		})
	}
}

// buildProgram builds a program of one file against this repository. The file
// lies outside of it; the folder of this test decides what its imports mean.
func buildProgram(t *testing.T, source string) string {
	t.Helper()
	folder := t.TempDir()
	file, binary := filepath.Join(folder, "main.go"), filepath.Join(folder, "program")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, file).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	return binary
}

func TestPictureIsWhatItsProgramDraws(t *testing.T) {
	t.Parallel()
	command := exec.CommandContext(t.Context(), "go", "run", "docs/commit.go")
	command.Dir = ".."
	drawn, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("../docs/commit.svg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(drawn, kept) {
		t.Error("docs/commit.svg is not what docs/commit.go draws: go run docs/commit.go > docs/commit.svg")
	}
}
