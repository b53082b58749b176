"""Models: which files make one up, and the key that names it."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lmd.library.files import Broken, Found
from lmd.library.header import Header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_WORD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that can be loaded. Two models are the same when their key, files and header are."""

    key: str
    publisher: str
    """"" for a loose file, as is ``repo``."""
    repo: str
    stem: str
    """The file's name without its suffix and part number."""
    path: Path
    """What a worker opens: the file, or the first part of a split one."""
    parts: tuple[Path, ...]
    mmproj: Path | None
    """The vision part beside it."""
    header: Header
    """Of all parts together."""
    size: int
    """Bytes on disk, all parts."""
    mtime: float
    """Unix seconds; of the part that changed last."""
    format: Literal["gguf", "mlx"] = "gguf"
    """An MLX model is a directory (``path``); its header tells what config.json does, and no engine serves it."""

    @property
    def type(self) -> Literal["llm", "vlm", "embeddings"]:
        if self.header.is_embedding:
            return "embeddings"
        return "vlm" if self.mmproj else "llm"

    @property
    def context_length(self) -> int:
        """The trained one; 0 where the header does not say."""
        return self.header.context_length


def gather_models(files: Sequence[tuple[Found, Header | str]]) -> tuple[dict[str, Model], list[Broken]]:
    """The models that ``files`` make up, by key in the order of keys, and the files that make up none. Pure.

    A file comes with its header, or with the reason why it has none.
    """
    broken = [Broken(file.path, header, file.size) for file, header in files if isinstance(header, str)]
    groups: dict[tuple[Path, str, int], list[tuple[Found, Header | str]]] = defaultdict(list)
    projectors: list[Found] = []
    for file, header in files:
        if isinstance(header, Header):
            if header.is_mmproj:
                projectors.append(file)
                continue
            if reason := _why_not_a_model(header):
                broken.append(Broken(file.path, reason, file.size))
                continue
        groups[file.path.parent, *split_name(file.path)].append((file, header))
    models: list[tuple[Model, tuple[str, ...]]] = []
    for (_, stem, count), members in groups.items():
        whole = [(file, header) for file, header in members if isinstance(header, Header)]
        if len(whole) < len(members):
            # The bad part is told already; its sisters cannot be served without it.
            bad = next(file.path.name for file, header in members if isinstance(header, str))
            broken += [
                Broken(file.path, f"part {bad} of the same model cannot be read", file.size) for file, _ in whole
            ]
        elif reason := _why_not_whole(stem, count, whole):
            broken.append(Broken(whole[0][0].path, reason, sum(file.size for file, _ in whole)))
        else:
            models.append((_model(stem, whole, projectors), whole[0][0].place))
    return _with_keys(models, broken), broken


def split_name(path: Path) -> tuple[str, int]:
    """The stem of a file without its part number, and how many parts the name tells of; 0: it is no part."""
    match = _PART.fullmatch(path.stem)
    return (match["stem"], int(match["count"])) if match else (path.stem, 0)


def _why_not_a_model(header: Header) -> str:
    if header.kind != "model":
        return f"it is no model by itself but of the type '{header.kind}'"
    if not header.architecture and not header.split_count:
        return "its header names no architecture"
    if not header.n_tensors and not header.split_count:
        return "it holds a vocabulary and no tensors"
    return ""


def _why_not_whole(stem: str, count: int, members: Sequence[tuple[Found, Header]]) -> str:
    """Why these files, all there are of a model of ``count`` parts, are not all of it; "" if they are."""
    if not count:
        claimed = members[0][1].split_count
        return (
            f"it is one of {claimed} parts, but its name is not {stem}-00001-of-{claimed:05}.gguf"
            if claimed > 1
            else ""
        )
    names = {file.path.stem for file, _ in members}
    missing = [
        f"{stem}-{number:05}-of-{count:05}.gguf"
        for number in range(1, count + 1)
        if f"{stem}-{number:05}-of-{count:05}" not in names
    ]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        return f"{len(missing)} of its {count} parts are missing: {', '.join(missing[:4])}{more}"
    for number, (file, header) in enumerate(members):
        if count > 1 and (header.split_count, header.split_no) != (count, number):
            return (
                f"{file.path.name} says that it is part {header.split_no + 1} of {header.split_count}, "
                "other than its name"
            )
    return "" if members[0][1].architecture else "its first part names no architecture"


def _model(stem: str, members: Sequence[tuple[Found, Header]], projectors: Sequence[Found]) -> Model:
    files = [file for file, _ in members]
    headers = [header for _, header in members]
    place = files[0].place
    publisher, repo = place[:2] if len(place) > 2 else ("", "")
    return Model(
        key="",
        publisher=publisher,
        repo=repo,
        stem=stem,
        path=files[0].path,
        parts=tuple(file.path for file in files),
        mmproj=_projector(stem, files[0].path.parent, bool(repo), projectors),
        header=headers[0] if len(headers) == 1 else _joined(headers),
        size=sum(file.size for file in files),
        mtime=max(file.mtime_ns for file in files) / 1e9,
    )


def _joined(parts: Sequence[Header]) -> Header:
    """The header of a split model: metadata are in the first part, tensors in all."""
    blocks = max(len(part.block_bytes) for part in parts)
    return replace(
        parts[0],
        size=sum(part.size for part in parts),
        n_tensors=sum(part.n_tensors for part in parts),
        n_params=sum(part.n_params for part in parts),
        tensor_bytes=sum(part.tensor_bytes for part in parts),
        block_bytes=tuple(
            sum(part.block_bytes[n] for part in parts if n < len(part.block_bytes)) for n in range(blocks)
        ),
        quantization=next((part.quantization for part in parts if part.quantization), ""),
        has_output=any(part.has_output for part in parts),
    )


def _projector(stem: str, folder: Path, in_repo: bool, projectors: Sequence[Found]) -> Path | None:
    """The vision part for the model ``stem``: in its directory, and of its name among loose files; F16 first."""

    def rank(path: Path) -> tuple[int, str]:
        name = path.stem.lower()
        order = ("bf16", "f16", "q8_0", "f32")  # "bf16" first: it contains "f16"
        kind = next((one for one in order if one in name), "")
        return {"f16": 0, "bf16": 1, "q8_0": 2, "": 3, "f32": 4}[kind], name

    def is_of(path: Path) -> bool:
        words = _WORD.split(path.stem.lower().removeprefix("mmproj"))
        name = [word for word in words if word and word not in {"model", "mmproj", "f16", "bf16", "f32", "q8", "0"}]
        return bool(name) and "".join(name) in _WORD.sub("", stem.lower())

    near = [file.path for file in projectors if file.path.parent == folder]
    return min((path for path in near if in_repo or is_of(path)), key=rank, default=None)


def _with_keys(found: Sequence[tuple[Model, tuple[str, ...]]], broken: list[Broken]) -> dict[str, Model]:
    """The models by their keys. ``found`` has each with its place below its model directory; none is served twice."""
    places: dict[tuple[str, ...], Model] = {}
    for model, place in found:
        if first := places.get(place):
            reason = f"{first.path} has the same place in an earlier model directory and is served instead"
            broken.append(Broken(model.path, reason, model.size))
        else:
            places[place] = model
    quantizations: dict[tuple[str, str], set[str]] = defaultdict(set)
    for model in places.values():
        quantizations[model.publisher, model.repo].add(model.header.quantization.lower())
    claimants: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for place, model in places.items():
        key = f"{model.publisher}/{model.repo}" if model.repo else model.stem
        if model.repo and model.header.quantization and len(quantizations[model.publisher, model.repo]) > 1:
            key += f"@{model.header.quantization.lower()}"
        claimants[key].append(place)
    keyed: dict[str, Model] = {}
    for key, rivals in claimants.items():
        for place in rivals:
            model, full = places[place], key
            if len(rivals) > 1:
                # The stem of a loose file is its key already; what tells then is the directory that it lies in.
                full = f"{key}/{model.stem}" if model.repo else "/".join((*place[:-1], model.stem))
                if full in keyed or (full != key and full in claimants):
                    full = "/".join(place)
            keyed[full] = replace(model, key=full)
    return dict(sorted(keyed.items(), key=lambda item: (item[0].casefold(), item[0])))
