#!/bin/bash
# Installs the Debian package in a clean Debian 12 tree and uses it there: packaging/try-deb.sh FILE.deb
#
# It needs root, debootstrap and a mirror, which it takes from apt's configuration. `make soak` runs it.
set -euo pipefail
package=$(realpath "$1")
command -v debootstrap >/dev/null || apt-get install -y debootstrap
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
    sed -n 's/ bookworm$//p' | head -1)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
debootstrap --variant=minbase bookworm "$tree" "${mirror:-http://deb.debian.org/debian}" >"$tree.log" 2>&1 || {
    tail -20 "$tree.log" >&2
    exit 1
}
rm -f "$tree.log"
cp "$package" "$tree/root/rbdkit.deb"
# How this machine reaches the mirror holds in the tree as well.
cp /etc/resolv.conf "$tree/etc/" 2>/dev/null || true
cp /etc/apt/apt.conf.d/* "$tree/etc/apt/apt.conf.d/" 2>/dev/null || true

inside() { chroot "$tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive "$@"; }
inside apt-get update -q
inside apt-get install -qy --no-install-recommends /root/rbdkit.deb libnbd-bin man-db
inside rbdkit --version
inside truncate -s 64M disk.img
inside sh -c 'rbdkit --filter=cow file disk.img --run "nbdinfo --size \$uri" | grep -qx 67108864'
inside sh -c 'rbdkit-filter inspect /usr/lib/rbdkit/filters/cow.wasm | grep -q cow'
inside man -w rbdkit rbdkit-cow-filter rbdkit-file-plugin
inside dpkg --verify rbdkit
inside apt-get remove -qy --purge rbdkit
! inside sh -c 'command -v rbdkit'
echo "try-deb: installed, used and removed"
