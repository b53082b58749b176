#!/usr/bin/env bash
# Build lmd's Debian packages into dist: packaging/deb/build.sh [bookworm] [trixie]; both without arguments.
# For the architecture that it runs on, without root; needs g++, dpkg-dev, binutils, git, python3-venv and PyPI.
# The same tree and the same dependencies make the same file: times come from the last commit.
#   OUT                where packages go (dist)
#   LMD_PACKAGE_CACHE  where compiled llama.cpp and downloads are kept (~/.cache/lmd-package)
#   LLAMA_WHEEL        a llama-cpp-python that is built already, instead of what llama-wheel.sh makes
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
export LMD_PACKAGE_CACHE=${LMD_PACKAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lmd-package}
out=$(realpath -m "${OUT:-dist}")
maintainer="lmd maintainers <maintainers@lmd.example>"
missing=()
for need in g++:g++ dpkg-deb:dpkg dpkg-shlibdeps:dpkg-dev objdump:binutils git:git; do
    command -v "${need%:*}" >/dev/null || missing+=("${need#*:}")
done
/usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
((${#missing[@]} == 0)) || { echo "Missing here: ${missing[*]}. Install with: sudo apt install -y ${missing[*]}" >&2; exit 3; }

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
arch=$(dpkg --print-architecture)
mkdir -p "$out"
rm -f "$out"/lmd_*_"$arch.deb"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# uv, not pip: it resolves for a Python that this machine need not have.
uv=$LMD_PACKAGE_CACHE/uv/bin/uv
if [ ! -x "$uv" ]; then
    /usr/bin/python3 -m venv --clear "$LMD_PACKAGE_CACHE/uv"
    "$LMD_PACKAGE_CACHE/uv/bin/pip" install --quiet --disable-pip-version-check uv
fi
export UV_CACHE_DIR=$LMD_PACKAGE_CACHE/uv/cache UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_PYTHON=/usr/bin/python3

# The release that lmd/engine is written against.
pinned=$(sed -n 's/^ *"llama-cpp-python>=\([0-9.]*\)".*/\1/p' pyproject.toml)
llama=${LLAMA_WHEEL:-$("$here/llama-wheel.sh" "$pinned")}
"$uv" --quiet build --wheel --out-dir "$work/wheel" .
wheel=$(compgen -G "$work/wheel/lmd-*.whl")
version=$(basename "$wheel" | cut -d- -f2)
# Debian's order of versions: 0.2.0~dev3 comes before 0.2.0.
version=$(sed -E 's/^([0-9.]*[0-9])\.?(a|b|rc|dev)/\1~\2/; s/^([^+]*[0-9])\.dev/\1~dev/' <<<"$version")

# What Python's tools put where only a virtual environment's own tools look, and copies where the build had links.
tidy() {
    local site=$1 library target
    # Scripts of dependencies, and llama.cpp's headers and libraries for a second time.
    find "$site/bin" -maxdepth 1 -type f ! -name '*.so' -delete
    find "$site/bin" -maxdepth 1 -name 'libggml-*.so' -exec mv -t "$site/llama_cpp/lib" {} +
    rm -rf "$site/bin" "$site/lib" "$site/include" "$site/share" "$site/.lock"
    for library in "$site"/llama_cpp/lib/*.so; do
        for target in "$library".*; do
            [ -f "$target" ] && [ ! -L "$target" ] && cmp -s "$library" "$target" || continue
            case $target in *.so.?) ln -sf "${target##*/}" "$library" ;; *) rm "$target" ;; esac
        done
    done
    find "$site" -name __pycache__ -prune -exec rm -rf {} +
    # Not stripped: numpy's OpenBLAS, which auditwheel has edited, cannot be loaded after that.
    find "$site" -name '*.so*' -type f -exec chmod 644 {} +
    # No module that looks like a script.
    find "$site" -name '*.py' -exec sed -i '1s/^#!.*/#/' {} +
    # Where the wheels lay, another place at each build; and lists for pip, with checksums of before.
    rm -f "$site"/*.dist-info/{direct_url.json,uv_cache.json,RECORD,INSTALLER,REQUESTED}
}

environment() { # ROOT PYTHON: a virtual environment for /usr/lib/lmd
    local place=$1/usr/lib/lmd python=$2 machine name
    local site=$place/lib/python$python/site-packages
    machine=$(uname -m)
    mkdir -p "$place/bin" "$site"
    # glibc 2.36 is Debian 12's; sdnotify is pure Python without a finished wheel.
    "$uv" --quiet pip install --target "$site" --python-version "$python" --link-mode copy \
        --python-platform "$machine-manylinux_2_36" --only-binary :all: --no-binary sdnotify "$llama" "$wheel"
    tidy "$site"
    ln -s "../../../bin/python$python" "$place/bin/python3"
    printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$python" >"$place/pyvenv.cfg"
    mkdir -p "$1/usr/bin"
    for name in lmd:lmd.__main__ lmctl:lmctl.cli; do
        printf '#!/usr/lib/lmd/bin/python3\nimport sys\nfrom %s import main\nsys.exit(main())\n' "${name#*:}" \
            >"$place/bin/${name%:*}"
        chmod 755 "$place/bin/${name%:*}"
        ln -s "../lib/lmd/bin/${name%:*}" "$1/usr/bin/${name%:*}"
    done
}

files() { # ROOT: units, users, settings, man pages, completions
    PREFIX=/usr/lib/lmd DESTDIR=$1 LIBDIR=/usr/lib SHAREDIR=/usr/share bash packaging/install.sh files
    sed -i 's|%h/.local/bin/|/usr/bin/|; /^# Where pipx puts it/d; s|: copy to ~/.config/systemd/user, then|:|' \
        "$1/usr/lib/systemd/user/lmd.service"
    sed -i "s|^# lmd as a system service.*|# lmd as a system service. Change it with 'systemctl edit lmd', not here.|" \
        "$1/usr/lib/systemd/system/lmd.service"
    find "$1/usr/share/man" -type f -exec gzip -9n {} +
    mkdir -p "$1/usr/share/zsh"
    mv "$1/usr/share/zsh/site-functions" "$1/usr/share/zsh/vendor-completions"
    local documents=$1/usr/share/doc/lmd
    install -D -m 644 -t "$documents" "$here/copyright" docs/*.md
    install -D -m 644 -t "$documents/examples" systemd/examples/*.conf packaging/grafana/lmd.json
    install -D -m 644 "$here/lintian-overrides" "$1/usr/share/lintian/overrides/lmd"
}

control() { # ROOT RELEASE-NUMBER PYTHON GLIBC
    local root=$1 full=$version+deb$2 needed
    mkdir -p "$work/shlibs/debian" "$root/DEBIAN"
    printf 'Source: lmd\n\nPackage: lmd\nArchitecture: any\n' >"$work/shlibs/debian/control"
    local libraries=$root/usr/lib/lmd/lib/python$3/site-packages/llama_cpp/lib
    needed=$(objdump -T "$libraries"/*.so | grep -o 'GLIBC_2\.[0-9]*' | sort -Vu | tail -n 1)
    if dpkg --compare-versions "${needed#GLIBC_}" gt "$4"; then
        echo "llama.cpp was compiled against $needed, and this release has $4: build on Debian 12, or in a chroot of it." >&2
        exit 1
    fi
    needed=$(cd "$work/shlibs" && dpkg-shlibdeps -O -l"$libraries" "$libraries"/*.so 2>/dev/null | sed 's/^shlibs:Depends=//')
    cat >"$root/DEBIAN/control" <<END
Package: lmd
Version: $full
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: $needed, python$3, systemd (>= 252), debconf (>= 0.5) | debconf-2.0
Recommends: ca-certificates
Section: net
Priority: optional
Description: serve local GGUF language models over HTTP
 lmd loads models as clients ask for them and unloads them when they have been
 idle, and speaks the dialects of OpenAI, Anthropic and LM Studio at port 1234
 of this machine. lmctl steers it.
 .
 llama.cpp comes with it, for the processor; which of its variants suits the
 processor is found out when a model loads.
END
    install -m 644 -t "$root/DEBIAN" "$here/DEBIAN/templates"
    install -m 755 -t "$root/DEBIAN" "$here"/DEBIAN/{postinst,prerm,postrm}
    (cd "$root" && find etc -type f -printf '/%p\n' | sort >DEBIAN/conffiles)
    printf 'lmd (%s) unstable; urgency=medium\n\n  * Built of commit %s.\n\n -- %s  %s\n' "$full" \
        "$(git rev-parse --short HEAD)" "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" \
        | gzip -9n >"$root/usr/share/doc/lmd/changelog.gz"
    (cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
}

package() { # NUMBER PYTHON GLIBC
    local root=$work/$1
    environment "$root" "$2"
    files "$root"
    control "$root" "$@"
    dpkg-deb --root-owner-group --build "$root" "$out/lmd_$version+deb${1}_$arch.deb" >/dev/null
    rm -rf "$root"
    (cd "$out" && du -h "lmd_$version+deb${1}_$arch.deb")
}

for release in "${@:-bookworm trixie}"; do
    for name in $release; do
        case $name in
        bookworm) package 12 3.11 2.36 ;;
        trixie) package 13 3.13 2.41 ;;
        *) echo "usage: build.sh [bookworm] [trixie]" >&2; exit 2 ;;
        esac
    done
done
