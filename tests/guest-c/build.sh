#!/bin/sh
# Builds a filter in C: tests/guest-c/build.sh COMPONENT [NAME]
#
# The sources are NAME.c and NAME.wit. swab, the default, uses only functions of wasi-libc that need no
# WASI: malloc and the functions on memory. talk uses functions that need it.
# The script needs Debian's packages clang lld wasi-libc libclang-rt-14-dev-wasm32, which tests/setup.sh
# installs. COMPONENTIZE may name the program that makes a component of a module; without it the script
# builds that program.
set -eu

[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 COMPONENT [NAME]" >&2; exit 1; }
component=$1
name=${2:-swab}
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$root/guest-filters" && cargo build --locked --quiet -p rbdkit-test-c-bindings)
"$root/guest-filters/target/debug/rbdkit-test-c-bindings" "$root/wit" "$here/$name.wit" "$work"

clang --target=wasm32-wasi --sysroot=/usr -O2 -Wall -Wextra -Werror -mexec-model=reactor -I"$work" \
    -Wl,-z,stack-size=65536 -Wl,--strip-all \
    "$here/$name.c" "$work/$name.c" "$work/${name}_component_type.o" -o "$work/$name.wasm"

if [ -z "${COMPONENTIZE:-}" ]; then
    (cd "$root" && cargo build --locked --quiet -p rbdkit-componentize)
    COMPONENTIZE=$root/target/debug/rbdkit-componentize
fi
"$COMPONENTIZE" "$work/$name.wasm" "$component"
