"""The Hugging Face hub: searching, what a repository holds, and what its refusals mean.

Calls go through huggingface_hub, which knows ``HF_ENDPOINT``, ``HF_TOKEN``, the token file of ``hf auth login`` and
the proxies of the environment. It is imported with the first call: half a second that a daemon which downloads
nothing need not spend.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import quote

from lmd.errors import Gated, HubError, LmdError, NotFound, Overloaded
from lmd.library.repository import Format, RepoFile, Repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
CALL_SECONDS = 20.0
TRIES = 3
"""For calls of the API, which somebody waits for."""
PATIENCE_SECONDS = 5.0
"""The longest pause that is waited for within a call."""
_AT_ONCE = 4
"""Repositories looked at side by side after a search."""
_TOKEN_HINT = "Give lmd a token of an account that may read it: HF_TOKEN in its environment, or 'hf auth login'."

T = TypeVar("T")


def endpoint_of(environ: Mapping[str, str]) -> str:
    return (environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


class Hub:
    """One hub. Its coroutines raise LmdError: NotFound, Gated, Overloaded (with ``retry_after``), HubError."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.endpoint = endpoint_of(environ)
        self._environ = environ
        self._api: HfApi | None = None

    def url(self, name: str, revision: str, path: str) -> str:
        """Where a file's bytes are asked for."""
        return f"{self.endpoint}/{name}/resolve/{quote(revision, safe='')}/{quote(path)}"

    async def token(self) -> str | None:
        """The token to show to this hub, and to nobody else. Read anew each time: it may be renewed while lmd runs."""
        return await asyncio.to_thread(self._token)

    def _token(self) -> str | None:
        if folder := self._environ.get("CREDENTIALS_DIRECTORY"):
            try:
                if token := (Path(folder) / "hf_token").read_text("utf-8").strip():
                    return token
            except (OSError, UnicodeDecodeError):
                pass
        from huggingface_hub import get_token

        try:
            return get_token()
        except Exception as exc:  # of its many sources any may fail in its own way
            log.warning("No token for the hub: %s", exc)
            return None

    async def search(self, words: str, format: Format, limit: int) -> list[Repository]:
        """Repositories that hold models of ``format`` and match ``words``, the most downloaded first."""

        def ask(api: HfApi, token: str | None) -> list[str]:
            found = api.list_models(search=words, filter=format, sort="downloads", limit=limit, token=token or False)
            return [info.id for info in found]

        names = await self._call(ask, f"the search for '{words}'")
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(name: str) -> Repository | None:
            async with gate:
                try:
                    return await self.repository(name)
                except LmdError as error:
                    log.info("%s is left out of a search: %s", name, error)
                    return None

        return [found for found in await asyncio.gather(*map(look, names)) if found is not None]

    async def repository(self, name: str, revision: str = "main") -> Repository:
        """The repository at ``revision``, pinned to the commit that this is now."""

        def ask(api: HfApi, token: str | None) -> Repository:
            info = api.model_info(
                name, revision=revision, files_metadata=True, timeout=CALL_SECONDS, token=token or False
            )
            return Repository(
                name=info.id or name,
                revision=info.sha or revision,
                files=tuple(
                    RepoFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None, one.blob_id)
                    for one in info.siblings or ()
                ),
                tags=frozenset([*(info.tags or ()), *([info.library_name] if info.library_name else ())]),
                downloads=info.downloads or 0,
                likes=info.likes or 0,
                gated=bool(info.gated),
                updated_at=info.last_modified.timestamp() if info.last_modified else 0.0,
            )

        return await self._call(ask, name)

    async def _call(self, ask: Callable[[HfApi, str | None], T], what: str) -> T:
        tried = 1
        while True:
            try:
                return await asyncio.to_thread(self._ask, ask, what)
            except Passing:
                wait = 0.5 * 2**tried
                if tried == TRIES:
                    raise
            except Overloaded as error:
                wait = error.retry_after
                if tried == TRIES or wait > PATIENCE_SECONDS:
                    raise
            tried += 1
            await asyncio.sleep(wait)

    def _ask(self, ask: Callable[[HfApi, str | None], T], what: str) -> T:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        # httpx's or httpx2's HTTPError, by huggingface_hub's version.
        transport_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
        if self._api is None:
            self._api = HfApi(endpoint=self.endpoint, library_name="lmd")
        token = self._token()
        try:
            return ask(self._api, token)
        except HfHubHTTPError as exc:
            if exc.response is None:
                raise unreachable(self.endpoint, exc) from exc
            headers = {key.lower(): value for key, value in exc.response.headers.items()}
            raise refusal(exc.response.status_code, headers, what, self.endpoint, token is not None) from exc
        except (transport_error, OSError) as exc:
            raise unreachable(self.endpoint, exc) from exc
        except Exception as exc:
            log.exception("The hub's answer for %s is not understood", what)
            raise HubError(f"The hub at {self.endpoint} sends for {what} what lmd does not understand: {exc}.") from exc


class Passing(HubError):
    """A trouble of the hub or of the way there that may be gone at the next try."""


def unreachable(endpoint: str, error: BaseException) -> Passing:
    reason = str(error).strip().split("\n", maxsplit=1)[0][:300] or type(error).__name__
    return Passing(
        f"The hub at {endpoint} cannot be reached: {reason}.",
        hint="Look at the network; a proxy goes into HTTPS_PROXY and another hub into HF_ENDPOINT, for lmd itself.",
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait. The form with a date is passed by: clocks differ."""
    try:
        return min(max(0.0, float(headers.get("retry-after", ""))), 3600.0)
    except ValueError:
        return None


def refusal(status: int, headers: Mapping[str, str], what: str, endpoint: str, has_token: bool) -> LmdError:
    """What an answer with a 4xx or 5xx status means, and what to do. ``headers`` by lower-case name."""
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")[:300]
    name = what.partition(":")[0]
    page = f"{endpoint}/{name}"
    if code == "GatedRepo":
        if has_token:
            return Gated(
                f"{name} is gated, and the account of lmd's token has not been granted access.",
                hint=f"Ask for access at {page}, then try again.",
            )
        return Gated(
            f"{name} is gated: its owner wants its terms accepted first.",
            hint=f"Accept them at {page}. {_TOKEN_HINT}",
        )
    if code == "RevisionNotFound":
        return NotFound(f"The revision of {name} that was asked for is no more there.", hint="Try 'lmctl get' anew.")
    if code == "EntryNotFound":
        return NotFound(f"The file {what} is not there (any more).", hint="Try 'lmctl get' anew.")
    if status == 401 and has_token and code != "RepoNotFound":
        return HubError(
            f"The hub does not accept lmd's token (for {what}).",
            hint=f"Make a new one at {endpoint}/settings/tokens and give it to lmd as HF_TOKEN.",
        )
    if status in (401, 404) or code == "RepoNotFound":
        more = "lmd's token gives no access to it." if has_token else f"If it is private: {_TOKEN_HINT}"
        return NotFound(f"There is no {what} on the hub, or it is private.", hint=f"Look at the spelling. {more}")
    if status == 403:
        return HubError(f"The hub forbids {what}{_said(said)}.", hint=_TOKEN_HINT)
    if status in (410, 451):
        return HubError(f"{what} has been withdrawn from the hub{_said(said)}.", hint="Look for another one.")
    if status == 429:
        wait = retry_after(headers) or 5.0
        return Overloaded(
            f"The hub asks for a pause: too many requests from here (for {what}).",
            hint=f"Try again in {wait:.0f} s." + ("" if has_token else " With a token (HF_TOKEN) it allows more."),
            retry_after=wait,
        )
    if status >= 500 or status == 408:
        return Passing(f"The hub has trouble of its own: it answers {status} for {what}.", hint="Try again later.")
    return HubError(f"The hub answers {status} for {what}{_said(said)}.", hint=f"Look at {page}.")


def _said(text: str) -> str:
    return f": {text.rstrip('.')}" if text else ""
