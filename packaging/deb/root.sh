#!/usr/bin/env bash
# A clean Debian to try packages in: packaging/deb/root.sh bookworm|trixie prints its folder. Made once, as root, of
# nothing but what a small server has, and kept in the cache. What the package depends on is downloaded, not installed:
# in a box without a network, 'apt install ./lmd_….deb' then shows that its dependencies are complete.
#   packaging/deb/root.sh RELEASE [cached]   with "cached" it makes none, and exits 3 when it would have to
set -euo pipefail
release=${1:?usage: root.sh bookworm|trixie}
case $release in bookworm) python=python3.11 ;; trixie) python=python3.13 ;; *) echo "Unknown release: $release" >&2; exit 2 ;; esac
cache=${LMD_PACKAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lmd-package}
mirror=${LMD_DEBIAN_MIRROR:-http://deb.debian.org/debian}
installed=systemd-sysv,dbus,libpam-systemd,curl,procps
downloaded="$python debconf libgomp1 libstdc++6 ca-certificates"
key=$(sha256sum <<<"$installed $downloaded" | cut -c1-12)
root=$cache/root-$release-$key
mkdir -p "$cache"
exec 9>"$cache/root-$release.lock"
flock 9
if [ ! -d "$root" ]; then
    [ "${2:-}" != cached ] || exit 3
    command -v debootstrap >/dev/null || {
        echo "Missing here: debootstrap. Install with: sudo apt install -y debootstrap" >&2
        exit 1
    }
    echo "Making a clean $release in $root, once." >&2
    rm -rf "$cache/root-$release-"*
    debootstrap --variant=minbase --include=$installed "$release" "$root.new" "$mirror" \
        >"$cache/root-$release.log" 2>&1 9>&- || { tail -n 20 "$cache/root-$release.log" >&2; exit 1; }
    chroot "$root.new" apt-get install -qq -y --download-only $downloaded \
        >>"$cache/root-$release.log" 2>&1 9>&- || { tail -n 20 "$cache/root-$release.log" >&2; exit 1; }
    mv "$root.new" "$root"
fi
echo "$root"
