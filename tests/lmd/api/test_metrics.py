"""``/metrics``, as Prometheus reads it, and the dashboard that is drawn of it."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmd.api.activity import RequestRecord
from lmd.api.metrics import MOST_MODELS, Metrics, PieceTimes, dialect_of
from lmd.generation import Usage
from tests.conftest import Daemon, StartDaemon

LMCTL = Path(sys.executable).with_name("lmctl")
ROOT = Path(__file__).parents[3]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def ask(daemon: Daemon, method: str, path: str, body: Any = None) -> bytes:
    parts = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    said = connection.getresponse().read()
    connection.close()
    return said


def lmctl(daemon: Daemon, *args: str) -> str:
    env = {**os.environ, "LMD_SOCKET": str(daemon.socket)}
    return subprocess.run([LMCTL, *args], env=env, capture_output=True, text=True, check=True).stdout


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(daemon: Daemon) -> Samples:
    return samples(ask(daemon, "GET", "/metrics").decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def used(start_daemon: StartDaemon) -> Daemon:
    """A daemon that has served a little of everything."""
    daemon = start_daemon()
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Count to 5."}], "temperature": 0}
    for stream in (False, True):
        ask(daemon, "POST", "/v1/chat/completions", {**body, "stream": stream})
    ask(daemon, "POST", "/v1/chat/completions", {**body, "model": "nothing"})
    ask(daemon, "GET", "/wp-admin.php")
    return daemon


def test_a_request_is_counted_by_dialect_model_and_status(used: Daemon) -> None:
    found = scrape(used)
    assert value(found, "lmd_requests_total", dialect="openai", model="tiny-chat", status="200") == 2
    assert value(found, "lmd_requests_total", dialect="openai", model="", status="404") == 1
    assert value(found, "lmd_requests_total", dialect="other", model="", status="404") == 1


def test_tokens_and_times_are_those_of_the_answers(used: Daemon) -> None:
    found = scrape(used)
    completion = value(found, "lmd_tokens_total", model="tiny-chat", kind="completion")
    assert completion > 4
    assert value(found, "lmd_tokens_total", model="tiny-chat", kind="prompt") > 4
    assert value(found, "lmd_tokens_total", model="tiny-chat", kind="cached") > 0  # the second asks the same
    for name in ("lmd_time_to_first_token_seconds", "lmd_queue_seconds"):
        assert value(found, f"{name}_count", model="tiny-chat") == 2
        assert value(found, f"{name}_sum", model="tiny-chat") > 0
    assert value(found, "lmd_request_seconds_count", dialect="openai", model="tiny-chat") == 2
    # Of each answer's tokens, all but those that came first.
    assert 0 < value(found, "lmd_inter_token_seconds_count") < completion
    assert value(found, "lmd_inter_token_seconds_bucket", le="+Inf") == value(found, "lmd_inter_token_seconds_count")


def test_the_pool_is_told_as_it_is(used: Daemon) -> None:
    found = scrape(used)
    assert value(found, "lmd_instances", state="ready") == 1
    assert value(found, "lmd_instances", state="dead") == 0
    assert value(found, "lmd_loads_total", model="tiny-chat", outcome="loaded") == 1
    assert value(found, "lmd_instance_memory_bytes", instance_id="tiny-chat", model="tiny-chat") > 1_000_000
    assert value(found, "lmd_models_memory_bytes") > 1_000_000
    cells = value(found, "lmd_kv_cells", instance_id="tiny-chat", model="tiny-chat")
    assert 0 < value(found, "lmd_kv_cells_used", instance_id="tiny-chat", model="tiny-chat") < cells


def test_evictions_and_crashes_are_counted(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    body = {"model": "tiny-chat", "prompt": "Hi", "max_tokens": 1}
    ask(daemon, "POST", "/v1/completions", body)
    (row,) = json.loads(lmctl(daemon, "ps", "--json"))
    os.kill(row["pid"], signal.SIGKILL)
    while ("lmd_crashes_total", frozenset({("model", "tiny-chat")})) not in (found := scrape(daemon)):
        pass
    assert value(found, "lmd_crashes_total", model="tiny-chat") == 1
    ask(daemon, "POST", "/v1/completions", body)
    lmctl(daemon, "unload", "tiny-chat")
    found = scrape(daemon)
    assert value(found, "lmd_evictions_total", reason="unloaded") == 1
    assert value(found, "lmd_loads_total", model="tiny-chat", outcome="loaded") == 2


def test_models_that_clients_name_make_no_endless_series() -> None:
    metrics = Metrics()
    for number in range(3 * MOST_MODELS):
        record = RequestRecord("id", "POST", "/v1/completions", "-", model=f"m{number}")
        record.usage = Usage(prompt_tokens=1)
        metrics.ended(record, 200)
    found = samples(metrics.text().decode())
    models = {dict(labels)["model"] for name, labels in found if name == "lmd_requests_total"}
    assert len(models) == MOST_MODELS + 1
    assert value(found, "lmd_tokens_total", model="other", kind="prompt") == 2 * MOST_MODELS


def test_paths_are_told_by_their_api_alone() -> None:
    assert [
        dialect_of(path) for path in ("/v1/messages", "/v1/models", "/api/v0/models", "/api/v1/chat", "/x/v1/")
    ] == [
        "anthropic",
        "openai",
        "lmstudio",
        "lmstudio",
        "other",
    ]


def test_tokens_that_come_together_share_their_time() -> None:
    pieces = PieceTimes()
    pieces.add(0.4, 4)
    pieces.add(100.0, 1)
    counts = {s.labels["le"]: s.value for s in pieces.family().samples if s.name.endswith("_bucket")}
    assert (counts["0.075"], counts["0.1"], counts["10.0"], counts["+Inf"]) == (0, 4, 4, 5)


# ── the dashboard ─────────────────────────────────────────────────────────────────────────────

_WORDS = frozenset(
    [
        "sum",
        "by",
        "rate",
        "increase",
        "histogram_quantile",
        "le",
        "avg",
        "max",
        "min",
        "without",
        "and",
        "or",
        "on",
        "ignoring",
        "group_left",
        "group_right",
    ]
)


def metrics_of(expression: str) -> set[str]:
    """The metric names of a PromQL expression: its identifiers outside of braces, brackets, quotes and groupings."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - _WORDS


def test_promql_gives_its_metric_names() -> None:
    expression = 'histogram_quantile(0.5, sum by (le, model) (rate(a_bucket{b="c"}[$__rate_interval]))) / d{e=~"f"}'
    assert metrics_of(expression) == {"a_bucket", "d"}


def test_the_dashboard_shows_only_what_is_measured(used: Daemon) -> None:
    """Families are known by their HELP and TYPE lines, also where they have no sample yet."""
    text = ask(used, "GET", "/metrics").decode()
    known = {name for name, _ in samples(text)}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        known |= {name, *([f"{name}_bucket", f"{name}_sum", f"{name}_count"] if kind == "histogram" else [])}
    panels = json.loads((ROOT / "packaging/grafana/lmd.json").read_text())["panels"]
    used_there = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(used_there) > 20
    for expression in used_there:
        names = metrics_of(expression)
        assert names, expression
        assert names <= known, expression


def test_the_dashboard_leaves_out_nothing_of_lmd(used: Daemon) -> None:
    families = re.findall(r"^# TYPE (lmd_\S+) ", ask(used, "GET", "/metrics").decode(), re.MULTILINE)
    shown = (ROOT / "packaging/grafana/lmd.json").read_text()
    missing = {name for name in families if name not in shown and not name.endswith("_created")}
    assert missing <= {"lmd_build_info"}


def test_the_event_loop_is_watched(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    while value(scrape(daemon), "lmd_event_loop_lag_seconds_count") == 0:
        pass
