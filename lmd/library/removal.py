"""Which files go with a model, and taking them off the disk."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmd.errors import Conflict, LmdError
from lmd.library.files import Broken
from lmd.library.incoming import remove_empty
from lmd.library.model import Model


@dataclass(frozen=True, slots=True)
class Removal:
    files: tuple[Path, ...]
    kept: tuple[Path, ...]
    """Files of the model that another one needs as well."""
    size: int
    """Bytes of ``files``. A file that a symbolic or a hard link leads to elsewhere stays, and frees nothing."""


def plan_removal(model: Model, others: Iterable[Model]) -> Removal:
    """What removing ``model`` takes away, while the ``others`` go on as they are. Blocks for a stat of each file."""
    mine = [*model.parts, *([model.mmproj] if model.mmproj else [])]
    needed = {path for other in others for path in (*other.parts, *([other.mmproj] if other.mmproj else []))}
    files = tuple(path for path in mine if path not in needed)
    return Removal(files, tuple(path for path in mine if path in needed), sum(map(_freed, files)))


def plan_broken_removal(broken: Broken) -> Removal:
    """The same of a file that cannot be served: that file alone, which may be a part of something. Conflict where it is
    a directory."""
    if broken.path.is_dir():
        raise Conflict(f"{broken.path} is a directory: {broken.reason}.", hint="Look at it, and remove it yourself.")
    return Removal((broken.path,), (), _freed(broken.path))


def _freed(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if status.st_nlink == 1 and not path.is_symlink() else 0


def remove_files(removal: Removal, roots: Sequence[Path]) -> None:
    """Remove them, and directories below ``roots`` that are empty then. Blocks. LmdError where one cannot go."""
    for path in removal.files:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise LmdError(
                f"{path} cannot be removed: {exc.strerror or exc}.",
                hint=f"lmd's user must own {path.parent}; or remove it yourself, lmd notices.",
            ) from exc
        for root in roots:
            remove_empty(path.parent, root)
