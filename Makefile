# Two targets are for everybody: `make demo` and `make test`. Each installs or downloads what is missing, asks nothing, and changes neither
# the host's kernel nor its boot loader nor its firewall. Everything it makes lies in bin/ and .cache/ of this clone.

GO      ?= go
# A version of three numbers always (semver.org): clients read the engine's.
VERSION ?= $(shell { git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || echo 0.0.0-dev+$$(git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown); } | sed 's/^v//')
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
BUILT   ?= $(shell git log -1 --format=%cI 2>/dev/null || echo 0001-01-01T00:00:00Z)
LDFLAGS  = -s -w -X proa/internal/version.Version=$(VERSION) -X proa/internal/version.Commit=$(COMMIT) -X proa/internal/version.Built=$(BUILT)

.PHONY: build setup test test-long demo bench vet clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

setup:
	scripts/setup

test: setup build
	scripts/test

test-long: setup build
	scripts/test-long

demo: setup build
	scripts/demo

bench: setup build
	scripts/bench

vet:
	$(GO) vet -tags long ./...
	GOARCH=arm64 $(GO) vet ./...

clean:
	rm -rf bin .cache
