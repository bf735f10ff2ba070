# make            builds the server, the filters and the tool for filter authors
# make demo       serves a disk image through sandboxed filters, copies it out and compares (IMAGE=disk.img for yours)
# make demo-remote
#                 copies an image from a slow web server with and without readahead, and with nbdkit (DELAY=, SIZE=)
# make test       runs every test and prints how long each group took
# make bench      measures rbdkit, nbdkit and qemu-nbd for 25 minutes (QUICK=1, ROUNDS=, SECONDS_EACH=, ONLY=,
#                 PROGRAMS=, BEFORE=: see tests/bench/main.rs)
# make microbench measures the parts: codec, gate, a call into a component, shared state, buffers (MICRO=part of a name)
# make fuzz       runs the fuzz targets for FUZZ_SECONDS (600)
# make soak       the tests that take too long for make test: full counts, long fuzzing, the suite twice at once (SOAK_OPS=,
#                 SOAK_ROUNDS=, FUZZ_SECONDS=: see tests/soak.sh)
# make install    copies the programs, the filters, the SDK, the contract, the manual pages, completions and units
#                 (PREFIX=/usr/local, DESTDIR=)
# make deb        makes a Debian package of them in target/deb
# make setup      installs what the other targets need and does nothing else

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: all setup build server filters demo demo-remote test lint deny test-build test-guests test-host bench microbench fuzz soak manual install install-files deb clean-filters

PREFIX ?= /usr/local
DESTDIR ?=
# A clean clone builds what Cargo.lock says; with CI set a change of it is an error.
CARGO_FLAGS ?= $(if $(CI),--locked)
CARGO := cargo
# One profile for everything, so that wasmtime is compiled once.
PROFILE := --release
# The programs that are installed. Nothing else is linked with LTO (.cargo/config.toml says why).
LTO := -C lto=thin
# RUSTFLAGS of the caller replace those of .cargo/config.toml, which LTO needs.
ifneq ($(RUSTFLAGS),)
ifeq ($(findstring embed-bitcode,$(RUSTFLAGS)),)
export RUSTFLAGS := $(RUSTFLAGS) -C embed-bitcode=yes
endif
endif

GUESTS := guest-filters

all:
	@tests/setup.sh build
	@$(MAKE) --no-print-directory build

setup:
	@tests/setup.sh build demo test bench

build: server
	$(CARGO) rustc $(PROFILE) $(CARGO_FLAGS) -p rbdkit-filter --bin rbdkit-filter -- $(LTO)

# The filters first: the server embeds them.
server:
	HOST_LIBS=1 $(GUESTS)/build.sh
	$(CARGO) rustc $(PROFILE) $(CARGO_FLAGS) -p rbdkit --bin rbdkit -- $(LTO)

filters:
	$(GUESTS)/build.sh

demo:
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory server
	@tests/demo.sh

demo-remote:
	@tests/setup.sh build demo
	@$(MAKE) --no-print-directory server
	$(CARGO) build $(PROFILE) $(CARGO_FLAGS) -p rbdkit-slow-server
	@tests/demo-remote.sh

test:
	@tests/setup.sh build demo test
	@for group in filters test-build lint deny test-guests test-host; do \
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

# Programs, tests and benches, without LTO.
test-build:
	$(CARGO) build $(PROFILE) $(CARGO_FLAGS) --workspace --all-targets

# The filters, natively. Linking them with LTO, as the components are, would take minutes.
test-guests:
	cd $(GUESTS) && CARGO_PROFILE_RELEASE_LTO=off $(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace

test-host:
	$(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace

bench:
	@tests/setup.sh build bench
	@$(MAKE) --no-print-directory server
	$(CARGO) build $(PROFILE) $(CARGO_FLAGS) -p rbdkit-tests -p rbdkit-slow-server --bins
	target/release/rbdkit-bench

# Linked as the server is, so that the figures are the server's.
MICRO ?=
microbench: filters
	@tests/setup.sh build
	@program=$$($(CARGO) rustc $(PROFILE) $(CARGO_FLAGS) -p rbdkit --bench micro --message-format=json-render-diagnostics \
	    -- $(LTO) | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'); "$$program" --bench $(MICRO)

# The targets run briefly within the tests as well.
FUZZ_SECONDS ?= 600
fuzz:
	@tests/setup.sh build
	@$(MAKE) --no-print-directory filters test-build
	RBDKIT_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace --test fuzz -- --nocapture
	cd $(GUESTS) && RBDKIT_FUZZ_SECONDS=$(FUZZ_SECONDS) CARGO_PROFILE_RELEASE_LTO=off \
	    $(CARGO) test $(PROFILE) $(CARGO_FLAGS) --workspace --test fuzz -- --nocapture

soak:
	@tests/setup.sh build demo test
	@tests/soak.sh

# The manual pages, from the help texts of the programs and the pages of the tree.
MANUAL := target/man
manual:
	$(CARGO) build $(PROFILE) $(CARGO_FLAGS) -p rbdkit-manual
	rm -rf $(MANUAL)
	target/release/rbdkit-manual . target/release/rbdkit target/release/rbdkit-filter $(MANUAL)

install: all
	@$(MAKE) --no-print-directory install-files

# Without building: what the programs, the filters and the tree have.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SHARE := $(DESTDIR)$(PREFIX)/share
install-files: manual
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/rbdkit/filters $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -d $(SHARE)/rbdkit/wit $(SHARE)/rbdkit/guest-filters $(SHARE)/doc/rbdkit $(SHARE)/pkgconfig
	install -d $(SHARE)/man/man1 $(SHARE)/man/man7 $(SHARE)/bash-completion/completions
	install -d $(SHARE)/zsh/vendor-completions $(SHARE)/fish/vendor_completions.d
	install -m 755 target/release/rbdkit $(DESTDIR)$(PREFIX)/bin/
	install -m 755 target/release/rbdkit-filter $(DESTDIR)$(PREFIX)/bin/
	install -m 644 target/filters/*.wasm $(DESTDIR)$(PREFIX)/lib/rbdkit/filters/
	install -m 644 wit/filter.wit $(SHARE)/rbdkit/wit/
	install -m 644 README.md SECURITY.md CHANGELOG.md LICENSE $(SHARE)/doc/rbdkit/
	install -m 644 $(GUESTS)/README.md $(SHARE)/doc/rbdkit/writing-filters.md
	cp -r $(GUESTS)/sdk $(SHARE)/rbdkit/guest-filters/
	sed 's/^members = .*/members = ["sdk"]/' $(GUESTS)/Cargo.toml >$(SHARE)/rbdkit/guest-filters/Cargo.toml
	install -m 644 $(MANUAL)/*.1 $(SHARE)/man/man1/
	install -m 644 $(MANUAL)/*.7 $(SHARE)/man/man7/
	install -m 644 packaging/completion/rbdkit.bash $(SHARE)/bash-completion/completions/rbdkit
	ln -sf rbdkit $(SHARE)/bash-completion/completions/rbdkit-filter
	install -m 644 packaging/completion/_rbdkit $(SHARE)/zsh/vendor-completions/
	install -m 644 packaging/completion/rbdkit.fish $(SHARE)/fish/vendor_completions.d/
	ln -sf rbdkit.fish $(SHARE)/fish/vendor_completions.d/rbdkit-filter.fish
	install -m 644 packaging/systemd/rbdkit@.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/
	sed 's|@bindir@|$(PREFIX)/bin|' packaging/systemd/rbdkit@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/rbdkit@.service
	sed 's|@prefix@|$(PREFIX)|; s|@version@|$(VERSION)|' packaging/rbdkit.pc.in >$(SHARE)/pkgconfig/rbdkit.pc

deb: all
	packaging/deb.sh $(VERSION) target/deb

clean-filters:
	rm -rf target/filters $(GUESTS)/target
