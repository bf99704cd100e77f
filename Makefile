.PHONY: run test check lint gofumpt vet staticcheck golangci-lint e2e bench fuzz soak
GO ?= go
TOOL = $(GO) tool -modfile=tools.mod
FUZZTIME ?= 10s
CLIENTS = bin/crane bin/helm bin/buildkitd bin/buildctl bin/kubecheck

run:
	$(GO) run .
test:
	$(GO) test -race ./...
check: lint test
bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...
soak: # minutes: herds, kill -9, lazy pulls; prints its figures
	$(GO) test -tags soak -count 1 -timeout 30m -run Soak -v .

lint: gofumpt vet staticcheck golangci-lint
gofumpt: # lists what it would change
	! $(TOOL) gofumpt -l . | grep .
vet:
	$(GO) vet -tags e2e,soak ./...
staticcheck:
	$(TOOL) staticcheck -tags e2e,soak ./...
golangci-lint:
	$(TOOL) golangci-lint run

# Real clients against the built binary: as root, on Debian, with the packages that .ci/run installs.
e2e: $(CLIENTS)
	$(GO) test -tags e2e -count 1 -timeout 15m $(E2EFLAGS) ./e2e
$(CLIENTS) &: e2e/tools.mod
	$(GO) build -modfile=e2e/tools.mod -o bin/ tool ./e2e/testdata/kubecheck
	touch $(CLIENTS)

fuzz: # a finding is kept and fails again; that the engine missed its own deadline does not
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r f; do \
	for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$f"); do \
	run() { echo "$$f: $$t"; $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$f")"; }; run || run; done; done
