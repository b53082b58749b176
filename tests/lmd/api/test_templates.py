"""Whose template a model gets, and what a template's refusal is in every dialect."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MODELS, Daemon, StartDaemon
from tests.lmd.api.wire import ask

RAISES = """\
{% for message in messages %}
{% if 'politics' in message.content %}{{ raise_exception('This model talks about gardens only.') }}{% endif %}
{% if 'for ever' in message.content %}
{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{% endif %}
{{ message.role }}: {{ message.content }}
{% endfor %}
"""
REFUSED = "The model's chat template refused the conversation: This model talks about gardens only."
DIALECTS = ("/v1/chat/completions", "/api/v0/chat/completions", "/v1/messages", "/api/v1/chat", "/apply-template")


@pytest.fixture(scope="module")
def lmd(start_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory: Path = tmp_path_factory.mktemp("templates")
    file = directory / "gardens.jinja"
    file.write_text(RAISES)
    bare = directory / "bare.gguf"
    named, unnamed = b"tokenizer.chat_template", b"tokenizer.chat_tempIate"
    bare.write_bytes((MODELS / "tiny-chat.gguf").read_bytes().replace(named, unnamed))
    presets = {
        name: f'model = "{model}"\n[chat]\ntemplate_file = "{file}"\n'
        for name, model in (("gardens", "tiny-chat"), ("dressed", "bare"))
    }
    daemon = start_daemon(presets=presets, models=[MODELS / "tiny-chat.gguf", bare])
    yield daemon
    daemon.stop()


def body(path: str, text: str, **more: Any) -> dict[str, Any]:
    said = {"input": text} if path == "/api/v1/chat" else {"messages": [{"role": "user", "content": text}]}
    limit = {"max_output_tokens": 4} if path == "/api/v1/chat" else {"max_tokens": 4}
    return {"model": "gardens", **said, **limit, **more}


def test_a_model_without_a_template_gets_chatml_and_the_list_says_so(lmd: Daemon) -> None:
    listed = {one["id"]: one["template"] for one in json.loads(ask(lmd.url, "GET", "/v1/models")[1])["data"]}
    assert listed == {"tiny-chat": "own", "gardens": "own", "bare": "chatml", "dressed": "own"}
    assert json.loads(ask(lmd.url, "GET", "/v1/models/bare")[1])["template"] == "chatml"
    said = {"model": "bare", "messages": [{"role": "user", "content": "Hello"}]}
    prompt = json.loads(ask(lmd.url, "POST", "/apply-template", said)[1])["prompt"]
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert ask(lmd.url, "POST", "/v1/chat/completions", said | {"max_tokens": 4})[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
def test_a_template_that_raises_is_a_400_with_its_message(lmd: Daemon, path: str, stream: bool) -> None:
    status, text = ask(lmd.url, "POST", path, body(path, "Let us talk about politics.", stream=stream))
    error = json.loads(text)["error"]
    assert status == 400
    assert error["message"].removeprefix("messages: ") == REFUSED  # Anthropic's messages begin with the field
    if path.startswith(("/v1/chat", "/api/v0")):
        assert (error["code"], error["param"]) == ("template_error", "messages")
    assert ask(lmd.url, "POST", path, body(path, "Let us talk about roses."))[0] == 200


def test_a_template_without_end_is_a_400_and_holds_nobody_up(lmd: Daemon) -> None:
    status, text = ask(lmd.url, "POST", "/v1/chat/completions", body("", "Talk for ever."))
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (400, "template_error")
    assert "cut off" in error["message"]
