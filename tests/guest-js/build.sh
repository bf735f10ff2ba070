#!/bin/sh
# Builds a filter in JavaScript: tests/guest-js/build.sh COMPONENT [NAME]
#
# NAME.js and NAME.wit are what it is made of: mask, the default, with the language's own stub in place of WASI; talk with the host's.
# Needs npm, which brings componentize-qjs (QuickJS, about 1.6 MB of component): it is installed below target/ once and kept there.
set -eu

version=0.4.5

[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 COMPONENT [NAME]" >&2; exit 1; }
component=$1
name=${2:-mask}
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
tools=$root/target/guest-js/$version

# One at a time, and in its place only when it is complete: tests run side by side, and an installation may be cut short.
mkdir -p "$(dirname "$tools")"
exec 9>"$tools.lock"
flock 9
if [ ! -x "$tools/node_modules/.bin/componentize-qjs" ]; then
    rm -rf "$tools" "$tools.new"
    mkdir "$tools.new"
    npm install --prefix "$tools.new" --no-save --no-package-lock --no-audit --no-fund --loglevel=error "componentize-qjs@$version" >&2
    mv "$tools.new" "$tools"
fi
exec 9>&-

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/wit/deps/rbdkit-filter"
cp "$here/$name.wit" "$work/wit/"
cp "$root"/wit/*.wit "$work/wit/deps/rbdkit-filter/"

# --sync: no asynchronous component model; --stub-wasi: a second component within takes the place of WASI, and traps.
stub=
[ "$name" != mask ] || stub=--stub-wasi
"$tools/node_modules/.bin/componentize-qjs" --wit "$work/wit" --world "$name" --js "$here/$name.js" --sync $stub -o "$component"
