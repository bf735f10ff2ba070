#!/bin/sh
# Builds the filter in JavaScript: tests/guest-js/build.sh COMPONENT
#
# Needs npm, which brings componentize-qjs (QuickJS, about 1.6 MB of component): it is installed below target/ once and kept there.
set -eu

version=0.4.5

[ $# = 1 ] || { echo "usage: $0 COMPONENT" >&2; exit 1; }
component=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
tools=$root/target/guest-js/$version

if [ ! -x "$tools/node_modules/.bin/componentize-qjs" ]; then
    mkdir -p "$tools"
    npm install --prefix "$tools" --no-save --no-package-lock --no-audit --no-fund --loglevel=error "componentize-qjs@$version" >&2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/wit/deps/rbdkit-filter"
cp "$here/mask.wit" "$work/wit/"
cp "$root"/wit/*.wit "$work/wit/deps/rbdkit-filter/"

# --sync: no asynchronous component model; --stub-wasi: no WASI, which the language's runtime would import and filters may not.
"$tools/node_modules/.bin/componentize-qjs" --wit "$work/wit" --world mask --js "$here/mask.js" --sync --stub-wasi -o "$component"
