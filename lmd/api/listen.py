"""The sockets that the daemon serves on: bound with the errors a person understands, and cleaned up after."""

import contextlib
import errno
import grp
import ipaddress
import os
import socket
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from lmd.errors import Conflict, LmdError

_BACKLOG = 1024


class CannotListen(LmdError):
    """The daemon cannot have the address or the path that it was told to serve on."""

    code = "cannot_listen"


def bind_http(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address that ``host`` means. Port 0: one free port for all of them. Blocks on DNS."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise CannotListen(f'[server] host = "{host}" is no address here: {error}.') from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    bound: list[socket.socket] = []
    try:
        for family, address in addresses:
            if port == 0 and bound:
                address = (address[0], bound[0].getsockname()[1], *address[2:])  # noqa: PLW2901 -- the port that the first got
            bound.append(_bind(family, address))
    except OSError as error:
        for one in bound:
            one.close()
        raise _cannot_bind(error, host, port) from error
    return bound


def _bind(family: int, address: object) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
        one.listen(_BACKLOG)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _cannot_bind(error: OSError, host: str, port: int) -> CannotListen:
    if error.errno == errno.EADDRINUSE:
        return CannotListen(
            f"Port {port} on {host} is in use by another program.",
            hint=f"Find it with 'ss -ltnp sport = :{port}', or choose another port: 'lmd --port 0' takes any free one.",
        )
    if error.errno == errno.EACCES:
        return CannotListen(f"Port {port} needs root.", hint="Choose a port above 1023 ('lmd --port 1234').")
    if error.errno == errno.EADDRNOTAVAIL:
        return CannotListen(
            f"This machine has no address {host}.", hint="Set [server] host to one that it has; 'ip addr' lists them."
        )
    return CannotListen(f"Cannot listen on {host} port {port}: {error.strerror}.")


def url_of(sockets: Sequence[socket.socket]) -> str:
    """The address to tell people; a wildcard is told as the loopback address that reaches it."""
    host, port = sockets[0].getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_exposed(hosts: Collection[str]) -> bool:
    """Whether others than this machine can reach one of these bound addresses."""
    for host in hosts:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
                return True
    return False


def refuse_exposed(hosts: Collection[str]) -> None:
    """CannotListen where an address is not this machine's alone; for a server that asks for no tokens."""
    if is_exposed(hosts):
        raise CannotListen(
            f"Anyone who reaches {', '.join(sorted(hosts))} could use the models: [server] auth is off.",
            hint="Set auth = \"on\" and make tokens with 'lmctl token create', or set allow_insecure = true.",
        )


def bound_hosts(sockets: Sequence[socket.socket]) -> frozenset[str]:
    return frozenset(one.getsockname()[0] for one in sockets)


# ── control socket ────────────────────────────────────────────────────────────────────────────


class ControlSocket:
    """The Unix socket ``path``: made for the daemon's life, removed by `close` if it is still ours."""

    def __init__(self, path: Path, mode: int, group: str) -> None:
        """Replaces the socket of a dead daemon. Conflict when a live one answers; CannotListen otherwise."""
        self.path = path
        try:
            made = _make_directory(path.parent)
            _clear(path)
            self.socket = _bind_unix(path, mode, group)
        except OSError as error:
            raise CannotListen(
                f"Cannot make the control socket {path}: {error.strerror}.",
                hint="Set [control] socket (or --socket) to a path in a directory that this user may write.",
            ) from error
        self._made_directory = made
        status = path.stat()
        self._identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            # Another daemon may have put its own in our place meanwhile.
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        if self._made_directory:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()


def _make_directory(directory: Path) -> bool:
    """Whether it had to be made. 0755: who may connect is decided by the socket's own mode.

    CannotListen where everybody may write to it: anyone could put a socket of theirs in our place.
    """
    try:
        directory.mkdir(mode=0o755, parents=True)
    except FileExistsError:
        if not directory.is_dir():
            raise
        if directory.stat().st_mode & stat.S_IWOTH:
            raise CannotListen(
                f"{directory} is writable for everybody, and no place for the control socket.",
                hint="Set [control] socket (or --socket) to a path in a directory of your own.",
            ) from None
        return False
    return True


def _clear(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise CannotListen(
            f"{path} is there and is not a socket.", hint="Remove it, or set [control] socket to another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # whoever listened here is dead
            return
        except TimeoutError:
            pass  # its queue is full: somebody lives
    raise Conflict(
        f"Another lmd already runs on {path}.",
        hint="Stop it first ('systemctl stop lmd'), or give this one its own --socket and --port.",
    )


def _bind_unix(path: Path, mode: int, group: str) -> socket.socket:
    gid = _gid(group)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody may connect before mode and group are as they should be: bind closed, then open.
    mask = os.umask(0o177)
    try:
        one.bind(os.fspath(path))
    except OSError:
        one.close()
        raise
    finally:
        os.umask(mask)
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        path.chmod(mode)
        one.listen(_BACKLOG)
        one.setblocking(False)
    except OSError:
        one.close()
        path.unlink(missing_ok=True)
        raise
    return one


def _gid(group: str) -> int | None:
    if not group:
        return None
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise CannotListen(
            f'[control] group = "{group}": there is no such group.', hint=f"Make it with 'groupadd {group}'."
        ) from None
