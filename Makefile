# The project's commands, each a line or a script; `make` lists them.

.DEFAULT_GOAL := help
.PHONY: help demo test build unit race e2e lint fmt fuzz bench bench-peers mutants stacks records xcaddy clean

FUZZTIME ?= 30s
BENCH ?= .
COUNT ?= 5
OUT ?= bench/results
MUTATE ?= internal/stamp internal/bokeh internal/breaker internal/admission internal/sessions internal/verdict

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## three real Bokeh servers behind Caddy, to click at; Ctrl-C ends it
	@scripts/need e2e
	@go -C e2e build -buildvcs=false -o ../.build/demo ./demo
	@exec .build/demo

test: ## everything that CI runs, after installing what it needs where that is possible
	@scripts/test

build: ## Caddy with this module, as .build/caddy
	@scripts/need .
	go build -buildvcs=false -o .build/caddy ./cmd/caddy

unit: ## the unit tests and the seeds of the fuzz targets
	@scripts/test unit

race: ## the same under the race detector
	@scripts/test race

e2e: ## the tests with real Bokeh servers and a real browser
	@scripts/test e2e

lint: ## vet, formatting and linters
	@scripts/test vet tidy fmt lint

fmt: ## rewrite the code to the newest idioms and the one format
	@scripts/need .
	for module in . e2e bench; do (cd $$module && go fix ./...) || exit; done
	go tool -modfile=tools/go.mod golangci-lint fmt

fuzz: ## each fuzz target for FUZZTIME (30s)
	@scripts/need .
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package || exit; \
		done; \
	done

bench: ## the benchmarks that match BENCH (all), COUNT times (5) on one core and on two; their medians
	@scripts/need .
	@mkdir -p .build
	go test -run '^$$' -bench '$(BENCH)' -benchmem -cpu 1,2 -count $(COUNT) ./... | tee .build/bench.txt
	@go tool -modfile=tools/go.mod benchstat .build/bench.txt

bench-peers: ## HAProxy, nginx, Caddy's own policies and this one side by side: WORKS and PEERS (all), COUNT times (5), kept in OUT
	@scripts/need bench
	@go -C bench build -buildvcs=false -o ../.build/bench-peers .
	@exec .build/bench-peers -works '$(WORKS)' -peers '$(PEERS)' -count $(COUNT) -out '$(OUT)' $(ARGS)

mutants: ## which of many small faults, put one by one into MUTATE (the pure packages), no test that matches RUN (all) notices; fails under 85 %
	@scripts/need .
	@go -C tools/mutants test .
	@go -C tools/mutants run . -run '$(RUN)' $(MUTATE)

stacks: ## what `make e2e` does with every stack, and the table of them in docs/bokeh-servers.md written anew
	@scripts/need e2e
	cd e2e && UPDATE_DOCS=1 go test -count=1 -timeout 30m -run '^TestStacks$$' -v .

records: ## what the version before keeps in the storage, written anew into testdata/records by a Caddy of that version
	@scripts/records

xcaddy: ## Caddy with this module as users build it, as .build/caddy-xcaddy
	@scripts/test xcaddy

clean: ## remove all that was built
	rm -rf .build
