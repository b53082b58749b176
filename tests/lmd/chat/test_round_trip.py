"""Round trip over the chat templates that llama.cpp ships: what is rendered is read back, however it is cut.

`SHOWN` says what each template's rendering holds of nine turns (`TURNS`): ``R`` reasoning, ``T`` text, the number of
calls; ``no``: the template refuses. What a template leaves out cannot come back; what it shows must.
"""

import json
import random
from pathlib import Path

import pytest

from lmd.chat.dialogue import Dialogue
from lmd.chat.formats import Style
from lmd.errors import TemplateError
from lmd.generation import Message
from tests.lmd.chat.conftest import ROOT
from tests.lmd.chat.turns import (
    ARGUMENTS,
    REASONING,
    TEXT,
    Part,
    Rendering,
    message,
    random_split,
    read,
    two_way_splits,
    without_ids,
)

TURNS = (
    message(text=True),
    message(reasoning=True, text=True),
    message(calls=1),
    message(text=True, calls=1),
    message(calls=2),
    message(text=True, calls=2),
    message(reasoning=True, calls=1),
    message(reasoning=True, calls=2),
    message(reasoning=True, text=True, calls=2),
)

SHOWN = {
    "Apertus-8B-Instruct": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "Apriel-1.6-15b-Thinker-fixed": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Bielik-11B-v3.0-Instruct": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "ByteDance-Seed-OSS": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Cohere2MoE": "-T0 RT0 --1 --1 --2 --2 R-1 R-2 R-2",
    "CohereForAI-c4ai-command-r-plus-tool_use": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "-T0 -T0 --1 --1 --2 --2 R-1 R-2 R-2",
    "GLM-4.6": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "GLM-4.7-Flash": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "GigaChat3-10B-A1.8B": "-T0 -T0 --1 -T1 --1 -T1 --1 --1 -T1",
    "GigaChat3.1-10B-A1.8B": "-T0 -T0 --1 -T1 --1 -T1 --1 --1 -T1",
    "HuggingFaceTB-SmolLM3-3B": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "Kimi-K2-Instruct": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "Kimi-K2-Thinking": "-T0 -T0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Kimi-K3": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "LFM2-8B-A1B": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "LFM2.5-8B-A1B": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "LFM2.5-Instruct": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "MiMo-VL": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "MiniMax-M1": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "MiniMax-M2": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "MiniMax-M3": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Mistral-Small-3.2-24B-Instruct-2506": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "NVIDIA-Nemotron-Nano-v2": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "Qwen-QwQ-32B": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "Qwen-Qwen2.5-7B-Instruct": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "Qwen-Qwen3-0.6B": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Qwen3-Coder": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "Qwen3.5-4B": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Reka-Edge": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "Spark2.5": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "StepFun3.5-Flash": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "deepseek-ai-DeepSeek-V3.1": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "deepseek-ai-DeepSeek-V3.2": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "deepseek-ai-DeepSeek-V4": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "fireworks-ai-llama-3-firefunction-v2": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "google-gemma-2-2b-it": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "google-gemma-4-31B-it-interleaved": "-T0 -T0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "google-gemma-4-31B-it": "-T0 -T0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "ibm-granite-granite-3.3-2B-Instruct": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "ibm-granite-granite-4.0": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "ibm-granite-granite-4.1": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "inclusionai-ling-3.0-flash": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "llama-cpp-deepseek-r1": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "llama-cpp-rwkv-world": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "meetkai-functionary-medium-v3.1": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "meetkai-functionary-medium-v3.2": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "meta-llama-Llama-3.1-8B-Instruct": "-T0 -T0 --1 --1 no no --1 no no",
    "meta-llama-Llama-3.2-3B-Instruct": "-T0 -T0 --1 --1 no no --1 no no",
    "meta-llama-Llama-3.3-70B-Instruct": "-T0 -T0 --1 --1 no no --1 no no",
    "microsoft-Phi-3.5-mini-instruct": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "mistralai-Ministral-3-14B-Reasoning-2512": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "mistralai-Mistral-Nemo-Instruct-2407": "-T0 -T0 --1 --1 --2 --2 --1 --2 --2",
    "moonshotai-Kimi-K2": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "muse-glimmer": "-T0 RT0 --1 --1 --2 --2 R-1 R-2 R-2",
    "openai-gpt-oss-120b": "-T0 RT0 --1 -T1 --1 -T1 R-1 R-1 no",
    "openbmb-MiniCPM5-1B": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "poolside-Laguna-S-2.1": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "poolside-Laguna-XS-2.1": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "poolside-Laguna-XS.2": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "tencent-Hy3": "-T0 RT0 --1 -T1 --2 -T2 R-1 R-2 RT2",
    "unsloth-Apriel-1.5": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "unsloth-mistral-Devstral-Small-2507": "-T0 -T0 --1 -T1 --2 -T2 --1 --2 -T2",
    "upstage-Solar-Open-100B": "-T0 RT0 --1 --1 --2 --2 R-1 R-2 R-2",
}

#: A last turn is rendered as the continuation of an open reasoning block, so a user's message has to follow.
FOLLOWED = {"NVIDIA-Nemotron-Nano-v2"}
#: Text beside a call is written into the channel for reasoning, so that is where it comes back.
TEXT_AS_REASONING = {"openai-gpt-oss-120b"}
#: The template shows no calls: lmd writes them back in the format that the model was trained on,
KNOWN_BY_NAME = {
    "HuggingFaceTB-SmolLM3-3B": "smollm3",
    "LFM2-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2.5",
    "ibm-granite-granite-3.3-2B-Instruct": "granite-3.3",
}
#: or in the default one, where the model was trained on none.
DEFAULT_FORMAT = {"google-gemma-2-2b-it", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"}


DOCUMENT = (ROOT / "docs/formats.md").read_text()


def rendering(directory: Path, name: str) -> Rendering:
    return Rendering((directory / f"{name}.jinja").read_text(), followed=name in FOLLOWED)


def expected(name: str, shown: str, turn: Message) -> tuple[str, str, list[tuple[str, object, bool]]]:
    reasoning = REASONING if shown[0] == "R" else ""
    text = TEXT if shown[1] == "T" else ""
    if name in TEXT_AS_REASONING and turn.tool_calls and text:
        reasoning, text = text, ""
    calls = [(call.name, json.loads(call.arguments), True) for call in turn.tool_calls[: int(shown[2])]]
    return reasoning, text, calls


def parts(directory: Path, name: str) -> list[tuple[str, Message, Part]]:
    found = []
    model = rendering(directory, name)
    for shown, turn in zip(SHOWN[name].split(), TURNS, strict=True):
        if shown == "no":
            with pytest.raises(TemplateError):
                model.part(turn)
            continue
        part = model.part(turn)
        assert part.shows(turn) == shown
        found.append((shown, turn, part))
    return found


def test_every_shipped_template_has_a_row(shipped_templates: Path) -> None:
    assert {path.stem for path in shipped_templates.glob("*.jinja")} == set(SHOWN)


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_a_template_shows_comes_back_whole_and_in_characters(shipped_templates: Path, name: str) -> None:
    for shown, turn, part in parts(shipped_templates, name):
        whole = without_ids(read(part.parser(), [part.text]))
        assert whole.values == expected(name, shown, turn)
        assert without_ids(read(part.parser(), part.text)) == whole
        assert without_ids(read(part.parser(constrained=True), part.text)) == whole


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_no_two_way_split_changes_what_comes_back(shipped_templates: Path, name: str) -> None:
    # A template that leaves something out writes several of the turns alike.
    for part in dict.fromkeys(part for _, _, part in parts(shipped_templates, name)):
        whole = without_ids(read(part.parser(), [part.text]))
        for pieces in two_way_splits(part.text):
            assert without_ids(read(part.parser(), pieces)) == whole, pieces


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_no_random_split_changes_what_comes_back(shipped_templates: Path, name: str) -> None:
    rng = random.Random(name)
    for _, _, part in parts(shipped_templates, name):
        for constrained in (False, True):
            whole = without_ids(read(part.parser(constrained=constrained), [part.text]))
            for _ in range(6):
                pieces = random_split(part.text, rng)
                assert without_ids(read(part.parser(constrained=constrained), pieces)) == whole, pieces


def test_the_counts_of_the_documentation_hold() -> None:
    own = [row.split() for name, row in SHOWN.items() if name not in KNOWN_BY_NAME and name not in DEFAULT_FORMAT]
    counts = (
        sum(any(shown[-1] in "12" for shown in row) for row in own),
        sum(any(shown[-1] == "2" for shown in row) for row in own),
        sum(any(shown[0] == "R" and shown[-1] in "12" for shown in row) for row in own),
    )
    rows = ("a tool call", "two calls in one turn", "reasoning beside a call")
    for what, plain, count in zip(rows, (58, 52, 27), counts, strict=True):
        assert f"| show {what} | {plain} | {count} | {count} |" in DOCUMENT


def test_what_a_template_leaves_out_is_told_by_name() -> None:
    short = set()
    for name, row in SHOWN.items():
        reasons = "R" in row
        whole = " ".join(
            ("R" if turn.reasoning and reasons else "-") + ("T" if turn.text else "-") + str(len(turn.tool_calls))
            for turn in TURNS
        )
        if row != whole:
            short.add(name)
    told = DOCUMENT[DOCUMENT.index("What does not come back") : DOCUMENT.index("## Default tool format")]
    assert short
    assert {name for name in short if f"`{name}`" not in told} == set()


@pytest.mark.parametrize(("name", "override"), sorted(KNOWN_BY_NAME.items()))
def test_models_whose_templates_show_no_calls_are_known_by_name(
    shipped_templates: Path, name: str, override: str
) -> None:
    assert rendering(shipped_templates, name).format.override == override


@pytest.mark.parametrize("name", sorted(DEFAULT_FORMAT))
def test_models_without_tools_get_the_default_format(shipped_templates: Path, name: str) -> None:
    dialogue = Dialogue.of({"chat_template": (shipped_templates / f"{name}.jinja").read_text()})
    assert not dialogue.capabilities.tool_use
    assert rendering(shipped_templates, name).format.override == "default"


def test_most_formats_are_derived_and_not_listed(shipped_templates: Path) -> None:
    formats = [rendering(shipped_templates, name).format for name in SHOWN]
    assert sum(not format_.override for format_ in formats) >= 50
    assert {format_.style for format_ in formats} == set(Style) - {Style.NONE}


def test_arguments_are_as_varied_as_the_round_trip_claims() -> None:
    text = json.dumps(ARGUMENTS, ensure_ascii=False)
    assert all(piece in text for piece in ('\\"', "\\n", "日本", "'", "[1, true]"))
