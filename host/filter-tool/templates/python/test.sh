#!/bin/sh
# Builds the filter, tests it in ordinary Python, and tests the component with random operations on disks in memory.
set -e
cd "$(dirname "$0")"
rbdkit-filter build .
python3 -m unittest -q
rbdkit-filter check @NAME@.wasm --transforms bijective
rbdkit-filter check @NAME@.wasm key=7 --transforms bijective
