#!/usr/bin/env bash
# Make lmd's development environment: packaging/venv.sh FOLDER, with Python's name in $PYTHON.
# Run again, it only installs what pyproject.toml has gained.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

missing=()
if ! command -v "$python" >/dev/null; then
    missing+=(python3 python3-venv)
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "lmd needs Python 3.11 or later; $python is $("$python" -V 2>&1). Name another one: make venv PYTHON=python3.12" >&2
    exit 1
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=(python3-venv)
fi
if ! { command -v c++ || command -v g++ || command -v clang++; } >/dev/null; then
    missing+=(build-essential)
fi
if ((${#missing[@]})); then
    echo "Missing here: ${missing[*]}. Install with: sudo apt install -y ${missing[*]}" >&2
    exit 1
fi

# A copied or moved checkout has a Python that is no longer there: make it anew.
"$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"

log=$(mktemp)
pip=
# An interrupted make must not leave a compiler running.
trap '[ -z "$pip" ] || kill "$pip" 2>/dev/null; rm -f "$log"' EXIT
trap 'exit 130' INT TERM

echo "Installing lmd and what it needs into $venv. llama.cpp is compiled where pip has no finished build of it:"
echo "that takes about 6 minutes on two cores, once; pip keeps the result in its cache."
PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install --progress-bar off -e '.[dev]' >"$log" 2>&1 &
pip=$!
SECONDS=0
while kill -0 "$pip" 2>/dev/null; do
    # Returns at once when pip ends.
    timeout 15 tail --pid="$pip" -f /dev/null || true
    if kill -0 "$pip" 2>/dev/null; then
        now=$(grep -E '^ *(Collecting|Downloading|Building wheel for|Installing)' "$log" | tail -n 1 | sed 's/^ *//' | cut -c1-90)
        printf '  %2d:%02d  %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$now"
    fi
done
if ! wait "$pip"; then
    pip=
    tail -n 40 "$log" >&2
    echo "pip could not install lmd; its last lines are above. Run 'make venv' again when the cause is gone." >&2
    exit 1
fi
pip=
echo "Ready: $venv (${SECONDS} s)."
