# `make` prints the targets. Everything a target needs beyond Go is named by
# CONTRIBUTING.md and installed by .ci/run.

IMAGE    ?= backupd:dev
GO_IMAGE ?= golang:1.26
FUZZTIME ?= 10s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo dev)
# For example: make test TESTFLAGS='-run Restore -v'
TESTFLAGS ?=
BENCHFLAGS ?=

TOOL    := go tool -modfile=tools/go.mod
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build test servers race check static format fmt vet lint vuln fuzz bench image demo clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the static binary, bin/backupd
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/backupd ./cmd/backupd

test: ## every test
	go test -timeout 20m $(TESTFLAGS) ./...

servers: ## the S3 servers and rclone that tests start, into .cache; tests build what is missing
	test/servers

race: ## every test, under the race detector
	go test -race -timeout 40m $(TESTFLAGS) ./...

check: static race ## what a change must pass: format, vet, lint, import rules, known holes, tests with -race

static: format vet lint vuln ## the part of check that runs nothing of ours

format: ## shows what gofumpt would change
	@rc=0; $(TOOL) gofumpt -d cmd internal $(wildcard bench) || rc=$$?; \
	if [ $$rc != 0 ]; then echo 'format: run "make fmt"'; fi; exit $$rc

fmt: ## formats in place
	$(TOOL) gofumpt -w cmd internal $(wildcard bench)

vet:
	go vet ./...

lint: ## golangci-lint with the import rules, and the proof that those can fail
	tools/lint-selfcheck
	$(TOOL) golangci-lint run ./...

vuln: ## known vulnerabilities, where their database can be reached
	@tools/vuln

fuzz: ## every fuzz target for FUZZTIME (10s)
	@tools/fuzz $(FUZZTIME)

bench: ## the benchmarks of docs/benchmarks.md
	go run ./bench $(BENCHFLAGS)

image: ## the image, IMAGE (backupd:dev); HOSTGO=1 builds the binary outside Docker
	@IMAGE='$(IMAGE)' GO_IMAGE='$(GO_IMAGE)' VERSION='$(VERSION)' MAKE='$(MAKE)' tools/image

demo: build ## a volume is backed up, lost and restored
	@test/demo.sh bin/backupd

clean: ## removes what was built
	rm -rf bin
