#!/bin/sh
# Builds the filter in C: tests/guest-c/build.sh COMPONENT
#
# Needs Debian's packages clang lld wasi-libc libclang-rt-14-dev-wasm32 (tests/setup.sh installs them). Uses of wasi-libc only
# what needs no WASI: malloc and the functions on memory. COMPONENTIZE names the program that makes a component of a module, if it is
# built already.
set -eu

[ $# = 1 ] || { echo "usage: $0 COMPONENT" >&2; exit 1; }
component=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$root/guest-filters" && cargo build --locked --quiet -p rbdkit-test-c-bindings)
"$root/guest-filters/target/debug/rbdkit-test-c-bindings" "$root/wit" "$here/swab.wit" "$work"

clang --target=wasm32-wasi --sysroot=/usr -O2 -Wall -Wextra -Werror -mexec-model=reactor -I"$work" \
    -Wl,-z,stack-size=65536 -Wl,--strip-all \
    "$here/swab.c" "$work/swab.c" "$work/swab_component_type.o" -o "$work/swab.wasm"

if [ -z "${COMPONENTIZE:-}" ]; then
    (cd "$root" && cargo build --locked --quiet -p rbdkit-componentize)
    COMPONENTIZE=$root/target/debug/rbdkit-componentize
fi
"$COMPONENTIZE" "$work/swab.wasm" "$component"
