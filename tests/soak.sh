#!/bin/bash
# What takes too long for make test: every pair of filters, the models with many operations, many reloads, long
# fuzzing, a kill after each write to a qcow2 image, and the whole suite twice at once beside a compiler, where a test
# that depends on the machine's speed fails.
#
#   SOAK_OPS=          operations of the models in all (default 2,000,000; make test has 110,000)
#   SOAK_XZ_MIB=       size of the disk in large xz files (default 5,120; make test has 160)
#   FUZZ_SECONDS=      for each fuzz target (default 120)
#   SOAK_RELOADS=      reloads of two filters under load (default 1,000; make test has 100)
#   SOAK_CHANGES=      how many times as many random changes of qcow2 images as make test makes (default 50)
#   SOAK_ROUNDS=       how often the suite runs twice at once (default 2)
#
# Every test that failed is named at the end. Its output is in target/soak.
set -euo pipefail
cd "$(dirname "$0")/.."

logs=target/soak
failed=0
rm -rf "$logs"
mkdir -p "$logs"

# run NAME COMMAND...: runs a command into its own log and prints how long it took.
run() {
    local name=$1 began=$SECONDS status=0
    shift
    "$@" >"$logs/$name.log" 2>&1 || status=$?
    echo "== $name: $((SECONDS - began)) s, status $status"
    return "$status"
}

# The decoders are in the workspace of the filters, which has no LTO in tests.
fuzz_formats() { (cd guest-filters && CARGO_PROFILE_RELEASE_LTO=off cargo test --release --workspace --test fuzz); }

suite() { cargo test --release --workspace --no-fail-fast; }

# Compiles crates of this tree again and again, until it is killed.
compile() {
    while :; do
        rm -rf "$logs/compiler"
        CARGO_TARGET_DIR="$logs/compiler" cargo build --release -p rbdkit-plugin-ssh -p rbdkit-server || sleep 1
    done
}

make --no-print-directory filters test-build
RBDKIT_ALL_PAIRS=1 run pairs cargo test --release -p rbdkit-sandbox --lib tests::extents || failed=1
RBDKIT_OPS=${SOAK_OPS:-2000000} run models cargo test --release -p rbdkit-tests --test model || failed=1
RBDKIT_RELOADS=${SOAK_RELOADS:-1000} run reloads cargo test --release -p rbdkit-tests --test reload || failed=1
RBDKIT_FUZZ_SECONDS=${FUZZ_SECONDS:-120} run fuzz cargo test --release --workspace --test fuzz || failed=1
RBDKIT_FUZZ_SECONDS=${FUZZ_SECONDS:-120} run fuzz-formats fuzz_formats || failed=1
RBDKIT_XZ_MIB=${SOAK_XZ_MIB:-5120} run large-xz cargo test --release -p rbdkit-tests --test formats large_xz || failed=1

# Writing to qcow2 images, with another seed each time. The seed is in the log.
writes() (
    export RBDKIT_SEED=${RBDKIT_SEED:-$(date +%s)} RBDKIT_QCOW2_CHANGES=${SOAK_CHANGES:-50} RBDKIT_QCOW2_ALL_KILLS=1
    echo "RBDKIT_SEED=$RBDKIT_SEED"
    cd guest-filters && cargo test --release --locked -p rbdkit-filter-formats --lib qcow2::write
)
run qcow2-writes writes || failed=1

if [ "$(id -u)" = 0 ]; then
    run package make --no-print-directory deb || failed=1
    run clean-debian packaging/try-deb.sh target/deb/*.deb || failed=1
fi

for round in $(seq "${SOAK_ROUNDS:-2}"); do
    # A group of processes of its own, so that the compiler's children end with it.
    set -m
    compile >"$logs/compiler.log" 2>&1 &
    compiler=$!
    set +m
    run "suite-$round-a" suite &
    first=$!
    run "suite-$round-b" suite || failed=1
    wait "$first" || failed=1
    kill -- "-$compiler"
done

grep -h -E '^test .* FAILED$|^test result: FAILED|panicked at' "$logs"/*.log || true
exit "$failed"
