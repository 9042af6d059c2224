# The names of these targets are stable: documentation and continuous
# integration refer to them.

GO      ?= go
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOTOOLCHAIN ?= local

# The version needs no tags: a release file, or the date and name of the commit.
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
DIRTY   := $(shell git diff --quiet HEAD 2>/dev/null || echo +dirty)
DATE    := $(shell git log -1 --format=%cd --date=format:%Y%m%d 2>/dev/null || echo 00000000)
VERSION ?= 0.1.0-dev.$(DATE).$(COMMIT)$(DIRTY)

LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# Several packages make mounts, loop devices and cgroups; two at a time is
# what a small machine stands.
TESTFLAGS ?= -p 2 -timeout 10m
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: all setup build demo test bench crash escape gvisor agents agents_all corruption instant rowdiff check clean

all: build

setup:
	@scripts/setup.sh

build:
	@$(BUILD) -o bin/ ./cmd/mayfly ./cmd/mayfly-guest

demo: setup build
	@examples/demo.sh

test:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) run ./internal/testreport $(TESTFLAGS) ./...

bench:
	@scripts/setup.sh bench
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) run ./internal/bench -o bench-results.json

crash: setup build
	@CGO_ENABLED=0 $(GO) run ./internal/testreport -count=1 -timeout 60m ./internal/crash -points 200

# The table names every door, and what was found inside and outside.
ESCAPE_TABLE := $(CURDIR)/bin/escape.txt

escape:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory build
	@rm -f $(ESCAPE_TABLE)
	@MAYFLY_ESCAPE_TABLE=$(ESCAPE_TABLE) CGO_ENABLED=0 $(GO) run ./internal/testreport -count=1 -timeout 20m ./internal/escape/...; \
		status=$$?; cat $(ESCAPE_TABLE); exit $$status

# What both isolations promise, and the escape suite, under gVisor.
gvisor:
	@scripts/setup.sh gvisor
	@$(MAKE) --no-print-directory build
	@rm -f $(ESCAPE_TABLE)
	@CI= MAYFLY_ESCAPE_TABLE=$(ESCAPE_TABLE) CGO_ENABLED=0 $(GO) run ./internal/testreport -tags gvisor -count=1 -p 1 -timeout 20m ./cmd/mayfly-guest ./internal/escape/...; \
		status=$$?; cat $(ESCAPE_TABLE); exit $$status
	@CI= CGO_ENABLED=0 $(GO) run ./internal/testreport -tags gvisor -count=1 -p 1 -timeout 20m -run 'GVisor|Listen|PortHeld' ./internal/driver/local

agents:
	@scripts/setup.sh agents
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) run ./internal/testreport -tags agents -count=1 -p 1 -timeout 45m ./internal/agents ./internal/agentconfig

agents_all:
	@scripts/setup.sh agents
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) run ./internal/testreport -tags agents,agents_all -count=1 -p 1 -timeout 60m ./internal/agents

# Postgres under load, snapshot after snapshot, each checked.
corruption:
	@scripts/setup.sh test
	@MAYFLY_CORRUPTION_ROUNDS=500 CGO_ENABLED=0 $(GO) run ./internal/testreport -count=1 -timeout 120m -run TestFrozenSnapshotsAreSound ./internal/postgres

# A counter in a file and in a row: each snapshot has both of the same instant.
instant:
	@scripts/setup.sh test
	@MAYFLY_INSTANT_ROUNDS=500 CGO_ENABLED=0 $(GO) run ./internal/testreport -count=1 -timeout 60m -run TestFilesAndRowsAreOfTheSameInstant ./internal/driver/local

# Random schemas and changes: scripts made of a difference give the other state.
rowdiff:
	@scripts/setup.sh test
	@MAYFLY_CASES=1000 CGO_ENABLED=0 $(GO) run ./internal/testreport -count=1 -timeout 120m -run ScriptsMake ./internal/rowdiff

check:
	@scripts/setup.sh check
	@scripts/check.sh '$(STATICCHECK)' '$(GOVULNCHECK)'

clean:
	rm -rf bin bench-results.json
