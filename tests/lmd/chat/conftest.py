"""The chat templates that llama.cpp ships, and turns to send through them."""

from pathlib import Path

import pytest

from lmd.chat.template import ChatTemplate
from tests.bench.llama_source import SourceMissing, find

ROOT = Path(__file__).parents[3]


def templates_directory() -> Path | None:
    """Where the 70 templates are; None where the source distribution is not here (nothing is fetched for it)."""
    try:
        source = find()
    except SourceMissing:
        return None
    directory = source / "vendor/llama.cpp/models/templates" if source is not None else None
    return directory if directory is not None and directory.is_dir() else None


@pytest.fixture(scope="session")
def shipped_templates() -> Path:
    directory = templates_directory()
    if directory is None:
        pytest.skip("llama-cpp-python's source distribution is not in the cache: python -m tests.bench.llama_source")
    return directory


@pytest.fixture(scope="session")
def tiny_template() -> str:
    return (ROOT / "tests/models/template.jinja").read_text()


@pytest.fixture
def chatml() -> ChatTemplate:
    return ChatTemplate.chatml()
