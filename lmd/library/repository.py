"""A repository of the hub, and what of it can be fetched as one. Pure."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from lmd.errors import InsufficientMemory, InvalidRequest, NotFound
from lmd.library.model import split_name
from lmd.library.quantizations import matching, quantization_of, rank
from lmd.library.reference import Reference, is_safe_path

Format = Literal["gguf", "mlx"]
Fit = Literal["yes", "unloading", "no"]

_MLX_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken"})
_BITS = re.compile(r"(?<![a-z0-9])(\d{1,2}bit|bf16|fp16|mxfp4|nvfp4)(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """``sha256`` is that of the content, known for large files (LFS); ``blob`` git's SHA-1, known for all."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository as it is at one commit (``revision``)."""

    name: str
    revision: str
    files: tuple[RepoFile, ...]
    tags: frozenset[str] = frozenset()
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    updated_at: float = 0.0
    """Unix seconds; 0: not told."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What is fetched as one: the parts of a quantization and the vision part beside it, or an MLX repository."""

    quantization: str
    format: Format
    parts: tuple[RepoFile, ...]
    mmproj: RepoFile | None = None

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """The vision part first: once the model appears it is whole."""
        return (self.mmproj, *self.parts) if self.mmproj else self.parts

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of memory for models: now, and once every loaded one has left."""

    free: int
    capacity: int

    def fit(self, size: int) -> Fit:
        """Whether a model of ``size`` bytes on disk can be served: beside its weights it needs a cache and buffers.

        A guess from the size alone, because the shape is in a header that has not been fetched: a tenth more, and
        256 MiB, which a context of some thousand tokens takes at these sizes. The loader knows better later.
        """
        need = size + size // 10 + 256 * 2**20
        return "yes" if need <= self.free else "unloading" if need <= self.capacity else "no"


def variants(repository: Repository, format: Format | None = None) -> tuple[Variant, ...]:
    """What can be fetched, by size. GGUF goes before MLX where a repository has both and nobody says."""
    gguf = _gguf(repository) if format != "mlx" else ()
    return gguf or (_mlx(repository) if format != "gguf" else ())


def _gguf(repository: Repository) -> tuple[Variant, ...]:
    groups: dict[tuple[str, str, int], list[RepoFile]] = defaultdict(list)
    projectors: list[RepoFile] = []
    for file in repository.files:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or not is_safe_path(file.path):
            continue
        if "mmproj" in path.name.lower():
            projectors.append(file)
        elif "imatrix" not in path.name.lower():
            stem, count = split_name(Path(path))
            groups[str(path.parent), stem, count].append(file)
    names: dict[str, int] = defaultdict(int)
    whole = []
    for (folder, stem, count), files in groups.items():
        if count in (0, len(files)):
            quantization = quantization_of(f"{folder}/{stem}") or stem
            names[quantization] += 1
            whole.append((folder, stem, quantization, sorted(files, key=lambda file: file.path)))
    made = [
        Variant(
            quantization if names[quantization] == 1 else stem,
            "gguf",
            tuple(files),
            _projector(projectors, folder),
        )
        for folder, stem, quantization, files in whole
    ]
    return tuple(sorted(made, key=lambda variant: (variant.size, variant.quantization)))


def _projector(files: Sequence[RepoFile], folder: str) -> RepoFile | None:
    """The vision part that a model in ``folder`` takes: half precision first, as the library chooses among several."""
    order = {"F16": 0, "BF16": 1, "Q8_0": 2, "": 3, "F32": 4}
    near = [file for file in files if str(PurePosixPath(file.path).parent) in (folder, ".")]
    return min(near, key=lambda file: (order.get(quantization_of(file.path), 5), file.path), default=None)


def _mlx(repository: Repository) -> tuple[Variant, ...]:
    files = [
        file
        for file in repository.files
        if "/" not in file.path and is_safe_path(file.path) and PurePosixPath(file.path).suffix in _MLX_SUFFIXES
    ]
    names = {file.path for file in files}
    if "mlx" not in repository.tags or "config.json" not in names:
        return ()
    if not any(name.endswith(".safetensors") for name in names):
        return ()
    bits = _BITS.findall(repository.name.lower())
    # The configuration last: without it the directory is no model.
    files.sort(key=lambda file: (file.path == "config.json", file.path))
    return (Variant(bits[-1].upper() if bits else "MLX", "mlx", tuple(files)),)


def proposed(found: Sequence[Variant], room: Room) -> Variant | None:
    """The quantization to take where nobody says: the first by preference that fits now, else once others have left."""
    for wanted in ("yes", "unloading"):
        fitting = [variant for variant in found if room.fit(variant.size) == wanted]
        if fitting:
            return min(fitting, key=lambda variant: (rank(variant.quantization), variant.size))
    return None


def asked(found: Sequence[Variant], reference: Reference) -> Variant | None:
    """The variant that the name itself says, by quantization or path; None where it leaves that open.

    NotFound, InvalidRequest where several fit.
    """
    if reference.path:
        inside = [v for v in found if any(_is_under(file.path, reference.path) for file in v.files)]
        if not inside:
            raise NotFound(
                f"There is no GGUF file at {reference.path} in {reference.name}.", hint=_there(found), param="model"
            )
        if len(inside) == 1 and reference.quantization is None:
            return inside[0]
        found = inside
    if reference.quantization is None:
        return None
    names = matching(reference.quantization, [variant.quantization for variant in found])
    if len(names) == 1:
        return next(variant for variant in found if variant.quantization == names[0])
    if names:
        raise InvalidRequest(
            f"'{reference.quantization}' could mean any of: {', '.join(names)}.",
            hint=f"For example: {reference.name}@{names[0].lower()}",
            param="quantization",
        )
    raise NotFound(f"{reference.name} has no quantization '{reference.quantization}'.", hint=_there(found))


def choose(found: Sequence[Variant], reference: Reference, room: Room) -> Variant:
    """What to fetch: what the name says, else the only one, else the one proposed. Raises where there is none."""
    if not found:
        raise nothing_to_fetch(reference.name)
    if variant := asked(found, reference):
        return variant
    if reference.path:
        found = [v for v in found if any(_is_under(file.path, reference.path) for file in v.files)]
    if len(found) == 1:
        return found[0]
    if variant := proposed(found, room):
        return variant
    least = found[0]
    raise InsufficientMemory(
        f"No quantization of {reference.name} fits this machine: the least, {least.quantization}, "
        f"has {least.size / 2**30:.1f} GiB, and {room.capacity / 2**30:.1f} GiB of memory are there for models.",
        hint=f"To fetch one nevertheless, name it: {reference.name}@{least.quantization.lower()}",
    )


def nothing_to_fetch(name: str) -> NotFound:
    return NotFound(
        f"{name} holds no model that lmd knows: neither GGUF files nor an MLX model.",
        hint=f"Look for a conversion: lmctl get {name.partition('/')[2]}",
        param="model",
    )


def _is_under(file: str, path: str) -> bool:
    return file == path or file.startswith(f"{path.rstrip('/')}/")


def _there(found: Sequence[Variant]) -> str:
    return f"There are: {', '.join(variant.quantization for variant in found)}."
