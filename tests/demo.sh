#!/bin/bash
# Shows what rbdkit is for, with real clients: it copies an image out through sandboxed filters, and writes to it
# through cow without changing it.
#
#   [IMAGE=disk.img] [RBDKIT=program] [FILTERS=directory] tests/demo.sh
#
# IMAGE is served read-only or through cow, so it is not changed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rbdkit=${RBDKIT:-$root/target/release/rbdkit}
filters=${FILTERS:-$root/target/filters}

work=$(mktemp -d "${TMPDIR:-/tmp}/rbdkit-demo.XXXXXX")
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
fail() {
    echo "demo: $*" >&2
    exit 1
}

make_image() {
    qemu-img create -q -f raw "$1" 512M
    mkdir "$work/content"
    cp -r "$root"/{host,plugins,wit} "$work/content/"
    head -c 64M /dev/urandom >"$work/content/random"
    head -c 32M /dev/zero | tr '\0' 'x' >"$work/content/letters"
    /sbin/mkfs.ext4 -q -F -L rbdkit-demo -d "$work/content" "$1"
}

# serve NAME FILTER... -- ARGUMENT...: starts a server on $work/NAME.sock. It goes into the background once it
# listens.
serve() {
    local name=$1 arguments=()
    shift
    while [ "$1" != -- ]; do
        arguments+=(--wasm-filter "$filters/$1.wasm")
        shift
    done
    shift
    "$rbdkit" -U "$work/$name.sock" -P "$work/$name.pid" "${arguments[@]}" "$@"
    pids+=("$(cat "$work/$name.pid")")
}

# stop NAME: stops the server and waits for its end.
stop() {
    local pid
    pid=$(cat "$work/$1.pid")
    kill "$pid"
    tail --pid="$pid" -f /dev/null
}

checksum() { sha256sum <"$1" | cut -d' ' -f1; }
now() { date +%s%N; }

if [ -n "${IMAGE:-}" ]; then
    image=$(realpath "$IMAGE")
    [ -r "$image" ] || fail "IMAGE: cannot read $image"
else
    image=$work/disk.img
    make_image "$image"
fi
size=$(stat -Lc %s "$image")
if [ -b "$image" ]; then size=$(blockdev --getsize64 "$image"); fi
before=$(checksum "$image")
printf 'image       %s: %d MiB, %d MiB of it allocated\n' "${IMAGE:-an ext4 file system made for this}" \
    $((size >> 20)) $(($(stat -Lc %b "$image") >> 11))

# 1. Copy it out through two sandboxed filters.
started=$(now)
serve out readahead cache -- -r file "$image"
listening=$((($(now) - started) / 1000000))
printf 'serving     rbdkit --wasm-filter readahead.wasm --wasm-filter cache.wasm file IMAGE: listening after %d ms\n' \
    "$listening"
started=$(now)
nbdcopy "nbd+unix:///?socket=$work/out.sock" "$work/copy.img"
elapsed=$((($(now) - started) / 1000000))
[ "$elapsed" -gt 0 ] || elapsed=1
stop out
[ "$(checksum "$work/copy.img")" = "$before" ] || fail "the copy differs from the image"
printf 'nbdcopy     %d MiB in %d ms, %d MiB/s; the same sha256: %.16s...\n' $((size >> 20)) "$elapsed" \
    $(((size >> 10) * 1000 / elapsed >> 10)) "$before"

# 2. Write to it through cow.
serve cow cow -- file "$image"
uri="nbd+unix:///?socket=$work/cow.sock"
length=$((size < 65536 ? size : 65536))
where=$(((size - length) / 2))
qemu-io -f raw -c "write -P 0x5a $where $length" -c flush -c "read -P 0x5a $where $length" "$uri" \
    >"$work/qemu-io.log" 2>&1 &&
    ! grep -q 'Pattern verification failed' "$work/qemu-io.log" || {
    cat "$work/qemu-io.log" >&2
    fail "qemu-io does not read what it wrote through cow"
}
stop cow
[ "$(checksum "$image")" = "$before" ] || fail "the image changed under cow"
printf 'qemu-io     wrote %d KiB through cow.wasm and read them back; the image has not changed\n' $((length >> 10))
