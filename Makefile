# What a person does here. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build test test-page test-metrics test-zoo test-measure test-clients check bench bench-serve bench-kernels bench-proxy chaos evaluate simulator-check fmt demo weights image test-image minikube-up minikube-load minikube-down clean

CARGO ?= cargo
DOCKER ?= docker
IMAGE ?= elastic:dev
# Where weights may lie already: ELASTIC_WEIGHTS_DIR, or a folder beside the checkout. Else they are downloaded.
ifdef ELASTIC_WEIGHTS_DIR
WEIGHTS_FROM := $(ELASTIC_WEIGHTS_DIR)
else
WEIGHTS_FROM := $(wildcard ../shared/weights)
endif

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: ## Build the release executable, target/release/elastic
	$(CARGO) build --release --locked

test: ## Formatting, clippy, docs and every test
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	$(CARGO) test --locked

test-page: ## The live page in headless Chromium, which must be installed (SHOTS=FOLDER keeps pictures of it)
	ELASTIC_TEST_REQUIRE=chromium $(if $(SHOTS),ELASTIC_TEST_SHOTS="$(abspath $(SHOTS))") $(CARGO) test --locked --test it page::

test-metrics: ## Every mode's /metrics through promtool, which must be installed (Debian's package prometheus)
	ELASTIC_TEST_REQUIRE=promtool $(CARGO) test --locked --test it metrics::

test-zoo: ## The feature `zoo`: clippy, docs and tests of the other networks
	$(CARGO) clippy --locked --all-targets --features zoo -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --features zoo
	RAYON_NUM_THREADS=1 $(CARGO) test --locked --features zoo zoo

test-measure: ## The feature `measure`: clippy, docs and tests of what `bench-kernels` runs
	$(CARGO) clippy --locked --all-targets --features measure -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --features measure
	$(CARGO) test --locked --lib --features measure measure

test-clients: ## Ask a replica with the clients of Triton, KServe and TorchServe, and hold its OpenAPI document against it
	$(CARGO) build --locked
	scripts/test-clients.sh --max-examples 50

check: test ## `test`, and licences, advisories and sources of the dependencies (needs cargo-deny)
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check; \
	else \
		echo "cargo-deny is not installed: run 'cargo install --locked cargo-deny', then 'make check' again" >&2; \
		exit 1; \
	fi

bench: ## Time this engine and every peer in turn, print the table (BENCH_ARGS="--rounds 5"; see benches/README.md)
	@CARGO="$(CARGO)" python3 benches/peers/bench.py $(BENCH_ARGS)

bench-serve: ## The same for the service: requests a second within the promise (BENCH_ARGS="--seconds 20")
	@CARGO="$(CARGO)" python3 benches/peers/bench_serve.py $(BENCH_ARGS)

bench-proxy: $(if $(ELASTIC),,build) ## The dispatcher as a proxy, beside nginx and HAProxy (BENCH_ARGS="--rounds 9"; see benches/proxy/README.md)
	@python3 benches/proxy/bench.py $(BENCH_ARGS)

# Pinned to the last core that this shell may use: a thread that moves finds its caches cold.
bench-kernels: ## Time every kernel alone and print its share of an inference and of the peak (BENCH_ARGS="int8/project")
	@$(CARGO) bench --locked --features measure --bench kernels --no-run
	@pin=""; \
	if command -v taskset >/dev/null; then \
		pin="taskset -c $$(awk '/^Cpus_allowed_list/ { n = split($$2, at, /[,-]/); print at[n] }' /proc/self/status)"; \
	fi; \
	$$pin $(CARGO) bench --locked --features measure --bench kernels -- $(BENCH_ARGS)

.PHONY: test-cluster
test-cluster: ## Judge IMAGE on the cluster that kubectl points at (TEST_CLUSTER_ARGS="--only kill"; see scripts/test-cluster.sh --help)
	@IMAGE="$(IMAGE)" scripts/test-cluster.sh $(TEST_CLUSTER_ARGS)

fmt: ## Format the sources
	$(CARGO) fmt

demo: build ## Start everything on this machine, replay workload.txt, judge the promise (see scripts/demo.sh)
	@$(MAKE) --no-print-directory weights || true
	scripts/demo.sh

chaos: $(if $(ELASTIC),,build) ## Kill, hang, overload and more, under load; what clients feel of it (CHAOS_ARGS="--only kill"; see docs/reliability.md)
	@python3 scripts/chaos/chaos.py $(CHAOS_ARGS)

evaluate: $(if $(ELASTIC),,build) ## Play the traces through the simulator with every scaling rule; writes docs/evaluation.md
	@python3 scripts/evaluate.py $(EVALUATE_ARGS)

simulator-check: $(if $(ELASTIC),,build) ## Run slo and step on this machine and in the simulator, side by side (CHECK_ARGS="--speed 2")
	@python3 scripts/simulator_check.py $(CHECK_ARGS)

weights: build ## Put MobileNetV2's weights into weights/, from ELASTIC_WEIGHTS_DIR, ../shared/weights or the web
	@env -u ELASTIC_WEIGHTS_DIR target/release/elastic weights fetch --dir weights \
		$(if $(WEIGHTS_FROM),--from "$(WEIGHTS_FROM)") || { \
		echo "no weights for MobileNetV2: the network inside the executable, EfficientNet-Lite0, runs instead" >&2; \
		exit 1; \
	}

image: ## Build the container image (IMAGE=elastic:dev; BUILDER_IMAGE, RUNTIME_IMAGE, IMAGE_ARGS: see docs/image.md)
	DOCKER_BUILDKIT=1 $(DOCKER) build --tag $(IMAGE) \
		$(if $(BUILDER_IMAGE),--build-arg BUILDER_IMAGE=$(BUILDER_IMAGE)) \
		$(if $(RUNTIME_IMAGE),--build-arg RUNTIME_IMAGE=$(RUNTIME_IMAGE)) \
		--build-arg REVISION="$$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" $(IMAGE_ARGS) .

test-image: ## Run every mode from the image, read-only and without rights, and print size and start (IMAGE=elastic:dev)
	IMAGE=$(IMAGE) DOCKER=$(DOCKER) scripts/test-image.sh

# The settings (CLUSTER=kind, CLUSTER=current IMAGE=..., OVERLAY=production, CPUS, MEMORY and more) are at the top of
# the script.
minikube-up: ## Start minikube if need be, bring the image there, deploy and wait (CLUSTER=kind; CLUSTER=current IMAGE=...)
	@scripts/cluster.sh up

minikube-load: $(if $(ELASTIC),,build) ## Replay workload.txt against what minikube-up deployed, and judge the promise (SPEED=10)
	@scripts/cluster.sh load

minikube-down: ## Remove what minikube-up deployed; the cluster stays
	@scripts/cluster.sh down

clean: ## Remove what was built
	$(CARGO) clean
