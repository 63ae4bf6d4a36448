# What CI runs is `make test`; every other target is one of its parts, or a help in between.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

CARGO ?= cargo
# The same for everything that is built for tests, so that it is built once.
test_features := --features failpoints
target := $(or $(CARGO_TARGET_DIR),target)
host = $(shell rustc -vV | sed -n 's/^host: //p')
version = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
image = $(target)/image/weir-$(version).tar
static = $(target)/$(host)/release/weir
labels = org.opencontainers.image.title=weir \
  org.opencontainers.image.description="Routes CloudEvents inside a Kubernetes cluster" \
  org.opencontainers.image.licenses=Apache-2.0 \
  org.opencontainers.image.version="$(version)" \
  org.opencontainers.image.revision="$$(git rev-parse HEAD 2>/dev/null || echo unknown)"
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weir

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: test
test: lint chart deny unit integration e2e ## Everything that CI runs

.PHONY: fmt
fmt: rust ## Format the code
	$(CARGO) fmt
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

.PHONY: lint
lint: rust ## Check the formatting and the lints; a warning is an error
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked $(test_features) --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --manifest-path fuzz/Cargo.toml --target-dir $(target) -- -D warnings

.PHONY: unit
unit: rust ## Test units (those of the JetStream log with a NATS server), examples in the docs, arrows between rooms
	export WEIR_NATS="$$(tests/nats/build.sh)"
	$(CARGO) test --locked $(test_features) --lib --bins --test architecture
	$(CARGO) test --locked $(test_features) --doc

# KUBERNETES=oldest takes the API server of the oldest version that is supported.
.PHONY: integration
integration: rust ## Test against a real API server, built on the first run (see tests/README.md)
	assets="$$(tests/kubernetes/build.sh $(KUBERNETES))"
	interop="$$(tests/interop/build.sh)" nats="$$(tests/nats/build.sh)"
	KUBEBUILDER_ASSETS="$$assets" WEIR_INTEROP="$$interop" WEIR_NATS="$$nats" \
	  $(CARGO) test --locked $(test_features) --test integration -- --skip e2e::

# On the cluster of KUBECONFIG, if WEIR_IMAGE_REFERENCE names the image that it is to pull; else on a node of its own, on
# a machine that can be one. Elsewhere it says what the machine lacks.
.PHONY: e2e
e2e: rust ## Test Weir as it is installed, on a cluster of one node or a given one (see tests/README.md)
	@run() { $(CARGO) test --locked $(test_features) --test integration e2e:: -- --nocapture --test-threads=1; }
	if [[ -n "$${WEIR_IMAGE_REFERENCE:-}" ]]; then
	  export KUBEBUILDER_ASSETS="$$(tests/kubernetes/build.sh)"
	  run
	  exit
	fi
	lacks="$$(tests/kubernetes/lacks.sh)"
	if [[ -n "$$lacks" ]]; then
	  echo "skipped: the end-to-end tests. To be a node, this machine lacks $$lacks"
	  exit
	fi
	$(MAKE) image
	export KUBEBUILDER_ASSETS="$$(tests/kubernetes/build.sh)" WEIR_NODE_ASSETS="$$(tests/kubernetes/build.sh node)"
	export WEIR_IMAGE="$(abspath $(image))" WEIR_NATS="$$(tests/nats/build.sh)"
	run

# The advisories need the RustSec database, which is fetched from the network: ADVISORIES=1 asks for them.
.PHONY: deny
deny: rust ## Check licences, bans and sources (with ADVISORIES=1 also advisories); builds cargo-deny on the first run
	deny="$$(CARGO="$(CARGO)" tests/cargo-deny/build.sh)"
	"$$deny" --locked check licenses bans sources $(if $(ADVISORIES),advisories)

.PHONY: crds
crds: rust ## Write the custom resource definitions to crds/
	$(CARGO) run --locked --quiet -- crds --out crds

# The test that compares the page is what writes it.
.PHONY: docs
docs: rust ## Write the tables of flags in docs/configuration.md
	WEIR_WRITE_DOCS=1 $(CARGO) test --locked --quiet $(test_features) --lib configuration_page

.PHONY: helm
helm: ## Build helm on the first run, unless it is on the path, and print where it is
	@deploy/helm.sh

.PHONY: chart
chart: helm ## Check that what is made from the chart and for it is up to date, and the chart itself with helm
	deploy/generate.sh --check

.PHONY: generate
generate: helm crds docs ## Write what is made from something else: crds/, tables in docs/, the chart's README, files in deploy/
	deploy/generate.sh

# Static, for an image that has nothing but the binary.
.PHONY: static
static: rust
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --locked --release --bin weir --target $(host)

.PHONY: image
image: static ## Build the container image without a container engine, as an OCI archive
	deploy/image.sh "$(static)" "docker.io/library/weir:$(version)" "$(image)" $(labels)

.PHONY: archive
archive: static ## Pack a static binary for this machine's architecture into dist/, with its bill of materials
	deploy/release.sh archive "$(static)"
	if command -v cargo-cyclonedx >/dev/null; then
	  deploy/release.sh sbom "$(host)" "$(static)"
	else
	  echo "skipped: the bill of materials. To make it: cargo install cargo-cyclonedx --locked"
	fi

.PHONY: release
release: ## Make image, chart and checksums of the archives in dist/ (see docs/releasing.md)
	deploy/release.sh image $(labels)
	deploy/release.sh chart
	deploy/release.sh sums

.PHONY: quickstart
quickstart: rust ## Build Weir, run it without a cluster, and see events arrive; Ctrl-C ends it
	@CARGO="$(CARGO)" examples/quickstart/run.sh

.PHONY: bench
bench: rust ## Measure throughput side by side with a plain proxy (see benches/README.md)
	$(CARGO) bench --locked --bench throughput

.PHONY: bench-jetstream
bench-jetstream: rust ## Measure throughput on three NATS servers, side by side with a plain publisher (see benches/README.md)
	nats="$$(tests/nats/build.sh)"
	WEIR_NATS="$$nats" $(CARGO) bench --locked --bench throughput -- jetstream

.PHONY: bench-scale
bench-scale: rust ## Measure what three routers on JetStream deliver, beside one (see benches/README.md)
	nats="$$(tests/nats/build.sh)"
	WEIR_NATS="$$nats" $(CARGO) bench --locked --bench throughput -- scale

.PHONY: bench-matching
bench-matching: rust ## Measure how long matching takes, by the number of Triggers (see benches/README.md)
	$(CARGO) bench --locked --bench matching

.PHONY: bench-neighbour
bench-neighbour: rust ## Measure what a namespace that does its worst costs another (see benches/README.md)
	WEIR_KILLS=1 $(CARGO) test --locked --release $(test_features) --test integration faults::neighbour -- --nocapture

.PHONY: bench-producers
bench-producers: rust ## Measure what it costs to check producers by their tokens (see benches/README.md)
	assets="$$(tests/kubernetes/build.sh)"
	KUBEBUILDER_ASSETS="$$assets" WEIR_KILLS=1 $(CARGO) test --locked --release $(test_features) --test integration producers::costs -- --nocapture

.PHONY: faults
faults: rust ## Kill routers, NATS servers and weir sources hundreds of times, break their disks and Sinks, and count what arrives
	assets="$$(tests/kubernetes/build.sh)" nats="$$(tests/nats/build.sh)"
	KUBEBUILDER_ASSETS="$$assets" WEIR_NATS="$$nats" WEIR_KILLS=200 $(CARGO) test --locked --release $(test_features) --test integration -- faults:: kubernetes_source::nothing_is_lost --nocapture

# A minute shows that nothing broke; what is to be found takes longer. A target is one of fuzz/fuzz_targets, or all.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

.PHONY: fuzz
fuzz: rust ## Feed each fuzz target for FUZZ_SECONDS, 60 by default (see tests/README.md)
	@need() { "$${@:2}" >/dev/null 2>&1 || { echo "error: $$1" >&2; exit 1; }; }
	need 'cargo-fuzz is missing: cargo install cargo-fuzz --locked' command -v cargo-fuzz
	need 'the nightly toolchain is missing: rustup toolchain install nightly --profile minimal' rustup run nightly rustc --version
	need 'a C++ compiler is missing: on Debian, apt-get install build-essential' command -v c++
	for target in $(FUZZ_TARGETS); do
	  mkdir -p "fuzz/corpus/$$target"
	  dictionary="fuzz/dictionaries/$$target.dict"
	  echo "$$target, for $(FUZZ_SECONDS) seconds"
	  rustup run nightly cargo fuzz run "$$target" "fuzz/corpus/$$target" "fuzz/seeds/$$target" -- \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 $$([[ ! -e $$dictionary ]] || echo "-dict=$$dictionary")
	done

.PHONY: clean-cache
clean-cache: ## Remove what the tests built and installed: Kubernetes binaries, NATS, helm, cargo-deny, CloudEvents SDKs
	rm -rf "$(cache)"/kubernetes-* "$(cache)"/nats-* "$(cache)"/node-* "$(cache)"/helm-* "$(cache)"/cargo-deny-* "$(cache)"/interop*

.PHONY: rust
rust:
	@need() { command -v "$$1" >/dev/null || { echo "error: $$1 is missing: $$2" >&2; exit 1; }; }
	need $(CARGO) 'install rustup (on Debian, apt-get install rustup), then run: rustup toolchain install'
	need cc 'on Debian, apt-get install build-essential'
