"""The ways in which editors and deployments write a configuration file."""

import shutil
import tempfile
from pathlib import Path


def truncate_and_write(path: Path, text: str) -> None:
    path.write_text(text)


def rename_over(path: Path, text: str) -> None:
    other = path.with_name(f"{path.name}.tmp123")
    other.write_text(text)
    other.replace(path)


def backup_and_rename(path: Path, text: str) -> None:
    """As vim with backupcopy=no: the old file moves aside, a swap file lives beside, the new one takes the name."""
    swap = path.with_name(f".{path.name}.swp")
    swap.write_bytes(b"b0VIM 9.0")
    path.rename(path.with_name(f"{path.name}~"))
    path.write_text(text)
    path.with_name(f"{path.name}~").unlink()
    swap.unlink()


def remove_and_create(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def write_in_pieces(path: Path, text: str) -> None:
    with path.open("w") as file:
        for char in text:
            file.write(char)
            file.flush()


def publish(path: Path, text: str) -> None:
    """As the kubelet does with a ConfigMap: the file links to ``..data/``, which links to a version's directory."""
    version = Path(tempfile.mkdtemp(prefix="..", dir=path.parent))
    (version / path.name).write_text(text)
    data = path.with_name("..data")
    before = data.resolve() if data.is_symlink() else None
    path.with_name("..data_tmp").symlink_to(version.name)
    path.with_name("..data_tmp").replace(data)
    if not path.is_symlink():
        path.with_name("..link").symlink_to(f"{data.name}/{path.name}")
        path.with_name("..link").replace(path)
    if before is not None:
        shutil.rmtree(before)


SAVES = [truncate_and_write, rename_over, backup_and_rename, remove_and_create, write_in_pieces, publish]
