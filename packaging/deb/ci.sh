#!/usr/bin/env bash
# For CI: build the packages and try them in boxes, when what goes into them besides lmd's own modules has changed since
# that last went well here. Says what it did not do, and why.
#   packaging/deb/ci.sh SECONDS   those that CI has already taken: it has 25 minutes, and compiling llama.cpp takes 11
set -euo pipefail
cd "$(dirname "$0")/../.."
spent=${1:-0}
cache=${LMD_PACKAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lmd-package}
skip() { echo "Debian packages: not built, $1."; exit 0; }

recipe=$(git ls-files -z pyproject.toml packaging systemd etc lmd/engine/variants.py tests/packaging/test_deb.py \
    tests/systemd/sdbox tests/systemd/conftest.py | xargs -0 sha256sum | sha256sum | cut -c1-16)
[ "$(cat "$cache/tested" 2>/dev/null)" != "$recipe" ] || skip "their recipe ($recipe) is the one that last went well here"
[ "$(id -u)" = 0 ] || skip "trying them needs root"
command -v apt-get >/dev/null || skip "this machine has no apt"
curl -sSf -m 20 -o /dev/null http://deb.debian.org/debian/dists/bookworm/InRelease || skip "no Debian mirror answers"
tools=()
for tool in debootstrap:debootstrap lintian:lintian dpkg-shlibdeps:dpkg-dev objdump:binutils systemd-nspawn:systemd-container; do
    command -v "${tool%:*}" >/dev/null || tools+=("${tool#*:}")
done
if ((${#tools[@]})); then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${tools[@]}"; } \
        >/dev/null 2>&1 || skip "these cannot be installed: ${tools[*]}"
fi
llama=$(sed -n 's/^ *"llama-cpp-python>=\([0-9.]*\)".*/\1/p' pyproject.toml)
if ! packaging/deb/llama-wheel.sh "$llama" cached >/dev/null && ((spent > 240)); then
    skip "llama.cpp is not compiled for them yet, and CI has no 11 minutes left for it ('make package' does it)"
fi
make --no-print-directory test-package
echo "$recipe" >"$cache/tested"
