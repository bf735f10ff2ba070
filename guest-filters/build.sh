#!/bin/sh
# Builds the filters: a component for each crate of this workspace (less those that are libraries), at target/filters/NAME.wasm of the
# repository.
#
#   guest-filters/build.sh [NAME...]
#
# Environment:
#   COMPONENTIZE_PROFILE  cargo profile of the program that makes components of modules: release (default) or dev
#   COMPONENTIZE          that program itself, if it is built already
#   FILTERS_DIR           where the components go
#
# The standard library for wasm32-unknown-unknown comes from the first of these that is there:
#   1. the toolchain in use has the target;
#   2. Debian's packages rustc-web and rust-web-src, which are installed if this runs as root;
#   3. `rustup target add`.
set -eu

target=wasm32-unknown-unknown
guests=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$guests")
filters=${FILTERS_DIR:-$root/target/filters}
profile=${COMPONENTIZE_PROFILE:-release}

say() { printf 'guest-filters: %s\n' "$*"; }
fail() { printf 'guest-filters: %s\n' "$*" >&2; exit 1; }

# rustup's own rustc, even where a distribution's comes first in PATH.
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
    # Only for what is built here: cargo must not take the distribution's compiler's output for the other's.
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

packages=
for name in $names; do packages="$packages -p rbdkit-filter-$name"; done
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$guests/target}"
# shellcheck disable=SC2086 # words on purpose
(cd "$guests" && cargo build --locked --release --target "$target" $extra $packages)

if [ -z "${COMPONENTIZE:-}" ]; then
    # Not with the settings for the guests.
    (cd "$root" && unset RUSTC RUSTC_BOOTSTRAP && CARGO_TARGET_DIR="$root/target" cargo build --profile "$profile" -p rbdkit-componentize)
    case $profile in dev) built=debug ;; *) built=$profile ;; esac
    COMPONENTIZE=$root/target/$built/rbdkit-componentize
fi

mkdir -p "$filters"
for name in $names; do
    module=$CARGO_TARGET_DIR/$target/release/rbdkit_filter_$(printf %s "$name" | tr - _).wasm
    # What did not change is left alone, so that the server, which carries the filters, is not built anew for it.
    "$COMPONENTIZE" "$module" "$CARGO_TARGET_DIR/$name.component.wasm"
    cmp -s "$CARGO_TARGET_DIR/$name.component.wasm" "$filters/$name.wasm" || mv "$CARGO_TARGET_DIR/$name.component.wasm" "$filters/$name.wasm"
    say "$name.wasm: $(wc -c <"$filters/$name.wasm") bytes"
done
