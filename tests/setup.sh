#!/bin/bash
# Checks that the machine has what a target of the Makefile needs, and installs what is missing.
#
#   tests/setup.sh GROUP...       groups: build, demo, test, bench
#
# The script looks for the things themselves and not for Debian's packages, so it takes them from wherever they
# came. As root on Debian it installs what is missing. Otherwise it prints the command that installs it and exits
# with status 1.
set -euo pipefail

missing=()

# need PACKAGE CONDITION...: asks for PACKAGE unless the condition holds.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

command_exists() { command -v "$1"; }

# The standard library for the guests, in the toolchain in use or in Debian's packages. guest-filters/build.sh
# takes either.
toolchain_has_wasm() { ls "$(rustc --print sysroot)"/lib/rustlib/wasm32-unknown-unknown/lib/libstd-*.rlib; }
guest_compiler() { toolchain_has_wasm || [ -x /usr/bin/rustc ]; }
guest_library() {
    toolchain_has_wasm || [ -e "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ]
}

# Only Debian's own Python has libnbd's module, whichever Python comes first in PATH.
nbdsh_works() { PATH=/usr/bin:/bin nbdsh -c 'import nbd'; }
other_ciphers() { /usr/bin/python3 -c 'import cryptography'; }
boto3() { /usr/bin/python3 -c 'import boto3'; }
python_environments() { python3 -c 'import ensurepip, venv'; }
clang_for_wasm() { compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/wasi/libclang_rt.builtins-wasm32.a'; }

nbdkit_plugin() { test -e "$(pkg-config nbdkit --variable=plugindir)/nbdkit-$1-plugin.so"; }

group() {
    case $1 in
    build)
        need gcc command_exists cc
        need libc6-dev test -e /usr/include/stdio.h
        # For the curl plugin.
        need pkgconf command_exists pkg-config
        need libcurl4-openssl-dev pkg-config --exists libcurl
        # For TLS with pre-shared keys.
        need libssl-dev pkg-config --exists openssl
        need rustc-web guest_compiler
        need rust-web-src guest_library
        ;;
    demo)
        need libnbd-bin command_exists nbdcopy
        need qemu-utils command_exists qemu-io
        need e2fsprogs test -x /sbin/mkfs.ext4
        ;;
    test)
        need libnbd-bin command_exists nbdinfo
        need python3-libnbd nbdsh_works
        need qemu-utils command_exists qemu-img
        need bximage command_exists bximage
        need lzip command_exists lzip
        need plzip command_exists plzip
        need pigz command_exists pigz
        need bzip2 command_exists bzip2
        need pbzip2 command_exists pbzip2
        need lbzip2 command_exists lbzip2
        need lz4 command_exists lz4
        # With pzstd.
        need zstd command_exists pzstd
        need xz-utils command_exists xz
        need bzip2 command_exists bzip2
        need dmg2img command_exists dmg2img
        need fio command_exists fio
        # Encrypted disks, and another library for their ciphers.
        need cryptsetup-bin command_exists /sbin/cryptsetup
        need python3-cryptography other_ciphers
        # Other servers, for the nbd plugin.
        need nbdkit command_exists nbdkit
        # Certificates and keys, as clients of nbdkit have them.
        need gnutls-bin command_exists certtool
        # For the disks that plugins make of directories.
        need e2fsprogs test -x /sbin/mke2fs
        need dosfstools test -x /sbin/fsck.fat
        need mtools command_exists mdir
        need genisoimage command_exists genisoimage
        # Archives and partition tables.
        need zip command_exists zip
        need libarchive-tools command_exists bsdtar
        need fdisk test -x /sbin/sfdisk
        need gdisk test -x /sbin/sgdisk
        need parted test -x /sbin/parted
        need jq command_exists jq
        # Plugins of nbdkit that are loaded as they are, and its header for those that the tests compile.
        need nbdkit-plugin-dev test -e /usr/include/nbdkit-plugin.h
        # nbdkit's plugin for S3, whose disks the object plugin shares.
        need python3-boto3 boto3
        for language in python perl lua tcl ruby; do
            need "nbdkit-plugin-$language" nbdkit_plugin "$language"
        done
        # Certificates for the slow server.
        need openssl command_exists openssl
        # A server with HTTP/2 for the curl plugin. Each test starts its own.
        need nginx-light test -x /usr/sbin/nginx
        # For the ssh plugin. Each test starts its own sshd.
        need openssh-client command_exists ssh-agent
        need openssh-server test -x /usr/sbin/sshd
        # A registry for filters. Each test starts its own.
        need docker-registry command_exists docker-registry
        need curl command_exists curl
        # For the manual pages, the completions and the units.
        need groff-base command_exists groff
        need fish command_exists fish
        need zsh command_exists zsh
        need systemd command_exists systemd-socket-activate
        # For the filters in C and in JavaScript.
        need clang command_exists clang
        need lld command_exists wasm-ld
        need wasi-libc test -e /usr/lib/wasm32-wasi/libc.a
        need libclang-rt-14-dev-wasm32 clang_for_wasm
        need nodejs command_exists node
        need npm command_exists npm
        # The toolchains of Zig, Go and Python and a server of S3 come from PyPI, a server of Azure from npm, into
        # environments below target/.
        need python3-venv python_environments
        ;;
    bench)
        need libnbd-bin command_exists nbdcopy
        need fio command_exists fio
        need nbdkit command_exists nbdkit
        need gnutls-bin command_exists certtool
        need qemu-utils command_exists qemu-nbd
        need cryptsetup-bin command_exists /sbin/cryptsetup
        ;;
    *)
        echo "setup: unknown group '$1': build, demo, test or bench" >&2
        exit 2
        ;;
    esac
}

if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
    echo "setup: Rust 1.95 or newer is missing: see https://rustup.rs" >&2
    exit 1
fi
if [ "$(printf '%s\n' 1.95 "$(rustc --version | cut -d' ' -f2)" | sort -V | head -n1)" != 1.95 ]; then
    echo "setup: Rust 1.95 or newer is needed, this is $(rustc --version)" >&2
    exit 1
fi

for name in "$@"; do group "$name"; done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "setup: these are missing: ${missing[*]}" >&2
    echo "setup: run    sudo ${install[*]}" >&2
    exit 1
fi
echo "setup: installing ${missing[*]}"
wanted=" ${missing[*]} "
# The tests need the programs sshd, nginx and docker-registry. Their services must start neither now nor at the next boot.
services=()
[[ $wanted != *" openssh-server "* ]] || services+=(ssh.service ssh.socket)
[[ $wanted != *" nginx-light "* ]] || services+=(nginx.service)
[[ $wanted != *" docker-registry "* ]] || services+=(docker-registry.service)
if [[ ${#services[@]} -gt 0 && ! -e /usr/sbin/policy-rc.d ]]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q </dev/null >/dev/null
"${install[@]}" </dev/null >/dev/null
if [ ${#services[@]} -gt 0 ] && command -v systemctl >/dev/null; then
    systemctl disable --quiet "${services[@]}" 2>/dev/null || true
fi

missing=()
for name in "$@"; do group "$name"; done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: still missing after the installation: ${missing[*]}" >&2
    exit 1
fi
