"""API tokens: made and told once, kept as hashes, asked for by every request when ``[server] auth`` is on.

A token is 256 random bits, so one round of SHA-256 is the right way to keep it: there is nothing to guess that a slow
password hash would slow down, and every request pays for it.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from lmd.errors import Conflict, Forbidden, InvalidRequest, LmdError, NotFound, Unauthorized

PREFIX = "lmd_"
SCOPES = ("inference", "manage")
CREDENTIAL = "tokens"
"""Name of the systemd credential with tokens of the operator's (``LoadCredential=tokens:/etc/lmd/tokens``)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Token(msgspec.Struct, frozen=True):
    """What is kept of one. Times in Unix seconds; ``expires_at`` None: never."""

    name: str
    digest: str
    """SHA-256 of the token, in hexadecimal."""
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    from_credential: bool = False
    """It is the service manager's, and ends with its file."""

    def is_valid(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


class _Stored(msgspec.Struct):
    version: int
    tokens: list[Token]


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def checked_scopes(said: Iterable[str]) -> tuple[str, ...]:
    """``said`` without repetitions, in the order of `SCOPES`. InvalidRequest for what is no scope, and for none."""
    wanted = set(said)
    if unknown := sorted(wanted - set(SCOPES)):
        raise InvalidRequest(f"'{unknown[0]}' is no scope.", hint=f"There are: {', '.join(SCOPES)}.", param="scopes")
    if not wanted:
        raise InvalidRequest("A token needs a scope.", hint=f"There are: {', '.join(SCOPES)}.", param="scopes")
    return tuple(scope for scope in SCOPES if scope in wanted)


def read_credential(text: str) -> list[Token]:
    """``NAME TOKEN [SCOPE,SCOPE]`` a line, TOKEN itself or ``sha256:`` and its hash; ``#`` begins a comment.

    InvalidRequest names the line that is wrong, and never shows the token.
    """
    found: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not 2 <= len(words) <= 3 or not _NAME.fullmatch(words[0]):
            raise InvalidRequest(f"Line {number} of the credential is not 'NAME TOKEN [SCOPES]'.")
        name, secret = words[:2]
        digest = secret.removeprefix("sha256:").lower() if secret.startswith("sha256:") else digest_of(secret)
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise InvalidRequest(f"Line {number} of the credential: sha256: is followed by 64 hexadecimal digits.")
        if not secret.startswith("sha256:") and len(secret) < 16:
            raise InvalidRequest(f"Line {number} of the credential: a token has at least 16 characters.")
        scopes = checked_scopes(words[2].split(",") if len(words) == 3 else ("inference",))
        found.append(Token(name, digest, scopes, created_at=0.0, from_credential=True))
    return found


class Tokens:
    """The owner of ``file``. Changes count at once. Small files: reading and writing block, for milliseconds."""

    def __init__(self, file: Path, environ: Mapping[str, str], now: Callable[[], float] = time.time) -> None:
        """LmdError where the file or the credential is there and cannot be used: an open door is no way out of that."""
        self._file = file
        self._now = now
        directory = environ.get("CREDENTIALS_DIRECTORY")
        self._given = _given(Path(directory) / CREDENTIAL) if directory else []
        self._own = _read(file)

    def rows(self) -> list[Token]:
        return [*self._given, *self._own]

    def create(self, name: str, scopes: Iterable[str], lifetime: float | None = None) -> tuple[str, Token]:
        """A new token, and what is kept of it. ``lifetime`` in seconds. InvalidRequest, Conflict on a taken name."""
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"'{name[:64]}' is no name for a token.", hint="Letters, digits and . _ - @, at most 64.", param="name"
            )
        if lifetime is not None and lifetime <= 0:
            raise InvalidRequest("A token that has expired already is of no use.", param="expires")
        if any(token.name == name for token in self.rows()):
            raise Conflict(f"There is a token '{name}'.", hint=f"'lmctl token revoke {name}' ends it.")
        secret = PREFIX + secrets.token_urlsafe(32)
        now = self._now()
        token = Token(
            name, digest_of(secret), checked_scopes(scopes), now, None if lifetime is None else now + lifetime
        )
        self._store([*self._own, token])
        return secret, token

    def revoke(self, name: str) -> Token:
        """NotFound; Conflict for one of the credential's."""
        # One's own first: a credential may have come by its name later.
        token = next((token for token in (*self._own, *self._given) if token.name == name), None)
        if token is None:
            raise NotFound(f"There is no token '{name[:64]}'.", hint="'lmctl token ls' lists them.")
        if token.from_credential:
            raise Conflict(
                f"'{name}' comes from the service manager's credential '{CREDENTIAL}'.",
                hint="Remove its line there, and restart lmd.",
            )
        self._store([one for one in self._own if one.name != name])
        return token

    def check(self, secret: str, scope: str) -> Token:
        """Whose ``secret`` is. Unauthorized where it is nobody's or has expired, Forbidden without ``scope``."""
        digest = digest_of(secret)
        found: Token | None = None
        for token in self.rows():  # all of them, whichever fits
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            raise Unauthorized("This token is not known here.", hint="'lmctl token create NAME' makes one.")
        if not found.is_valid(self._now()):
            raise Unauthorized(f"The token '{found.name}' has expired.", hint="'lmctl token create NAME' makes one.")
        if scope not in found.scopes:
            raise Forbidden(
                f"The token '{found.name}' may not do this: it has the scope {', '.join(found.scopes)}.",
                hint=f"Make one with 'lmctl token create NAME --scope {scope}'.",
            )
        return found

    def _store(self, tokens: list[Token]) -> None:
        raw = msgspec.json.format(msgspec.json.encode(_Stored(1, tokens)), indent=1)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._file.parent, prefix=f".{self._file.name}.")  # 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(raw)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self._file)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            raise LmdError(f"The tokens cannot be written to {self._file}: {error.strerror}.") from error
        self._own = tokens


def _read(file: Path) -> list[Token]:
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_Stored)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LmdError(
            f"The tokens in {file} cannot be read: {error}.", hint="Restore it, or move it away and make new ones."
        ) from error
    if stored.version != 1:
        raise LmdError(f"The tokens in {file} were written by another version of lmd (format {stored.version}).")
    return stored.tokens


def _given(file: Path) -> list[Token]:
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise LmdError(f"The credential '{CREDENTIAL}' cannot be read: {error}.") from error
    return read_credential(text)
