#!/bin/bash
# Shows what readahead is for: a client reads one piece after another from a disk image behind a slow web server.
#
#   [RBDKIT=program] [SLOW=program] [DELAY=milliseconds] [SIZE=MiB] tests/demo-remote.sh
#
# The web server is the tests' own, on this machine, and waits DELAY before each answer. Every row is a copy of a
# whole image, so the rates can be compared. Where the client waits for each piece the image is smaller, because
# the copy would take minutes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rbdkit=${RBDKIT:-$root/target/release/rbdkit}
slow=${SLOW:-$root/target/release/rbdkit-slow-server}
delay=${DELAY:-10}
size=${SIZE:-512}
small=$((size / 16 > 0 ? size / 16 : 1))

serial='nbdcopy --connections=1 --requests=1 --request-size=65536 "$uri" null:'
wide='nbdcopy --connections=1 --requests=16 --request-size=1048576 "$uri" null:'

fail() {
    echo "demo-remote: $*" >&2
    exit 1
}
now() { date +%s%N; }

errors=$(mktemp "${TMPDIR:-/tmp}/rbdkit-demo.XXXXXX")
trap 'rm -f "$errors"' EXIT

base=
# row NAME MiB CLIENT COMMAND...: makes one copy. The URL is put behind the word `curl` of the command.
row() {
    local name=$1 mib=$2 client=$3 url counts started ms transfers bytes
    shift 3
    coproc SOURCE { exec "$slow" size=$((mib << 20)) delay="$delay"; }
    local source=$SOURCE_PID
    read -r url <&"${SOURCE[0]}"
    local command=("$@")
    for n in "${!command[@]}"; do
        if [ "${command[n]}" = curl ]; then command[n]="curl"$'\n'"$url"; fi
    done
    mapfile -t command < <(printf '%s\n' "${command[@]}")
    started=$(now)
    "${command[@]}" --run "$client" >/dev/null 2>"$errors" || { cat "$errors" >&2; fail "$name failed"; }
    ms=$((($(now) - started) / 1000000))
    echo >&"${SOURCE[1]}"
    read -r counts <&"${SOURCE[0]}"
    read -r transfers bytes <<<"$counts"
    eval "exec ${SOURCE[1]}>&-"
    wait "$source" || true
    local rate
    rate=$(awk "BEGIN { printf \"%.1f\", $mib * 1000 / ($ms > 0 ? $ms : 1) }")
    [ -n "$base" ] || base=$rate
    printf '%-38s %10s MiB/s %8s x %10d %9.3f\n' "$name" "$rate" "$(awk "BEGIN { printf \"%.1f\", $rate / $base }")" \
        "$transfers" "$(awk "BEGIN { print $bytes / ($mib * 1048576) }")"
}

[ -x "$rbdkit" ] && [ -x "$slow" ] || fail "not built: make build"
printf 'A web server that takes %d ms a request; nbdcopy with one request of 64 KiB in flight, if not said otherwise\n\n' \
    "$delay"
printf '%-38s %16s %10s %10s %9s\n' '' 'rate' 'ratio' 'requests' 'fetched'
if command -v nbdkit >/dev/null; then
    row 'nbdkit: readahead, cache, curl' "$small" "$serial" nbdkit -U - -r --filter=readahead --filter=cache curl
    row 'nbdkit: curl' "$small" "$serial" nbdkit -U - -r curl
else
    echo 'nbdkit                                 is not installed'
fi
row 'rbdkit: curl' "$small" "$serial" "$rbdkit" -U - -r curl
row 'rbdkit: readahead, cache, curl' "$size" "$serial" "$rbdkit" -U - -r --filter=readahead --filter=cache curl
row 'rbdkit: readahead, cow-on-cache, curl' "$size" "$serial" \
    "$rbdkit" -U - -r --filter=readahead --filter=cow curl cow-on-cache=true
row 'rbdkit: curl, 16 requests of 1 MiB' "$size" "$wide" "$rbdkit" -U - -r curl
