"""What a person may type to name a model on the hub."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.errors import InvalidRequest
from lmd.library.reference import Reference, is_safe_path, parse_reference


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("owner/repo", Reference("owner", "repo")),
        (" owner/repo ", Reference("owner", "repo")),
        ("owner/repo@q4_k_m", Reference("owner", "repo", quantization="q4_k_m")),
        ("owner/repo:Q8_0", Reference("owner", "repo", quantization="Q8_0")),
        ("owner/repo/sub/a.gguf", Reference("owner", "repo", path="sub/a.gguf")),
        ("hf.co/owner/repo:Q8_0", Reference("owner", "repo", quantization="Q8_0")),
        ("https://huggingface.co/owner/repo", Reference("owner", "repo")),
        ("https://huggingface.co/owner/repo/", Reference("owner", "repo")),
        ("https://huggingface.co/owner/repo@q4_0", Reference("owner", "repo", quantization="q4_0")),
        ("https://huggingface.co/owner/repo?show_file_info=a.gguf", Reference("owner", "repo", path="a.gguf")),
        ("https://huggingface.co/owner/repo/tree/main", Reference("owner", "repo")),
        ("https://huggingface.co/owner/repo/tree/v2/BF16", Reference("owner", "repo", "v2", "BF16")),
        ("https://huggingface.co/owner/repo/blob/main/a%20b.gguf", Reference("owner", "repo", path="a b.gguf")),
        ("https://hf.co/owner/repo/resolve/main/a.gguf?download=true", Reference("owner", "repo", path="a.gguf")),
        ("http://hub.local:8080/owner/repo", Reference("owner", "repo")),
    ],
)
def test_names_and_links(text: str, meant: Reference) -> None:
    assert parse_reference(text, "http://hub.local:8080") == meant


@pytest.mark.parametrize("text", ["deepseek-r1", "llama 3 instruct", "qwen@q4_k_m", ""])
def test_words_are_for_searching(text: str) -> None:
    assert parse_reference(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/owner/repo",
        "https://huggingface.co.evil.com/owner/repo",
        "ftp://huggingface.co/owner/repo",
        "https://huggingface.co/owner",
        "https://huggingface.co/datasets/owner/repo",
        "https://huggingface.co/owner/repo/discussions/3",
        "https://[::1/owner/repo",
        "owner/repo@",
        "owner/..",
        "owner/",
        "/",
        "../etc/passwd",
        "/etc/passwd",
        "owner/repo/../../x.gguf",
        "https://huggingface.co/owner/repo/blob/main/%2e%2e/x.gguf",
        "https://huggingface.co/owner/repo/blob/main/a%2f..%2f..%2fx",
        "owner/" + "x" * 200,
        "owner/re\x00po",
    ],
)
def test_what_leads_elsewhere_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_reference(text)
    assert caught.value.hint


@given(st.text(max_size=200))
def test_no_text_breaks_it_or_leads_out_of_the_repository(text: str) -> None:
    try:
        found = parse_reference(text)
    except InvalidRequest:
        return
    if found is not None:
        assert all(part not in ("", ".", "..") for part in (found.owner, found.repo))
        assert "/" not in found.owner + found.repo
        assert found.path == "" or is_safe_path(found.path)


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a\x00", "a\nb", "x" * 240])
def test_unsafe_paths(path: str) -> None:
    assert not is_safe_path(path)
