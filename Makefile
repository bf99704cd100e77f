.PHONY: run test quick check lint gofumpt vet staticcheck golangci-lint e2e fuzz soak microbench bench bench-full bench-check
GO ?= go
TOOL = $(GO) tool -modfile=tools.mod
BENCHTOOL = $(GO) tool -modfile=../tools.mod
# Where the product raises a version, the module of its benchmarks follows.
BENCHMOD = -mod=mod
FUZZTIME ?= 10s
COUNT ?= 6
CLIENTS = bin/crane bin/helm bin/buildkitd bin/buildctl bin/kubecheck

run:
	$(GO) run .
test: # what hangs is told by its stack, before .ci/run ends it
	$(GO) test -race -timeout 12m ./...
	cd bench && $(GO) test $(BENCHMOD) -race ./...
quick: # the same without the race detector: in two minutes
	$(GO) test ./...
check: lint test
microbench: # two of its outputs are what benchstat compares
	$(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) ./...
soak: # minutes: herds, kill -9, lazy pulls; prints its figures
	$(GO) test -tags soak -count 1 -timeout 30m -run Soak -v .

lint: gofumpt vet staticcheck golangci-lint
gofumpt: # lists what it would change
	! $(TOOL) gofumpt -l . | grep .
vet:
	$(GO) vet -tags e2e,soak ./...
	cd bench && $(GO) vet $(BENCHMOD) ./...
staticcheck:
	$(TOOL) staticcheck -tags e2e,soak ./...
	cd bench && $(BENCHTOOL) staticcheck ./...
golangci-lint:
	$(TOOL) golangci-lint run
	cd bench && $(BENCHTOOL) golangci-lint run

# Real clients against the built binary: as root, on Debian, with the packages that .ci/run installs.
e2e: $(CLIENTS)
	$(GO) test -tags e2e -count 1 -timeout 15m $(E2EFLAGS) ./e2e
$(CLIENTS) &: e2e/tools.mod
	$(GO) build -modfile=e2e/tools.mod -o bin/ tool ./e2e/testdata/kubecheck
	touch $(CLIENTS)

# One after the other would take ten minutes, so two run at once, with a worker each. A finding is kept and fails again;
# that the engine missed its own deadline does not.
fuzz:
	@grep -r --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sort | sed 's|/[^/]*:func | |' | xargs -P 2 -L 1 sh -c ' \
	t="^$$1\$$"; run() { $(GO) test -run "^$$" -fuzz "$$t" -fuzztime $(FUZZTIME) -parallel 1 "$$0" 2>&1; }; \
	out=$$(run || run); code=$$?; printf "%s %s\n%s\n" "$$0" "$$1" "$$out"; exit $$code'

# Side by side with other programs: as root, on Debian with Go, under half an hour; bench/setup.sh installs them.
bench: BEGAN := $(shell date +%s)
bench: bench/bin/bench bench/bin/registry
	cd bench && bin/bench -began $(BEGAN) -results results/performance.json -docs ../docs $(BENCHFLAGS)
bench-full: bench/bin/bench bench/bin/registry
	cd bench && bin/bench -full -results bin/full/performance.json -docs bin/full $(BENCHFLAGS)
# What is a ratio must not be worse than what is committed: the workloads that need no minute each.
bench-check: bench/bin/bench
	cd bench && bin/bench -check results/performance.json -rivals direct,nginx-files,bare -run cold-pull,herd,warm,cold-ranges,trace,start,far $(BENCHFLAGS)
.PHONY: bench/bin/bench
bench/bin/bench:
	GO=$(GO) bench/setup.sh
	cd bench && $(GO) build $(BENCHMOD) -o bin/bench .
bench/bin/registry: bench/tools.mod # where it cannot be built, it is shown as failing
	-$(GO) build -modfile=bench/tools.mod -o bench/bin/registry github.com/distribution/distribution/v3/cmd/registry \
	&& touch bench/bin/registry
