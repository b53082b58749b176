import os
import resource
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.errors import ModelFileError
from lmd.library import gguf
from lmd.library.gguf import read_header, read_tokens

TINY = Path(__file__).parents[2] / "models" / "tiny-chat.gguf"
Build = Callable[..., bytes]


@pytest.fixture(autouse=True, params=[0, 2**60], ids=["with numpy", "singly"])
def few_strings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings are stepped over in two ways, which must not differ."""
    monkeypatch.setattr(gguf, "_FEW_STRINGS", request.param)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_file(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write_file


# ── what a good file says ─────────────────────────────────────────────────────────────────────


def test_reads_the_bundled_model() -> None:
    header = read_header(TINY)
    assert (header.architecture, header.quantization, header.version) == ("llama", "F16", 3)
    assert header.n_params == 869504
    assert (header.context_length, header.block_count, header.embedding_length) == (8192, 4, 128)
    assert (header.head_count, header.head_count_kv, header.key_length, header.value_length) == (4, (2,) * 4, 32, 32)
    assert header.vocab_size == 1024
    assert "<|im_start|>" in header.chat_template
    assert not header.is_embedding
    assert len(header.block_bytes) == 4
    assert header.size == TINY.stat().st_size
    assert header.data_offset + header.tensor_bytes <= header.size
    eos = header.token_id("eos")
    assert eos is not None
    assert read_tokens(TINY, {eos, 10**9, -1}) == {eos: "<|im_end|>"}


def write_model(path: Path, tokens: list[str], merges: list[str]) -> None:
    writer = GGUFWriter(path, "qwen2")
    writer.add_file_type(15)
    writer.add_context_length(32768)
    writer.add_block_count(2)
    writer.add_head_count([4, 8])
    writer.add_head_count_kv([2, 0])
    writer.add_embedding_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}])
    writer.add_tensor("token_embd.weight", np.zeros((4, 64), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((8, 64), np.float16))
    writer.add_tensor("blk.1.ffn_up.weight", np.zeros((2, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_reads_what_stands_behind_a_vocabulary_of_152k_tokens_without_keeping_it(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    # 200 and 300 characters: lengths of one byte and of two, so that both ways of stepping are gone.
    tokens = [f"Ġ{n:x}" if n % 977 else "ß" * (100 + n % 200) for n in range(151_936)]
    write_model(path, tokens, [f"{n:o} {n}" for n in range(151_387)])
    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size
    assert header.lengths["tokenizer.ggml.tokens"] == header.vocab_size == 151_936
    assert header.lengths["tokenizer.ggml.merges"] == 151_387
    assert "tokenizer.ggml.tokens" not in header.values
    assert header.token_id("eos") == 151_935
    assert header.add_bos is False
    assert header.chat_templates == {"default": "plain", "tool_use": "with tools"}
    assert header.quantization == "Q4_K_M"
    assert header.head_count_kv == (2, 0)
    assert header.head_count == 8
    assert header.block_bytes == (1024, 256)
    assert not header.has_output
    assert read_tokens(path, {0, 977, 151_935}) == {n: tokens[n] for n in (0, 977, 151_935)}


@pytest.mark.parametrize(
    ("values", "is_embedding"),
    [
        ({"general.architecture": "bert"}, True),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, True),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 0}, False),
        ({"general.architecture": "llama"}, False),
    ],
)
def test_tells_embedding_models(gguf_bytes: Build, write: Callable, values: dict, is_embedding: bool) -> None:
    assert read_header(write(gguf_bytes(values))).is_embedding is is_embedding


def test_names_the_commonest_tensor_type_where_the_file_type_is_missing(gguf_bytes: Build, write: Callable) -> None:
    tensors = [("a", (32, 32), 8, 1088), ("b", (32,), 0, 128)]
    assert read_header(write(gguf_bytes({"general.architecture": "llama"}, tensors))).quantization == "Q8_0"


def test_reads_version_2(gguf_bytes: Build, write: Callable) -> None:
    assert read_header(write(gguf_bytes(version=2))).version == 2


def test_properties_survive_values_of_the_wrong_type(gguf_bytes: Build, write: Callable) -> None:
    values = {
        "general.architecture": "llama",
        "llama.context_length": "many",
        "llama.block_count": 4_000_000_000,
        "llama.attention.head_count": [],
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.eos_token_id": "x",
        "tokenizer.chat_template": 5,
    }
    values["llama.attention.head_count"] = struct.pack("<IIQ", 9, 4, 0)
    header = read_header(write(gguf_bytes(values)))
    assert (header.context_length, header.block_count, header.head_count_kv) == (0, 0, ())
    assert (header.key_length, header.token_id("eos"), header.chat_templates) == (0, None, {})


# ── what a bad file gets ──────────────────────────────────────────────────────────────────────

U64 = struct.Struct("<Q").pack


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GG", "no GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"tjgg" + bytes(40), "older than GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version is 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "claims 1152921504606846976 metadata keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + U64(1 << 62) + bytes(64), "a key is"),
    ],
)
def test_refuses_by_name_what_is_no_model(write: Callable, data: bytes, reason: str) -> None:
    path = write(data)
    with pytest.raises(ModelFileError, match=reason) as caught:
        read_header(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"k": struct.pack("<I", 8) + U64(1 << 63)}, "claims 9223372036854775808 bytes"),
        ({"k": struct.pack("<IIQ", 9, 8, 1 << 60)}, "claims"),
        ({"k": struct.pack("<IIQ", 9, 10, (1 << 64) - 1)}, "claims"),
        ({"k": struct.pack("<IIQ", 9, 9, 1)}, "nested"),
        ({"k": struct.pack("<IIQ", 9, 77, 1)}, "unknown type 77"),
        ({"k": struct.pack("<I", 13)}, "unknown type 13"),
        ({"k": struct.pack("<I", 8) + U64(2) + b"\xff\xfe"}, "the value of 'k' is not UTF-8"),
        ({"general.alignment": 0}, "power of two"),
        ({"general.alignment": 48}, "power of two"),
        ({"general.alignment": "x"}, "power of two"),
    ],
)
def test_refuses_lying_metadata(gguf_bytes: Build, write: Callable, values: dict, reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read_header(write(gguf_bytes({"general.architecture": "llama", **values})))


def test_refuses_a_key_that_appears_twice(gguf_bytes: Build, write: Callable) -> None:
    once = gguf_bytes({"general.name": "a"}, ())[24:]
    with pytest.raises(ModelFileError, match=r"'general.name' appears twice"):
        read_header(write(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + once[:33] + once[:33] + bytes(64)))


@pytest.mark.parametrize(
    ("tensors", "kwargs", "reason"),
    [
        ([("w", (32, 4), 8, 136), ("w", (32, 4), 8, 136)], {}, "appears twice"),
        ([("w", (32,), 99, 32)], {}, "unknown type 99"),
        ([("w", (31,), 8, 34)], {}, "not a multiple of 32"),
        ([("w", (1,) * 9, 0, 4)], {}, "9 dimensions"),
        ([("w" * 65, (1,), 0, 4)], {}, "65 bytes long"),
        ([("w", (1 << 40, 1 << 40), 0, 4)], {}, "claims the shape"),
        ([("w", (32,), 0, 128), ("v", (32,), 0, 128)], {"offsets": (0, 0)}, "where 128 was expected"),
        ([("w", (32,), 0, 128)], {"offsets": (1 << 62,)}, "where 0 was expected"),
        ([("w", (32, 1024), 0, 131072)], {"data": False}, "incomplete"),
    ],
)
def test_refuses_lying_tensors(gguf_bytes: Build, write: Callable, tensors: list, kwargs: dict, reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read_header(write(gguf_bytes(tensors=tensors, **kwargs)))


def test_every_truncation_is_refused(gguf_bytes: Build, write: Callable) -> None:
    data = gguf_bytes({"general.architecture": "llama", "tags": ["a", "b"], "n": [1, 2]})
    assert read_header(write(data)).n_tensors == 3
    for length in range(len(data) - 32):  # the last tensor's padding may be missing
        with pytest.raises(ModelFileError):
            read_header(write(data[:length]))


def test_a_sparse_file_of_a_terabyte_with_a_vocabulary_to_match_is_given_up_soon(
    gguf_bytes: Build, write: Callable
) -> None:
    path = write(gguf_bytes({"k": struct.pack("<IIQ", 9, 8, gguf.MAX_STRINGS) + U64(1 << 20)}))
    os.truncate(path, 1 << 40)
    with pytest.raises(ModelFileError):
        read_header(path)
    path = write(gguf_bytes({"k": struct.pack("<IIQ", 9, 8, 1 << 35)}))
    os.truncate(path, 1 << 40)
    with pytest.raises(ModelFileError, match="longer than"):
        read_header(path)


def test_the_memory_for_values_is_bounded(gguf_bytes: Build, write: Callable) -> None:
    megabyte = "x" * (1 << 20)
    values = {f"k{n}": megabyte for n in range(20)}
    with pytest.raises(ModelFileError, match="vocabulary aside"):
        read_header(write(gguf_bytes(values)))


def test_a_string_too_long_to_keep_is_counted(gguf_bytes: Build, write: Callable) -> None:
    header = read_header(write(gguf_bytes({"k": "x" * (gguf.MAX_STRING + 1), "after": 5})))
    assert header.lengths["k"] == gguf.MAX_STRING + 1
    assert header.values == {"after": 5}


def test_a_pipe_a_directory_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "dir.gguf").mkdir()
    for name, reason in (
        ("pipe.gguf", "regular"),
        ("dir.gguf", "regular"),
        ("no.gguf", "No such file"),
        ("\0", "null"),
    ):
        with pytest.raises(ModelFileError, match=reason):
            read_header(tmp_path / name)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(
    gguf_bytes: Build, write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(gguf_bytes({"k": "x" * 300_000, "j": "y"}))
    pread = os.pread

    def cut_then_read(fd: int, n: int, offset: int) -> bytes:
        os.truncate(path, 1000)
        return pread(fd, n, offset)

    monkeypatch.setattr(os, "pread", cut_then_read)
    with pytest.raises(ModelFileError, match="cut to 1000 bytes"):
        read_header(path)


GOOD = TINY.read_bytes()[:60_000]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_of_a_header_does_more_than_raise_model_file_error(
    data: st.DataObject, gguf_bytes: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "words": [f"w{n}" for n in range(200)],
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(900)],
        "layers": [1, 2, 3],
        "ok": True,
        "rope": 1.5,
    }
    good = bytearray(data.draw(st.sampled_from([gguf_bytes(values), GOOD])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(good), 20_000) - 1) | st.integers(0, len(good) - 1))
        patch = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from(
                [U64((1 << 64) - 1), U64(1 << 63), U64(1 << 32), U64(0), b"\xff" * 4, struct.pack("<I", 9)]
            )
        )
        if data.draw(st.booleans()):
            good[at : at + len(patch)] = patch
        else:
            good[at:at] = patch
    if data.draw(st.booleans()):
        del good[data.draw(st.integers(0, len(good))) :]
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(good)
    read = 0
    pread = os.pread

    def counted(fd: int, n: int, offset: int) -> bytes:
        nonlocal read
        got = pread(fd, n, offset)
        read += len(got)
        return got

    monkeypatch.setattr(os, "pread", counted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        header = read_header(path)
    except ModelFileError as exc:
        assert exc.message.endswith(".")
    else:
        assert header.tensor_bytes <= len(good)
        # Whoever reads the properties meets no surprise either.
        for name in dir(header):
            if not name.startswith("_"):
                getattr(header, name)
    finally:
        monkeypatch.setattr(os, "pread", pread)
    assert read <= 40 * len(good) + (1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
