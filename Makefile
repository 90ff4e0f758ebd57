# Every workspace module has one path prefix, so one pattern covers them all.
MODULE := github.com/samecommit/samecommit

# The folders of the workspace's modules. tools stands apart: what linters need
# must not choose versions for anyone else.
MODULES = $(shell go list -m -f '{{.Dir}}')

GOLANGCI_LINT = .bin/golangci-lint-$(firstword $(shell cksum < tools/go.sum))
SQLC = GOWORK=off go -C tools tool sqlc

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z\/]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## run the payments example; ARGS="..." passes arguments
	go run ./examples/payments $(ARGS)

# -count=1: a remembered result says nothing about today's server. -short: of
# what make chaos runs whole, a part. The timeouts here are for tests that hang, and
# far longer than the others take on a busy machine.
.PHONY: test
test: ## run every test, on one server; RACE=1 adds the race detector, ARGS="-run ..." selects
	go run ./tests/withservers go test -count=1 -short -timeout 30m $(if $(RACE),-race) $(ARGS) $(MODULE)/...

.PHONY: test/race
test/race: ## run every test with the race detector
	@$(MAKE) --no-print-directory test RACE=1

# How many worlds to simulate, and how many inputs each fuzz target gets. Not a
# time: at its end Go 1.26 fails now and then without a finding (golang/go#75804).
# Nor a time for making an input smaller, which is a minute for each otherwise.
SEEDS ?= 100000
FUZZCOUNT ?= 150000

.PHONY: chaos
chaos: ## cut, kill, fail over, interleave and simulate; prints what was injected and what came of it
	.ci/tables -timeout 1h $(MODULE)/idempotency/httpidem $(MODULE)/idempotency/sqlstore
	.ci/tables -timeout 1h $(MODULE)/tests/sim -run '^(TestSimulation|TestLeases)$$' -sim.seeds=$(SEEDS)
	.ci/tables -timeout 1h $(MODULE)/tests/chaos
	.ci/tables -timeout 1h -parallel 8 $(MODULE)/tests/interleavings
	.ci/tables -timeout 1h $(MODULE)/tests/storemodel $(MODULE)/tests/property -rapid.checks=5000
	.ci/tables -timeout 1h $(MODULE)/tests -run '^TestStoreModel$$' -rapid.checks=500
	@for package in idempotency idempotency/httpidem tests/property; do \
		targets=$$(go test -list '^Fuzz' $(MODULE)/$$package | grep '^Fuzz') || { echo "no fuzz target in $$package" >&2; exit 1; }; \
		for target in $$targets; do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZCOUNT)x -fuzzminimizetime 1000x $(MODULE)/$$package || exit 1; \
		done; \
	done

.PHONY: mutants
mutants: ## break the product, one way at a time: a named test must notice; ARGS="-run ..." selects
	go run ./tests/mutants $(ARGS)

.PHONY: matrix
matrix: ## run tests/matrix on PostgreSQL 14 to 18; VERSIONS="..." chooses
	.ci/matrix $(VERSIONS)

.PHONY: bench
bench: ## measure beside hand-written code, for twenty minutes; ARGS="-short" checks that it runs
	go run ./benchmarks $(ARGS)

.PHONY: lint
lint: $(GOLANGCI_LINT) ## run the linters
	$(GOLANGCI_LINT) run $(addsuffix /...,$(MODULES))

# Built once for each version: it takes minutes.
$(GOLANGCI_LINT):
	@rm -f .bin/golangci-lint-*
	GOWORK=off go -C tools build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# grep fails where no test of that name ran, which go test calls a success.
.PHONY: verify
verify: ## check what is generated, go.mod files, the schema and other systems
	$(SQLC) diff -f ../sqlc.yaml
	@for dir in $(MODULES) tools; do \
		echo "go mod tidy -diff in $$dir"; \
		GOWORK=off go -C "$$dir" mod tidy -diff || exit 1; \
	done
	@echo "go directives"; \
	versions=$$(grep -hE '^go ' go.work tools/go.mod $(addsuffix /go.mod,$(MODULES)) | sort -u); \
	if [ "$$(echo "$$versions" | wc -l)" != 1 ]; then \
		echo "go.mod and go.work files name different versions of Go; use one:" $$versions >&2; exit 1; \
	fi
	go run ./tests/mutants -list >/dev/null
	GOOS=windows go build ./...
	@output=$$(go run ./tests/withservers -only postgres go test -count=1 -v -run '^TestSchemaGolden$$' $(MODULE)/migrations 2>&1); \
	echo "$$output" | grep '^--- PASS: TestSchemaGolden' || { echo "$$output"; exit 1; }

.PHONY: generate
generate: ## write package db from queries and migrations
	$(SQLC) generate -f ../sqlc.yaml

.PHONY: tidy
tidy: ## run go mod tidy in every module
	@for dir in $(MODULES) tools; do GOWORK=off go -C "$$dir" mod tidy || exit 1; done
