"""Reads the header of a GGUF file, versions 2 and 3, within bounds.

The format is specified in ggml's docs/gguf.md; the limits on names, dimensions and alignment are ggml's own. Whatever
a file claims, reading it takes at most MAX_HEADER bytes of input, a few times MAX_KEPT_BYTES of memory and about a
second, and a claim that the file's size refutes is found before it is acted on. Files are read with ``pread`` and never
mapped: a mapped file that shrinks (a download starting anew) would kill the daemon with SIGBUS.
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import ClassVar

from lmd.errors import ModelFileError
from lmd.library.header import Header, Scalar
from lmd.library.tensors import Tensors, quantization_name

__all__ = ["Header", "read_header", "read_tokens"]

MAX_HEADER = 256 << 20
"""Metadata and tensor list together. A vocabulary of 262 k tokens with its merges takes some 20 MiB."""
MAX_KEYS = 1 << 12
MAX_KEY = 1 << 16
MAX_STRING = 1 << 20
"""Longer strings are stepped over, and counted in `Header.lengths`. Chat templates reach some 30 KiB."""
MAX_KEPT_BYTES = 8 << 20
"""Of all keys, names and values together."""
MAX_KEPT = 512
"""Elements of an array that is kept: per-layer facts are, vocabularies are not."""
MAX_STRINGS = 1 << 22
"""Strings in all arrays of a file together."""
MAX_TENSORS = 1 << 17
MAX_NAME = 64

_WINDOW = 128 << 10
_FEW_STRINGS = 400_000
"""So many (a vocabulary, with its merges) are stepped over singly in a process's life before numpy comes in, which is
faster by far: it takes as long to import, and 7 MiB. Headers are kept: most daemons come by with what is new."""

_U32 = Struct("<I")
_U64 = Struct("<Q")
_COUNTS = Struct("<QQ")
_ARRAY = Struct("<IQ")
_TENSORS = tuple(Struct(f"<{n}QIQ") for n in range(5))
"""Dimensions, type and offset of a tensor with n dimensions."""
_LONGEST_TENSOR = 12 + MAX_NAME + _TENSORS[-1].size

_STRING_TYPE, _ARRAY_TYPE, _BOOL_TYPE = 8, 9, 7
#: Value types of fixed size, by their number in the format.
_SCALARS = {number: Struct("<" + code) for number, code in enumerate("BbHhIif?") if number != _BOOL_TYPE}
_SCALARS |= {_BOOL_TYPE: Struct("<?"), 10: Struct("<Q"), 11: Struct("<q"), 12: Struct("<d")}

_FOREIGN = {
    b"ggml": "a GGML file, older than GGUF",
    b"lmgg": "a GGML file, older than GGUF",
    b"tjgg": "a GGJT file, older than GGUF",
    b"fmgg": "a GGMF file, older than GGUF",
    b"PK\x03\x04": "a zip archive",
    b"vers": "a Git LFS pointer; the model itself was not downloaded",
    b"<!DO": "a web page; the download went wrong",
    b"<htm": "a web page; the download went wrong",
}


class _Bad(Exception):
    """Why the file cannot be read, without its name."""


class _Reader:
    """A position in a file of known size, and the window of it that is in memory."""

    n_walked: ClassVar[int] = 0
    """Strings that this process has stepped over singly."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.pos = 0
        self.data = b""
        self.start = 0
        """Where ``data`` begins in the file."""
        self.bytes_left = MAX_KEPT_BYTES
        self.strings_left = MAX_STRINGS

    def ensure(self, n: int) -> int:
        """Have the ``n`` bytes at `pos` in ``data``; returns where in ``data`` they are."""
        at = self.pos - self.start
        if at >= 0 and at + n <= len(self.data):
            return at
        self.check(n)
        self.data = os.pread(self.fd, max(n, _WINDOW), self.pos)
        self.start = self.pos
        if len(self.data) < n:
            raise _Bad(f"it was cut to {self.pos + len(self.data)} bytes while being read")
        return 0

    def check(self, n: int) -> None:
        if n > self.size - self.pos:
            raise _Bad(f"its header claims {n} bytes at offset {self.pos}, but the file has only {self.size}")
        if self.pos + n > MAX_HEADER:
            raise _Bad(f"its header is longer than {MAX_HEADER >> 20} MiB")

    def skip(self, n: int) -> None:
        self.check(n)
        self.pos += n

    def unpack(self, form: Struct) -> tuple[int, ...]:
        at = self.ensure(form.size)
        self.pos += form.size
        return form.unpack_from(self.data, at)

    def raw(self, n: int) -> bytes:
        """``n`` bytes that the caller keeps in some form."""
        self.bytes_left -= n
        if self.bytes_left < 0:
            raise _Bad(f"its header, vocabulary aside, is more than {MAX_KEPT_BYTES >> 20} MiB")
        at = self.ensure(n)
        self.pos += n
        return self.data[at : at + n]

    def string(self, limit: int, what: str) -> str:
        """A string of at most ``limit`` bytes."""
        (n,) = self.unpack(_U64)
        if n > limit:
            raise _Bad(f"{what} is {n} bytes long, more than {limit}")
        return _text(self.raw(n), what)

    def skip_strings(self, count: int) -> None:
        """Step over ``count`` strings."""
        self.strings_left -= count
        if self.strings_left < 0:
            raise _Bad(f"its arrays claim more than {MAX_STRINGS} strings")
        if _Reader.n_walked < _FEW_STRINGS:
            _Reader.n_walked += count
            self._walk_strings(count)
            return
        patience = 64
        while count > 0:
            if count > patience:
                from lmd.library.strings import proven_strings

                at = self.ensure(min(_WINDOW, self.size - self.pos))
                proven, end = proven_strings(self.data[at:], count)
                self.pos += end
                count -= proven
                if proven > patience:
                    continue
                # Text unlike the usual: walk singly, and ever longer, so that failed attempts stay few.
                patience *= 2
            singly = min(count, patience)
            self._walk_strings(singly)
            count -= singly

    def _walk_strings(self, count: int) -> None:
        unpack = _U64.unpack_from
        while count > 0:
            at = self.ensure(8)
            data, last = self.data, len(self.data) - 8
            for left in range(count - 1, -1, -1):  # noqa: B007 -- read after the loop
                at += 8 + unpack(data, at)[0]
                if at > last:
                    break
            count = left
            self.skip(self.start + at - self.pos)


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise _Bad(f"{what} is not UTF-8 text") from exc


@contextmanager
def _opened(path: Path) -> Iterator[_Reader]:
    """The file at ``path``; what goes wrong with it becomes ModelFileError with its name."""
    fd = -1
    try:
        # Without O_NONBLOCK, opening a pipe named like a model would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _Bad("it is not a regular file")
        yield _Reader(fd, status.st_size)
    except _Bad as exc:
        raise ModelFileError(f"{path} is not a usable GGUF file: {exc}.") from exc.__cause__
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise ModelFileError(f"{path} cannot be read: {reason}.") from exc
    finally:
        if fd >= 0:
            os.close(fd)


def read_header(path: Path) -> Header:
    """The header of the GGUF file at ``path``, checked against the file's size.

    Blocks for a few ms. Raises ModelFileError, with the reason, for anything that is not a whole GGUF file, and
    nothing else.
    """
    with _opened(path) as reader:
        version, n_tensors, n_keys = _preamble(reader)
        values, lengths = _metadata(reader, n_keys)
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise _Bad(f"general.alignment is {alignment!r}, not a power of two")
        tensors = _tensors(reader, n_tensors, alignment)
        data_offset = -(-reader.pos // alignment) * alignment
        if data_offset + tensors.end > reader.size:
            raise _Bad(
                f"its tensors end at byte {data_offset + tensors.end}, but the file has {reader.size}: "
                "the download or copy is incomplete"
            )
        file_type = values.get("general.file_type")
        return Header(
            version=version,
            size=reader.size,
            data_offset=data_offset,
            n_tensors=n_tensors,
            n_params=tensors.n_params,
            tensor_bytes=tensors.n_bytes,
            block_bytes=tensors.block_bytes,
            quantization=quantization_name(file_type if isinstance(file_type, int) else None, tensors.type_bytes),
            has_output="output.weight" in tensors.names,
            values=values,
            lengths=lengths,
        )


def read_tokens(path: Path, ids: set[int]) -> dict[int, str]:
    """The texts of vocabulary entries ``ids``, as the file has them (not decoded); ids out of range are left out.

    Blocks for a few ms; raises ModelFileError.
    """
    with _opened(path) as reader:
        _, _, n_keys = _preamble(reader)
        for _ in range(n_keys):
            key = reader.string(MAX_KEY, "a key")
            (kind,) = reader.unpack(_U32)
            if key != "tokenizer.ggml.tokens" or kind != _ARRAY_TYPE:
                _value(reader, key, kind)
                continue
            texts: dict[int, str] = {}
            next_id = 0
            count = _array(reader, key)[1]
            for token in sorted(token for token in ids if 0 <= token < count):
                reader.skip_strings(token - next_id)
                texts[token] = reader.string(MAX_STRING, f"token {token}")
                next_id = token + 1
            return texts
    return {}


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata keys."""
    if reader.size == 0:
        raise _Bad("it is empty")
    magic = reader.raw(min(4, reader.size))
    if magic != b"GGUF":
        raise _Bad(f"it is {_FOREIGN.get(magic) or f'no GGUF file (it begins with {magic!r})'}")
    (version,) = reader.unpack(_U32)
    if version & 0xFFFF == 0 and version:
        raise _Bad("it is big-endian, and llama.cpp reads only little-endian files on this machine")
    if version not in (2, 3):
        raise _Bad(f"its GGUF version is {version}; 2 and 3 can be read")
    n_tensors, n_keys = reader.unpack(_COUNTS)
    for what, count, limit, shortest in (
        ("metadata keys", n_keys, MAX_KEYS, 13),  # no name, a value of one byte
        ("tensors", n_tensors, MAX_TENSORS, 24),  # no name, no dimensions
    ):
        if count > limit or count * shortest > reader.size:
            raise _Bad(f"it claims {count} {what} in {reader.size} bytes")
    return version, n_tensors, n_keys


def _metadata(reader: _Reader, n_keys: int) -> tuple[dict[str, Scalar | list[Scalar]], dict[str, int]]:
    values: dict[str, Scalar | list[Scalar]] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_keys):
        key = reader.string(MAX_KEY, "a key")
        if key in values or key in lengths:
            raise _Bad(f"key '{key}' appears twice")
        (kind,) = reader.unpack(_U32)
        value, length = _value(reader, key, kind)
        if length is not None:
            lengths[key] = length
        if value is not None:
            values[key] = value
    return values, lengths


def _value(reader: _Reader, key: str, kind: int) -> tuple[Scalar | list[Scalar] | None, int | None]:
    """The value at the position, if it is worth keeping, and its length, if it is an array or too long a string."""
    if kind == _STRING_TYPE:
        (n,) = reader.unpack(_U64)
        if n > MAX_STRING:
            reader.skip(n)
            return None, n
        return _text(reader.raw(n), f"the value of '{key}'"), None
    if kind == _ARRAY_TYPE:
        element, count = _array(reader, key)
        if element == _STRING_TYPE:
            if count > MAX_KEPT or key.startswith("tokenizer.ggml."):
                reader.skip_strings(count)
                return None, count
            return [reader.string(MAX_STRING, f"an element of '{key}'") for _ in range(count)], count
        form = _SCALARS[element]
        reader.check(count * form.size)
        if count > MAX_KEPT:
            reader.skip(count * form.size)
            return None, count
        return [item for (item,) in form.iter_unpack(reader.raw(count * form.size))], count
    if kind not in _SCALARS:
        raise _Bad(f"key '{key}' has the unknown type {kind}")
    return reader.unpack(_SCALARS[kind])[0], None


def _array(reader: _Reader, key: str) -> tuple[int, int]:
    """Element type and count of the array at the position, which is then at its first element."""
    element, count = reader.unpack(_ARRAY)
    if element != _STRING_TYPE and element not in _SCALARS:
        raise _Bad(f"'{key}' is an array of the {'nested' if element == _ARRAY_TYPE else 'unknown'} type {element}")
    reader.check(count * (8 if element == _STRING_TYPE else _SCALARS[element].size))
    return element, count


def _tensors(reader: _Reader, count: int, alignment: int) -> Tensors:
    tensors = Tensors(alignment)
    for _ in range(count):
        at = reader.ensure(min(_LONGEST_TENSOR, reader.size - reader.pos))
        data = reader.data
        try:
            (length,) = _U64.unpack_from(data, at)
            if length > MAX_NAME:
                raise _Bad(f"a tensor's name is {length} bytes long, more than {MAX_NAME}")
            name = _text(data[at + 8 : at + 8 + length], "a tensor's name")
            (n_dims,) = _U32.unpack_from(data, at + 8 + length)
            if n_dims >= len(_TENSORS):
                raise _Bad(f"tensor '{name}' has {n_dims} dimensions, more than {len(_TENSORS) - 1}")
            *shape, kind, offset = _TENSORS[n_dims].unpack_from(data, at + 12 + length)
            tensors.add(name, shape, kind, offset)
        except struct.error as exc:
            raise _Bad(f"its list of tensors, {count} of them, is cut off") from exc
        except ValueError as exc:
            raise _Bad(str(exc)) from exc
        reader.pos += 12 + length + _TENSORS[n_dims].size
    return tensors
