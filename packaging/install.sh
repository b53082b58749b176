#!/usr/bin/env bash
# Install lmd from this checkout for the whole machine, as root: packaging/install.sh [files]
#   PREFIX   where the virtual environment goes (/opt/lmd)
# With `files`: only what lmd's environment does not bring, that is units, users, directories and settings;
#   DESTDIR  goes before their paths, for making packages
# Run again, it brings a newer lmd; settings are left as they are. Services are neither enabled nor started.
set -euo pipefail
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/opt/lmd} DESTDIR=${DESTDIR:-} PYTHON=${PYTHON:-/usr/bin/python3}
lib=$DESTDIR${LIBDIR:-/usr/local/lib}

if [ "${1:-}" != files ]; then
    [ -z "$DESTDIR" ] || { echo "An environment cannot be moved: DESTDIR is for 'packaging/install.sh files'." >&2; exit 2; }
    [ -x "$PREFIX/bin/python" ] || "$PYTHON" -m venv "$PREFIX"
    echo "Installing lmd into $PREFIX. Where pip has no finished llama.cpp, it is compiled: about 6 minutes on two cores."
    "$PREFIX/bin/pip" install --quiet --disable-pip-version-check --upgrade .
    install -d /usr/local/bin
    ln -sfn "$PREFIX/bin/lmd" "$PREFIX/bin/lmctl" /usr/local/bin/
fi

for unit in lmd.service lmd.socket lmd.slice; do
    install -d "$lib/systemd/system"
    sed "s|/opt/lmd|$PREFIX|g" "systemd/$unit" >"$lib/systemd/system/$unit"
    chmod 644 "$lib/systemd/system/$unit"
done
install -D -m 644 systemd/user/lmd.service "$lib/systemd/user/lmd.service"
install -D -m 644 systemd/lmd.sysusers "$lib/sysusers.d/lmd.conf"
install -D -m 644 systemd/lmd.tmpfiles "$lib/tmpfiles.d/lmd.conf"
[ -e "$DESTDIR/etc/lmd/lmd.toml" ] || install -D -m 644 etc/lmd/lmd.toml "$DESTDIR/etc/lmd/lmd.toml"
install -D -m 644 etc/lmd/presets.d/example.toml.sample "$DESTDIR/etc/lmd/presets.d/example.toml.sample"
share=$DESTDIR${SHAREDIR:-/usr/local/share}
for page in packaging/man/*.[1-8]; do
    install -D -m 644 "$page" "$share/man/man${page##*.}/${page##*/}"
done
install -D -m 644 packaging/completions/lmctl.bash "$share/bash-completion/completions/lmctl"
install -D -m 644 packaging/completions/lmctl.zsh "$share/zsh/site-functions/_lmctl"
install -D -m 644 packaging/completions/lmctl.fish "$share/fish/vendor_completions.d/lmctl.fish"

if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
    systemd-sysusers
    systemd-tmpfiles --create "$lib/tmpfiles.d/lmd.conf"
    systemctl daemon-reload
    echo "Now 'systemctl enable --now lmd', or lmd.socket to start it on first use. 'adduser USER lmd' lets USER run lmctl."
fi
