#!/bin/bash
# Makes a Debian package of what `make install` installs: packaging/deb.sh VERSION OUTPUT-DIRECTORY
#
# The programs are built already. The dependencies are those of the programs' shared libraries, as dpkg-shlibdeps finds
# them.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
output=$2

for tool in dpkg-deb dpkg-shlibdeps; do
    command -v "$tool" >/dev/null || { echo "deb: there is no $tool: apt-get install dpkg-dev" >&2; exit 1; }
done
staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
chmod 755 "$staging"
root=$staging/root
make --no-print-directory install-files PREFIX=/usr DESTDIR="$root"
gzip -9n "$root"/usr/share/man/man*/*
for program in rbdkit rbdkit-filter; do strip --strip-unneeded "$root/usr/bin/$program"; done
install -d "$root/etc/rbdkit" "$root/DEBIAN" "$staging/debian"
install -Dm 644 LICENSE "$root/usr/share/doc/rbdkit/copyright"
rm -f "$root/usr/share/doc/rbdkit/LICENSE"
architecture=$(dpkg --print-architecture)
# dpkg-shlibdeps reads debian/control of the directory in which it runs.
printf 'Source: rbdkit\n\nPackage: rbdkit\nArchitecture: %s\n' "$architecture" >"$staging/debian/control"
depends=$(cd "$staging" && dpkg-shlibdeps -O root/usr/bin/rbdkit root/usr/bin/rbdkit-filter |
    sed -n 's/^shlibs:Depends=//p')
cat >"$root/DEBIAN/control" <<CONTROL
Package: rbdkit
Version: $version
Architecture: $architecture
Maintainer: The rbdkit developers <rbdkit@localhost>
Installed-Size: $(du -ks "$root" | cut -f1)
Depends: $depends
Suggests: libnbd-bin, qemu-utils, openssh-client
Section: admin
Priority: optional
Description: NBD server whose filters run in a sandbox
 rbdkit is used like nbdkit: the command line, the parameters and the clients are
 the same. Plugins are native code. Filters are WebAssembly components in a
 sandbox, written in any language; rbdkit-filter creates, builds and tests them.
CONTROL
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
mkdir -p "$output"
dpkg-deb --root-owner-group --build "$root" "$output/rbdkit_${version}_${architecture}.deb"
