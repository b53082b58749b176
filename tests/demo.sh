#!/usr/bin/env bash
# `make demo`: a real daemon on the bundled tiny model, from start to clean stop. No network. tests/demo.sh BIN-FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "${1:-.venv/bin}" && pwd)

work=$(mktemp -d)
daemon=
finish() {
    if [ -n "$daemon" ] && kill "$daemon" 2>/dev/null; then
        wait "$daemon" || true
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
[ -t 1 ] || step() { printf '\n$ %s\n' "$*"; }

port=1234
if ! "$bin/python" - "$port" <<'PY'; then
import socket, sys
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", int(sys.argv[1])))
    except OSError:
        sys.exit(1)
PY
    echo "Port $port is in use by another program; the demo takes a free one."
    port=0
fi

# The demo's own places, whatever this machine's lmd.toml says.
touch "$work/lmd.toml"
mkdir "$work/presets.d"
export LMD_SOCKET=$work/lmd.sock
export LMD_SERVER__PORT=$port LMD_CONTROL__SOCKET=$LMD_SOCKET
export LMD_PATHS__MODELS="[\"$PWD/tests/models\"]" LMD_PATHS__PRESETS=$work/presets.d LMD_PATHS__STATE=$work

step "lmd &"
"$bin/lmd" --config "$work/lmd.toml" >"$work/log" 2>&1 &
daemon=$!
until "$bin/lmctl" status >"$work/status" 2>/dev/null; do
    if ! kill -0 "$daemon" 2>/dev/null; then
        daemon=
        cat "$work/log" >&2
        echo "lmd ended before it was ready; its log is above." >&2
        exit 1
    fi
    sleep 0.1
done
url=$("$bin/lmctl" status --json | "$bin/python" -c 'import json, sys; print(json.load(sys.stdin)["url"].rstrip("/"))')
tail -n 5 "$work/log"

step "lmctl status"
"$bin/lmctl" status

step "lmctl load tiny-chat --ttl 60"
"$bin/lmctl" load tiny-chat --ttl 60

body='{"model": "tiny-chat", "messages": [{"role": "user", "content": "Count to 5."}], "temperature": 0, "stream": true}'
if command -v curl >/dev/null; then
    step "curl -N $url/v1/chat/completions -H 'Content-Type: application/json' -d '$body'"
    curl -sS --fail-with-body -N "$url/v1/chat/completions" -H 'Content-Type: application/json' -d "$body"
else
    printf '\ncurl is not installed (sudo apt install -y curl); going on with the Python client.\n'
fi

step "python -c 'openai.OpenAI(…).chat.completions.create(…, stream=True)'"
"$bin/python" - "$url" <<'PY'
import sys

from openai import OpenAI

client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none needed")
stream = client.chat.completions.create(
    model="tiny-chat",
    messages=[{"role": "user", "content": "Tell me a story about Emma in Rome."}],
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()
PY

step "lmctl chat tiny-chat -p 'What can you do?' --stats"
"$bin/lmctl" chat tiny-chat -p 'What can you do?' --stats

step "lmctl ps"
"$bin/lmctl" ps

worker=$("$bin/lmctl" ps --json | "$bin/python" -c 'import json, sys; print(json.load(sys.stdin)[0]["pid"])')

step "kill %1"
kill "$daemon"
code=0
wait "$daemon" || code=$?
daemon=
if [ "$code" != 0 ]; then
    tail -n 20 "$work/log" >&2
    echo "lmd ended with exit code $code; its last lines are above." >&2
    exit 1
fi
if left=$(ls -A "$work" | grep -E '\.sock$'); then
    echo "lmd left $left behind." >&2
    exit 1
fi
if kill -0 "$worker" 2>/dev/null; then
    echo "lmd left its worker $worker behind." >&2
    exit 1
fi
echo "lmd has stopped, and left nothing behind."
