"""What a person names on the hub: ``owner/repo``, ``owner/repo@quant``, or a link. Pure."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from lmd.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w./+-]{1,200}", re.ASCII)
_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_VIEWS = frozenset({"tree", "blob", "resolve", "raw"})
_KINDS = {"datasets": "a dataset", "spaces": "a space", "papers": "a paper", "collections": "a collection"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of models, and what of it is meant."""

    owner: str
    repo: str
    revision: str = "main"
    path: str = ""
    """A file or a directory of the repository; "": all of it."""
    quantization: str | None = None

    @property
    def name(self) -> str:
        return f"{self.owner}/{self.repo}"


def parse_reference(text: str, endpoint: str = "https://huggingface.co") -> Reference | None:
    """What ``text`` names; None for words to search for. InvalidRequest for a link to something else.

    ``endpoint``: the hub in use, to whose host links may lead as well.
    """
    text = text.strip()
    if "://" in text:
        return _link(text, endpoint)
    host, slash, rest = text.partition("/")
    if slash and host.lower() in _HOSTS:
        return _link(f"https://{host}/{rest}", endpoint)
    if not slash:
        return None
    return _name(text)


def _name(text: str) -> Reference:
    body, mark, quantization = text.partition("@")
    if not mark:
        body, mark, quantization = text.partition(":")  # as llama.cpp and ollama write it
    owner, *below = body.rstrip("/").split("/")
    if not below:
        raise _wrong(text, "it names no repository")
    repo, *inside = below
    if mark and not quantization:
        raise _wrong(text, f"nothing stands after the '{mark}'")
    path = _path(text, inside)
    return Reference(_part(text, owner), _part(text, repo), path=path, quantization=quantization or None)


def _link(text: str, endpoint: str) -> Reference:
    try:
        link = urlsplit(text)
        host = (link.hostname or "").lower()
        same = link.netloc == urlsplit(endpoint).netloc
    except ValueError as exc:
        raise _wrong(text, str(exc)) from exc
    if link.scheme not in ("http", "https") or not (host in _HOSTS or same):
        raise _wrong(text, f"it does not lead to {urlsplit(endpoint).netloc}")
    steps = [unquote(step) for step in link.path.split("/") if step]
    if steps and steps[0] in _KINDS:
        raise _wrong(text, f"it leads to {_KINDS[steps[0]]}, not to a model")
    if len(steps) < 2:
        raise _wrong(text, "it leads to no repository")
    quantization: str | None = None
    repo = steps[1]
    for mark in "@:":
        repo, _, said = repo.partition(mark)
        quantization = quantization or said or None
    owner, repo = _part(text, steps[0]), _part(text, repo)
    if len(steps) == 2:
        shown = parse_qs(link.query).get("show_file_info", [""])[0]
        return Reference(owner, repo, path=_path(text, shown.split("/") if shown else []), quantization=quantization)
    if steps[2] not in _VIEWS:
        raise _wrong(text, f"'{steps[2]}' of a repository holds no files")
    revision = steps[3] if len(steps) > 3 else "main"
    if not _REVISION.fullmatch(revision):
        raise _wrong(text, f"'{revision[:60]}' cannot be a revision")
    return Reference(owner, repo, revision, _path(text, steps[4:]), quantization)


def _path(text: str, steps: list[str]) -> str:
    if not is_safe_path("/".join(steps)) and steps:
        raise _wrong(text, "it leads out of the repository")
    return "/".join(steps)


def _part(text: str, name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise _wrong(text, f"'{name[:60]}' cannot be the name of an owner or a repository")
    return name


def _wrong(text: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{text[:200]}' names no model on the hub: {why}.",
        hint="Say owner/repo, owner/repo@q4_k_m, a link to a model's page or file, or words to search for.",
        param="model",
    )


def is_safe_path(path: str) -> bool:
    """A relative path that stays below where it starts, with no hidden or unprintable name in it."""
    steps = path.split("/")
    return all(step and not step.startswith(".") and step.isprintable() and len(step.encode()) < 240 for step in steps)
