#!/bin/sh
# Builds a filter in JavaScript: tests/guest-js/build.sh COMPONENT [NAME]
#
# The sources are NAME.js and NAME.wit. mask, the default, is built with the language's own stub in place
# of WASI; talk uses the host's stub. The script needs npm. It installs componentize-qjs (QuickJS, about
# 1.6 MB of component) once, below target/.
set -eu

version=0.4.5

[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 COMPONENT [NAME]" >&2; exit 1; }
component=$1
name=${2:-mask}
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
tools=$root/target/guest-js/$version

# Tests run side by side, so only one of them installs. The installation is moved into its place when it is complete,
# because it may be cut short.
mkdir -p "$(dirname "$tools")"
exec 9>"$tools.lock"
flock 9
if [ ! -x "$tools/node_modules/.bin/componentize-qjs" ]; then
    rm -rf "$tools" "$tools.new"
    mkdir "$tools.new"
    npm install --prefix "$tools.new" --no-save --no-package-lock --no-audit --no-fund --loglevel=error \
        "componentize-qjs@$version" >&2
    mv "$tools.new" "$tools"
fi
exec 9>&-

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/wit/deps/rbdkit-filter"
cp "$here/$name.wit" "$work/wit/"
cp "$root"/wit/*.wit "$work/wit/deps/rbdkit-filter/"

# --sync: without the asynchronous component model. --stub-wasi: a component inside takes the place of WASI, and traps.
stub=
[ "$name" != mask ] || stub=--stub-wasi
"$tools/node_modules/.bin/componentize-qjs" --wit "$work/wit" --world "$name" --js "$here/$name.js" \
    --sync $stub -o "$component"
