# `make` prints the targets. Everything a target needs beyond Go is named by
# CONTRIBUTING.md and installed by .ci/run.

IMAGE    ?= backupd:latest
PLATFORMS ?= amd64 arm64 armv7
GO_IMAGE ?= golang:1.26
FUZZTIME ?= 10s
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo dev)
# For example: make test TESTFLAGS='-run Restore -v'
TESTFLAGS ?=
BENCHFLAGS ?=
SOAK       ?= 5m

TOOL    := go tool -modfile=tools/go.mod
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build host test servers parts engine newengine rootless e2e race check static format fmt vet lint vuln fuzz soak bench image demo clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the static binary, bin/backupd
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/backupd ./cmd/backupd

test: ## every test but those that run whole stacks
	go test -timeout 35m $(TESTFLAGS) $$(go list ./... | grep -v /test/e2e)

e2e: parts ## whole stacks on a real engine: the image, the examples, end to end
	go test -timeout 25m $(TESTFLAGS) ./test/e2e/...

host: ## backupd-host for macOS and Windows, into bin
	for os in darwin windows; do for arch in amd64 arm64; do \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' \
			-o bin/backupd-host-$$os-$$arch$$([ $$os = windows ] && echo .exe) ./cmd/backupd-host || exit 1; \
	done; done

servers: ## the S3 servers and rclone that tests start, into .cache; tests build what is missing
	test/servers

parts: ## Compose and the images that stacks in tests are made of; made once
	test/compose
	test/images

engine: ## builds the newest engine into .cache, for newengine
	test/engine newest

newengine: parts ## what asks an engine, on the newest one
	IMAGES='base postgres mariadb redis' test/engine newest sh -ec "\
		go test -count=1 -timeout 12m $(TESTFLAGS) ./internal/docker ./internal/seed; \
		go test -count=1 -timeout 10m $(TESTFLAGS) -run 'AgentOfAMachine|AProjectIs|ACloneHas|RestoreOver|ComposeTakes' ./test/e2e"

rootless: parts ## what asks an engine, on a rootless one
	IMAGES='base postgres mariadb redis' test/engine rootless sh -ec "\
		go test -short -count=1 -timeout 10m $(TESTFLAGS) ./internal/docker; \
		go test -count=1 -timeout 10m $(TESTFLAGS) ./internal/seed; \
		go test -count=1 -timeout 10m $(TESTFLAGS) -run 'AgentOfAMachine|AProjectIs|ACloneHas|RestoreOver|ImageNeeds|Nightly' ./test/e2e"

race: ## every test but whole stacks, under the race detector
	go test -race -timeout 40m $(TESTFLAGS) $$(go list ./... | grep -v /test/e2e)

check: static race ## what a change must pass: format, vet, lint, import rules, known holes, tests with -race

static: format vet lint vuln ## the part of check that runs nothing of ours

format: ## shows what gofumpt would change
	@rc=0; $(TOOL) gofumpt -d cmd internal bench test/e2e || rc=$$?; \
	if [ $$rc != 0 ]; then echo 'format: run "make fmt"'; fi; exit $$rc

fmt: ## formats in place
	$(TOOL) gofumpt -w cmd internal bench test/e2e

vet:
	go vet ./...

lint: ## golangci-lint with the import rules, and the proof that those can fail
	tools/lint-selfcheck
	$(TOOL) golangci-lint run ./...

vuln: ## known vulnerabilities, where their database can be reached
	@tools/vuln

fuzz: ## every fuzz target for FUZZTIME (10s)
	@tools/fuzz $(FUZZTIME)

soak: ## many runs with kills, faults and prunes on a real S3 server, for SOAK (5m)
	SOAK=$(SOAK) go test -count=1 -timeout 0 -run TestSoak -v ./cmd/backupd

bench: ## the benchmarks of docs/benchmarks.md
	go run ./bench $(BENCHFLAGS)

image: ## the image, IMAGE (backupd:latest), for PLATFORMS; HOSTGO=1 builds the binary outside Docker
	@IMAGE='$(IMAGE)' PLATFORMS='$(PLATFORMS)' GO_IMAGE='$(GO_IMAGE)' VERSION='$(VERSION)' REVISION='$(REVISION)' tools/image

demo: ## a stack is used, snapshotted, wiped, and comes up again with its data
	@IMAGE=backupd:demo PLATFORMS=native HOSTGO=1 VERSION='$(VERSION)' REVISION='$(REVISION)' tools/image
	@test/demo.sh backupd:demo

clean: ## removes what was built
	rm -rf bin
