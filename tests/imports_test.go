package tests_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/samecommit/samecommit"

// listedPackage is what go list says of one package of the root module.
type listedPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func goList(t *testing.T) []listedPackage {
	t.Helper()
	var packages []listedPackage
	decoder := json.NewDecoder(strings.NewReader(goCommand(t, "list", "-json=ImportPath,Imports,Deps", "./...")))
	for decoder.More() {
		var listed listedPackage
		if err := decoder.Decode(&listed); err != nil {
			t.Fatal(err)
		}
		packages = append(packages, listed)
	}
	if len(packages) == 0 {
		t.Fatal("go list found no package")
	}
	return packages
}

// goCommand runs go in the root module alone, as a program that requires it
// gets it: the workspace would let another module's requirement in.
func goCommand(t *testing.T, args ...string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", args...)
	command.Dir = ".."
	command.Env = append(command.Environ(), "GOWORK=off")
	output, err := command.Output()
	if err != nil {
		var stderr []byte
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			stderr = exit.Stderr
		}
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return string(output)
}

func findPackage(t *testing.T, packages []listedPackage, path string) listedPackage {
	t.Helper()
	for _, listed := range packages {
		if listed.ImportPath == path {
			return listed
		}
	}
	t.Fatalf("go list does not list %s", path)
	return listedPackage{}
}

// isStandard goes by the rule that the go command goes by: the first element of
// every other import path has a dot.
func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func isOurs(path string) bool {
	return path == modulePath || strings.HasPrefix(path, modulePath+"/")
}

func TestImports(t *testing.T) {
	t.Parallel()
	packages := goList(t)

	t.Run("the core needs the standard library only", func(t *testing.T) {
		t.Parallel()
		for _, dep := range findPackage(t, packages, modulePath+"/idempotency").Deps {
			// C stands for cgo, vendor/ for what the standard library brings.
			if !isStandard(dep) {
				t.Errorf("idempotency depends on %s", dep)
			}
		}
	})

	t.Run("each package imports what docs/design.md lets it", func(t *testing.T) {
		t.Parallel()
		const pgx, goose = "github.com/jackc/pgx/v5", "github.com/pressly/goose/v3"
		allowed := map[string][]string{
			"db":                          {pgx},
			"idempotency":                 {},
			"idempotency/httpidem":        {"idempotency"},
			"idempotency/idempotencytest": {pgx, "internal/pgcut"},
			"idempotency/memstore":        {"idempotency"},
			"idempotency/pgxstore":        {pgx, "db", "idempotency", "txhelper"},
			"idempotency/sqlstore":        {pgx, "idempotency", "idempotency/pgxstore", "txhelper"},
			"idempotency/storetest":       {"idempotency"},
			"internal/pgcut":              {pgx},
			"internal/pgserver":           {pgx},
			"internal/pgtest":             {pgx, "internal/pgserver", "migrations"},
			"internal/pgtest/bench":       {pgx, "idempotency", "idempotency/pgxstore", "idempotency/storetest"},
			"migrations":                  {pgx, goose},
			"txhelper":                    {pgx},
		}
		for _, listed := range packages {
			name := strings.TrimPrefix(listed.ImportPath, modulePath+"/")
			may, ok := allowed[name]
			if !ok {
				t.Errorf("%s is new: say here and in docs/design.md, part Layers, what it may import", name)
				continue
			}
			for _, path := range listed.Imports {
				path, ours := strings.CutPrefix(path, modulePath+"/")
				if isStandard(path) && !ours {
					continue
				}
				if !slices.ContainsFunc(may, func(one string) bool { return path == one || !ours && strings.HasPrefix(path, one+"/") }) {
					t.Errorf("%s imports %s", name, path)
				}
			}
			delete(allowed, name)
		}
		for name := range allowed {
			t.Errorf("%s is listed here and is no package", name)
		}
	})

	t.Run("the test kit needs no client of ours", func(t *testing.T) {
		t.Parallel()
		listed := findPackage(t, packages, modulePath+"/idempotency/idempotencytest")
		for _, dep := range listed.Deps {
			if isOurs(dep) && dep != modulePath+"/internal/pgcut" {
				t.Errorf("idempotencytest depends on %s", dep)
			}
		}
	})

	t.Run("users' programs do not link package testing", func(t *testing.T) {
		t.Parallel()
		// It would add its flags to theirs.
		forTests := []string{modulePath + "/idempotency/storetest", modulePath + "/idempotency/idempotencytest", modulePath + "/internal/pgtest", modulePath + "/internal/pgtest/bench"}
		for _, listed := range packages {
			if slices.Contains(listed.Deps, "testing") && !slices.Contains(forTests, listed.ImportPath) {
				t.Errorf("%s depends on testing", listed.ImportPath)
			}
		}
		// Were it not found here, it would be found nowhere.
		if !slices.Contains(findPackage(t, packages, modulePath+"/internal/pgtest").Deps, "testing") {
			t.Error("internal/pgtest does not depend on testing: this test no longer sees what it looks for")
		}
	})
}

func TestRootModuleRequiresPgxAndGooseOnly(t *testing.T) {
	t.Parallel()
	var module struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal([]byte(goCommand(t, "mod", "edit", "-json")), &module); err != nil {
		t.Fatal(err)
	}
	var direct []string
	for _, required := range module.Require {
		if !required.Indirect {
			direct = append(direct, required.Path)
		}
	}
	slices.Sort(direct)
	if want := []string{"github.com/jackc/pgx/v5", "github.com/pressly/goose/v3"}; !slices.Equal(direct, want) {
		t.Errorf("go.mod requires %v, want %v", direct, want)
	}
}
