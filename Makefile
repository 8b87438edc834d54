# `make help` explains every target.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
LAB     ?= eclusa
LAB_DIR ?= /var/tmp/eclusa-lab-$(LAB)
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --always --dirty --abbrev=12 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/eclusa-lb/eclusa/version.number=$(VERSION)
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
# Tells again at the end what failed, where thousands of lines lie between.
TESTSUM  := gotest.tools/gotestsum@v1.13.0

# What images and packages are made for.
PLATFORMS ?= linux/amd64,linux/arm64

# Packages that are tested at once: tests wait more than they compute.
PACKAGES := $(shell expr `nproc` + 1)

# Packages whose tests need nothing but this machine; the rest is the lab's. Those that
# take longest begin first, so that none of them is alone at the end.
LONGEST := ./cmd/eclusa-edge ./provider ./lb/proxy ./release ./lb/nftables
UNIT = $(LONGEST) $(shell $(GO) list ./... | grep -v -e /e2e -e /lab)

.PHONY: help
help: ## explain every target
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## bring up a real cluster on this machine, install eclusa with Helm, serve a Service through port 80, kill a node, take all down (needs root)
	$(GO) run ./lab/cmd/lab demo

.PHONY: up
up: ## bring the lab up and leave it running, with kubectl and helm for your shell (needs root; LAB=name for several)
	$(GO) run ./lab/cmd/lab up --name $(LAB) --dir $(LAB_DIR)

.PHONY: down
down: ## take the lab of `make up` down completely
	$(GO) run ./lab/cmd/lab down --dir $(LAB_DIR)

.PHONY: build
build: ## build the programs into bin/
	CGO_ENABLED=0 $(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# A chart's version must be a semantic one: v1.2.3-4-gabc stays, a bare commit becomes 0.0.0-gabc.
CHART_VERSION = $(shell echo '$(VERSION)' | sed -E 's/^v?([0-9]+\.[0-9]+\.[0-9]+)/\1/; t; s/[^0-9A-Za-z-]/-/g; s/^/0.0.0-g/')

.PHONY: chart
chart: ## package the Helm chart into dist/, with the version from git
	@helm=$$($(GO) run ./lab/cmd/lab build --helm)/helm4; \
	  "$$helm" lint --strict charts/eclusa && \
	  "$$helm" package charts/eclusa --destination dist --version '$(CHART_VERSION)' --app-version '$(VERSION)'

.PHONY: image
image: ## images of the programs for amd64 and arm64 (PLATFORMS=linux/amd64 for one) into bin/images/, without Docker
	$(GO) run ./release/cmd/release image --platform $(PLATFORMS)

.PHONY: package
package: ## Debian and RPM packages of the edge for amd64 and arm64 into bin/packages/
	$(GO) run ./release/cmd/release package --platform $(PLATFORMS)

.PHONY: test
test: lint-fast lab-binaries ## every test: formatting and vet, all packages with the race detector, the lab and end to end (needs root)
	@$(MAKE) --no-print-directory test-unit ECLUSA_KUBERNETES="$$($(GO) run ./lab/cmd/lab build)"
	@$(MAKE) --no-print-directory test-lab

.PHONY: test-unit
test-unit: ## the tests of all packages with the race detector; those that need root say so and are skipped without it
	$(GO) test -race -p $(PACKAGES) -timeout 15m $(UNIT)

.PHONY: tools
tools: ## install the Debian packages that tests look at things with and that are missing (needs root)
	@./.ci/tools

.PHONY: test-lab
test-lab: lab-binaries ## the tests on a real cluster: the lab itself and end to end (needs root)
	$(GO) run $(TESTSUM) --format standard-verbose --no-color --hide-summary=skipped -- -timeout 40m -p 1 ./lab/... ./e2e/... 2>&1 \
	  | grep -v -e '^=== \(RUN\|PAUSE\|CONT\|NAME\)' -e '^\s*$$'

.PHONY: lab-binaries
lab-binaries: ## build Kubernetes, etcd and Helm for the lab, once per version, outside the checkout
	$(GO) run ./lab/cmd/lab build
	$(GO) run ./lab/cmd/lab build --helm

.PHONY: fuzz
fuzz: ## fuzz every decoder for FUZZTIME each (default 30s)
	@for f in $$(grep -rl --include='*_test.go' '^func Fuzz' . ); do \
	  for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$f); do \
	    echo "== $$(dirname $$f) $$name"; $(GO) test -run '^$$' -fuzz "^$$name$$" -fuzztime $${FUZZTIME:-30s} ./$$(dirname $$f); done; done

# Ratios take many rounds; what is a state, or must never happen, takes few.
BENCH_ROUNDS ?= 20
BENCH_DATA := $(or $(TMPDIR),/tmp)/eclusa-bench-samples

.PHONY: bench
bench: ## eclusa's engines and their peers side by side, with the report in docs/benchmarks (needs root and two hours of a quiet machine)
	rm -f '$(BENCH_DATA)'
	$(GO) build -o bin/bench ./bench
	bin/bench --data '$(BENCH_DATA)' --rounds $(BENCH_ROUNDS) --measures requests,connections,bulk,bulk8,latency,echo,flood,timewait,size
	bin/bench --data '$(BENCH_DATA)' --rounds $(BENCH_ROUNDS) --measures healthcheck
	bin/bench --data '$(BENCH_DATA)' --rounds 3 --measures idle,swap,death
	bin/bench --data '$(BENCH_DATA)' --rounds 0 --report docs/benchmarks

.PHONY: lint
lint: lint-fast ## every linter of .golangci.yml (builds golangci-lint once)
	$(GO) run $(GOLANGCI) run ./...

.PHONY: lint-fast
lint-fast: ## gofmt and go vet
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not gofmt-ed, run gofmt -w:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...

.PHONY: generate
generate: ## regenerate what is made from other files: deepcopy functions, custom resources, manual pages, references, the table of values
	$(GO) generate ./...
