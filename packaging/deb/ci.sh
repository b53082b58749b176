#!/usr/bin/env bash
# For CI: build the packages and try them in boxes, when what makes them besides lmd's own modules has changed since that
# last went well here. What it does not do it says, with the reason, and that is no failure.
#   packaging/deb/ci.sh SECONDS   those that CI has already taken
set -euo pipefail
cd "$(dirname "$0")/../.."
SECONDS=${1:-0}
cache=${LMD_PACKAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lmd-package}
skip() { echo "Debian packages: not built, $1."; exit 0; }

recipe=$(git ls-files -z pyproject.toml packaging/deb packaging/install.sh systemd etc lmd/engine/variants.py \
    tests/packaging/test_deb.py tests/systemd/sdbox tests/systemd/conftest.py | xargs -0 sha256sum | sha256sum | cut -c1-16)
[ "$(cat "$cache/tested" 2>/dev/null)" != "$recipe" ] || skip "their recipe ($recipe) is the one that last went well here"
[ "$(id -u)" = 0 ] || skip "trying them needs root"
command -v apt-get >/dev/null || skip "this machine has no apt"

# CI has 25 minutes, of which lint and tests, still to come, take 12. The rest as on two cores.
left=$((25 * 60 - 12 * 60 - 60 - SECONDS)) takes=300 why="building and trying them takes 5 minutes"
llama=$(sed -n 's/^ *"llama-cpp-python>=\([0-9.]*\)".*/\1/p' pyproject.toml)
if ! packaging/deb/llama-wheel.sh "$llama" cached >/dev/null; then
    takes=$((takes + 660)) why+=", compiling llama.cpp for them, which no run has done here yet, 11 more"
fi
for release in bookworm trixie; do
    if ! packaging/deb/root.sh "$release" cached >/dev/null; then takes=$((takes + 60)) why+=", a clean $release one more"; fi
done
((takes <= left)) || skip "$why, and CI has $((left / 60)) left ('make test-package' does it at any time)"

curl -sSf -m 20 -o /dev/null http://deb.debian.org/debian/dists/bookworm/InRelease || skip "no Debian mirror answers"
tools=()
for tool in debootstrap:debootstrap lintian:lintian dpkg-shlibdeps:dpkg-dev objdump:binutils systemd-nspawn:systemd-container; do
    command -v "${tool%:*}" >/dev/null || tools+=("${tool#*:}")
done
if ((${#tools[@]})); then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${tools[@]}"; } \
        >/dev/null 2>&1 || skip "these cannot be installed: ${tools[*]}"
fi
rc=0
# INT: pytest takes its boxes down.
timeout -s INT -k 30 "$left" make --no-print-directory test-package || rc=$?
[ "$rc" != 124 ] || skip "they were not ready in the $((left / 60)) minutes that CI had for them"
[ "$rc" = 0 ] || exit "$rc"
echo "$recipe" >"$cache/tested"
