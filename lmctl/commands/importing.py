"""``lmctl import``: put a model file that is on this machine into the library. Done here, with the caller's rights."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lmctl.errors import CommandError, UsageError
from lmctl.options import Common
from lmctl.output import print_json, say
from lmd.protocol import ModelRow, ReloadResult, Status

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
MAGIC = b"GGUF"

Ways = dict[str, Callable[[Path, Path], None]]


def import_model(common: Common, file: Path, *, way: str, user_repo: str | None, dry_run: bool) -> None:
    """``way``: move, copy, hard-link or symbolic-link."""
    sources = parts_of(file.expanduser().absolute())
    client = common.client()
    directories = [Path(one) for one in client.get("/status", Status).model_directories]
    if not directories:
        raise CommandError("lmd has no model directory.", hint="Name one in [paths] models of lmd.toml.")
    folder = _folder(directories[0], user_repo)
    pairs = [(source, folder / source.name) for source in sources]
    for source, target in pairs:
        _check(source, target, directories)
    done = {"from": [str(s) for s, _ in pairs], "to": [str(t) for _, t in pairs], "way": way, "key": None}
    if not dry_run:
        for source, target in pairs:
            _put(WAYS[way], source, target, directories[0])
        client.post("/reload", None, ReloadResult)
        done["key"] = _key(client.get("/models", list[ModelRow]), pairs[0][1])
    if common.json:
        print_json(done)
        return
    for source, target in pairs:
        verb = {"move": "moved", "copy": "copied"}.get(way, "linked")
        say(f"{source} {'would be ' * dry_run}{verb} to {target}")
    if done["key"]:
        say(f"The model is {done['key']}; load it with 'lmctl load {done['key']}'.")


def parts_of(file: Path) -> list[Path]:
    """The file, or all parts of the split model that it is a part of. `UsageError` for what is no GGUF file."""
    if file.suffix.lower() != ".gguf":
        raise UsageError(f"{file} is no GGUF file by its name.", hint="Models for lmd end in .gguf.")
    match = _PART.fullmatch(file.name)
    number = int(match["count"]) if match else 0
    files = [file]
    if match and number:
        names = [f"{match['stem']}-{n:05}-of-{match['count']}{file.suffix}" for n in range(1, number + 1)]
        files = [file.with_name(name) for name in names]
    for one in files:
        try:
            with one.open("rb") as opened:
                magic = opened.read(len(MAGIC))
        except OSError as exc:
            hint = "All parts of a split model must be there." if number else None
            raise CommandError(f"{one} cannot be read: {exc.strerror}.", hint=hint) from exc
        if magic != MAGIC:
            raise CommandError(
                f"{one} is no GGUF file: it does not begin with {MAGIC.decode()}.", code="bad_model_file"
            )
    return files


def _folder(root: Path, user_repo: str | None) -> Path:
    if user_repo is None:
        return root
    owner, slash, repo = user_repo.partition("/")
    if not (slash and _NAME.fullmatch(owner) and _NAME.fullmatch(repo)):
        raise UsageError(f"--user-repo {user_repo}: expected OWNER/REPO.", hint="For example --user-repo me/my-model")
    return root / owner / repo


def _check(source: Path, target: Path, directories: list[Path]) -> None:
    if os.path.lexists(target):
        raise CommandError(f"There is a {target} already.", hint="Choose another place with --user-repo OWNER/REPO.")
    here = (Path(os.path.normpath(source)), source.resolve())  # a link in the library is in it, wherever it leads
    if any(path.is_relative_to(root) for path in here for one in directories for root in (one, one.resolve())):
        raise CommandError(f"{source} is in the library already.", hint="'lmctl ls' lists it.")


# ── ways to put a file there ──────────────────────────────────────────────────────────────────


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        _copy(source, target)
        source.unlink()


def _copy(source: Path, target: Path) -> None:
    """By way of a name that the library does not look at: it never sees half a file."""
    part = target.with_name(f"{target.name}.part")
    try:
        shutil.copyfile(source, part)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.rename(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _hard_link(source: Path, target: Path) -> None:
    target.hardlink_to(source.resolve())


def _symbolic_link(source: Path, target: Path) -> None:
    target.symlink_to(source)


WAYS: Ways = {"move": _move, "copy": _copy, "hard-link": _hard_link, "symbolic-link": _symbolic_link}


def _put(way: Callable[[Path, Path], None], source: Path, target: Path, root: Path) -> None:
    try:
        made = [folder for folder in (target.parent.parent, target.parent) if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        way(source, target)
        if os.geteuid() == 0:
            # Put there by root, it must still be lmd's to read and to remove.
            owner = root.stat()
            for path in [*made, *([] if way in (_hard_link, _symbolic_link) else [target])]:
                os.chown(path, owner.st_uid, owner.st_gid)
    except PermissionError as exc:
        raise CommandError(
            f"You may not write {exc.filename2 or exc.filename}.", hint=f"Try 'sudo lmctl import {source}'."
        ) from exc
    except OSError as exc:
        hint = (
            "Another file system takes no hard link: say --copy or --symbolic-link." if exc.errno == errno.EXDEV else ""
        )
        raise CommandError(f"{source} cannot be put at {target}: {exc.strerror}.", hint=hint or None) from exc


def _key(rows: list[ModelRow], target: Path) -> str:
    row = next((row for row in rows if row.path == str(target)), None)
    if row is None or row.error:
        why = row.error if row else "it does not find the file; may lmd's user read it, and where a link leads to?"
        raise CommandError(f"{target} is in place, but lmd cannot serve it: {why}.", hint="'lmctl ls' tells more.")
    return row.key
