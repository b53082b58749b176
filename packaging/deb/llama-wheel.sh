#!/usr/bin/env bash
# Build llama-cpp-python with all variants of ggml's CPU code, one of which is chosen when a worker starts; print the
# wheel's path. 11 minutes on two cores, once for each version, architecture and set of flags: kept in the cache.
#   packaging/deb/llama-wheel.sh VERSION [cached]   with "cached" it does not compile, and exits 3 when it would have to
set -euo pipefail
version=${1:?usage: llama-wheel.sh VERSION}
python=${PYTHON:-/usr/bin/python3}
cache=${LMD_PACKAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lmd-package}
# What a processor can do is asked when ggml starts, not when it is compiled.
flags="-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON"

key=$(printf '%s\n' "$version" "$flags" "$(dpkg --print-architecture)" | sha256sum | cut -c1-12)
place=$cache/llama-$version-$key
mkdir -p "$cache"
exec 9>"$place.lock"
flock 9
if ! compgen -G "$place/llama_cpp_python-*.whl" >/dev/null; then
    [ "${2:-}" != cached ] || exit 3
    echo "Compiling llama-cpp-python $version with all CPU variants: about 11 minutes on two cores." >&2
    rm -rf "$place.new"
    "$python" -m venv "$place.new/venv"
    if ! CMAKE_ARGS=$flags CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} nice "$place.new/venv/bin/pip" wheel --no-deps \
        --no-cache-dir --no-binary llama-cpp-python --wheel-dir "$place.new" "llama-cpp-python==$version" \
        >"$place.log" 2>&1 9>&-; then
        tail -n 30 "$place.log" >&2
        echo "llama-cpp-python $version could not be built; all of the log is in $place.log" >&2
        exit 1
    fi
    rm -rf "$place.new/venv" "$place"
    mv "$place.new" "$place"
fi
compgen -G "$place/llama_cpp_python-*.whl"
