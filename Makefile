# make            builds the server, the filters and the tool for filter authors
# make demo       serves a disk image through sandboxed filters, copies it out and compares (IMAGE=disk.img for yours)
# make demo-remote
#                 copies an image from a slow web server with and without readahead, and with nbdkit (DELAY=, SIZE=)
# make test       runs every test and prints how long each group took
# make bench      measures rbdkit, nbdkit and qemu-nbd for 25 minutes (QUICK=1, ROUNDS=, SECONDS_EACH=, ONLY=,
#                 PROGRAMS=, BEFORE=: see tests/bench/main.rs)
# make microbench measures the parts: codec, gate, a call into a component, shared state, buffers (MICRO=part of a name)
# make fuzz       runs the fuzz targets for FUZZ_SECONDS (600)
# make install    copies the programs, the filters and the SDK (PREFIX=/usr/local, DESTDIR=)
# make setup      installs what the other targets need and does nothing else

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: all setup build filters demo demo-remote test lint deny test-guests test-host bench microbench fuzz install clean-filters

PREFIX ?= /usr/local
DESTDIR ?=
# A clean clone builds what Cargo.lock says; with CI set a change of it is an error.
CARGO_FLAGS ?= $(if $(CI),--locked)
CARGO := cargo
# One profile for everything, so that wasmtime is compiled once.
PROFILE := --release

GUESTS := guest-filters

all:
	@tests/setup.sh build
	@$(MAKE) --no-print-directory build

setup:
	@tests/setup.sh build demo test bench

# The filters first: the server carries them.
build: filters
	$(CARGO) build $(PROFILE) $(CARGO_FLAGS) --workspace --bins

filters:
	$(GUESTS)/build.sh

demo:
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory build
	@tests/demo.sh

demo-remote:
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory build
	@tests/demo-remote.sh

test:
	@tests/setup.sh build demo test
	@for group in build lint deny test-guests test-host; do \
	    began=$$SECONDS; $(MAKE) --no-print-directory $$group; echo "== $$group: $$((SECONDS - began)) s"; \
	done

lint:
	$(CARGO) fmt --all --check
	cd $(GUESTS) && $(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cd $(GUESTS) && $(CARGO) clippy $(PROFILE) $(CARGO_FLAGS) --workspace --all-targets -- -D warnings

# tests/tests/dependencies.rs checks licences, sources and forbidden crates as well, for machines without cargo-deny.
# The advisories come over the network. Without a network the target says that they were not checked and succeeds.
deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    $(CARGO) deny --offline check licenses bans sources; \
	    (cd $(GUESTS) && $(CARGO) deny --offline --config ../deny.toml check licenses bans sources); \
	    if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny check advisories; \
	    else echo "deny: the advisories cannot be fetched: NOT CHECKED"; fi; \
	else \
	    echo "deny: cargo-deny is not installed (cargo install --locked cargo-deny): advisories are NOT CHECKED, the rest by a test"; \
	fi

# The filters' algorithms, natively.
test-guests:
	cd $(GUESTS) && $(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace

test-host:
	$(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace

bench:
	@tests/setup.sh build bench
	@$(MAKE) --no-print-directory build
	target/release/rbdkit-bench

# With the whole workspace, so that nothing is compiled with other features than by `build`.
MICRO ?=
microbench: filters
	@tests/setup.sh build
	$(CARGO) bench $(CARGO_FLAGS) --workspace --bench micro -- $(MICRO)

# The targets run briefly within the tests as well.
FUZZ_SECONDS ?= 600
fuzz:
	@tests/setup.sh build
	@$(MAKE) --no-print-directory build
	RBDKIT_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace --test fuzz -- --nocapture

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/rbdkit/filters
	install -d $(DESTDIR)$(PREFIX)/share/rbdkit/wit $(DESTDIR)$(PREFIX)/share/rbdkit/guest-filters
	install -m 755 target/release/rbdkit $(DESTDIR)$(PREFIX)/bin/
	install -m 755 target/release/rbdkit-filter $(DESTDIR)$(PREFIX)/bin/
	install -m 644 target/filters/*.wasm $(DESTDIR)$(PREFIX)/lib/rbdkit/filters/
	install -m 644 wit/filter.wit $(DESTDIR)$(PREFIX)/share/rbdkit/wit/
	cp -r $(GUESTS)/sdk $(DESTDIR)$(PREFIX)/share/rbdkit/guest-filters/
	sed 's/^members = .*/members = ["sdk"]/' $(GUESTS)/Cargo.toml >$(DESTDIR)$(PREFIX)/share/rbdkit/guest-filters/Cargo.toml

clean-filters:
	rm -rf target/filters $(GUESTS)/target
