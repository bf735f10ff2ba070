#!/bin/sh
# Tests the operations natively, builds the filter, and tests it with random operations on disks in memory.
set -e
cd "$(dirname "$0")"
cargo test
rbdkit-filter build .
rbdkit-filter check @NAME@.wasm --transforms bijective
rbdkit-filter check @NAME@.wasm key=7 --transforms bijective
