#!/bin/sh
# Builds the filters: makes a component of each crate of this workspace that is not a library, and puts it at
# target/filters/NAME.wasm in the repository.
#
#   guest-filters/build.sh [NAME...]
#
# Environment:
#   COMPONENTIZE_PROFILE  cargo profile for rbdkit-componentize, which makes components: release (default) or dev
#   COMPONENTIZE          the program rbdkit-componentize, if it is built already
#   HOST_LIBS             1: also build the host's libraries, while one processor compiles the guests' standard library
#   FILTERS_DIR           the directory for the components
#
# The standard library for wasm32-unknown-unknown comes from the first of these that works:
#   1. the current toolchain, if it has the target;
#   2. Debian's packages rustc-web and rust-web-src, which this script installs if it runs as root;
#   3. `rustup target add`.
set -eu

target=wasm32-unknown-unknown
guests=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$guests")
filters=${FILTERS_DIR:-$root/target/filters}
profile=${COMPONENTIZE_PROFILE:-release}

say() { printf 'guest-filters: %s\n' "$*"; }
fail() { printf 'guest-filters: %s\n' "$*" >&2; exit 1; }

# The sysroot of the rustc in PATH. Its linker for WebAssembly also serves Debian's compiler.
sysroot=$(rustc --print sysroot) || fail 'rustc is missing: install Rust 1.95 or newer (rustup)'
rust_lld=$sysroot/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld

has_target() { [ -d "$1/lib/rustlib/$target/lib" ] && ls "$1/lib/rustlib/$target/lib"/libstd-*.rlib >/dev/null 2>&1; }
has_debian() { [ -x /usr/bin/rustc ] && [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ]; }
on_debian() { command -v apt-get >/dev/null 2>&1; }

set_up_debian() {
    linker=$rust_lld
    [ -x "$linker" ] || linker=$(command -v wasm-ld || command -v rust-lld || true)
    [ -n "$linker" ] || fail "no linker for WebAssembly: neither $rust_lld nor wasm-ld"
    export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$linker"
    # A target directory of its own: cargo must not mix the output of the two compilers.
    export CARGO_TARGET_DIR="$guests/target/debian"
    extra='-Zbuild-std=std,panic_abort'
    say "the target's standard library: built from Debian's rust-web-src, with $(/usr/bin/rustc --version)"
}

extra=
if has_target "$sysroot"; then
    say "the target's standard library: in $(rustc --version)"
elif has_debian; then
    set_up_debian
elif on_debian && [ "$(id -u)" = 0 ] && apt-get install -y --no-install-recommends rustc-web rust-web-src >&2 && has_debian; then
    set_up_debian
elif command -v rustup >/dev/null 2>&1 && rustup target add "$target" >&2; then
    say "the target's standard library: added by rustup"
else
    fail "no standard library for $target: run 'rustup target add $target', or on Debian as root 'apt-get install rustc-web rust-web-src'"
fi

if [ $# -gt 0 ]; then
    names=$*
else
    names=
    for manifest in "$guests"/*/Cargo.toml; do
        if grep -q cdylib "$manifest"; then names="$names $(basename "$(dirname "$manifest")")"; fi
    done
fi

# The program that makes components runs on the host, so it must not use the settings for the guests. It is built while
# the guests are. --workspace: with the features of the whole workspace, so that later builds share its crates.
host=
if [ -z "${COMPONENTIZE:-}" ]; then
    (cd "$root" && unset RUSTC RUSTC_BOOTSTRAP && CARGO_TARGET_DIR="$root/target" \
        cargo build --locked --profile "$profile" --workspace --bin rbdkit-componentize ${HOST_LIBS:+--lib}) &
    host=$!
    case $profile in dev) built=debug ;; *) built=$profile ;; esac
    COMPONENTIZE=$root/target/$built/rbdkit-componentize
fi

packages=
for name in $names; do packages="$packages -p rbdkit-filter-$name"; done
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$guests/target}"
# shellcheck disable=SC2086 # $extra and $packages are lists of words
(cd "$guests" && cargo build --locked --release --target "$target" $extra $packages) || guests_failed=1
[ -z "$host" ] || wait "$host" || fail 'the program that makes components could not be built'
[ -z "${guests_failed:-}" ] || fail 'the filters could not be built'

mkdir -p "$filters"
for name in $names; do
    module=$CARGO_TARGET_DIR/$target/release/rbdkit_filter_$(printf %s "$name" | tr - _).wasm
    # A component that did not change is not replaced, so that cargo does not rebuild the server, which embeds it.
    "$COMPONENTIZE" "$module" "$CARGO_TARGET_DIR/$name.component.wasm"
    cmp -s "$CARGO_TARGET_DIR/$name.component.wasm" "$filters/$name.wasm" || mv "$CARGO_TARGET_DIR/$name.component.wasm" "$filters/$name.wasm"
    say "$name.wasm: $(wc -c <"$filters/$name.wasm") bytes"
done
