"""``GET /metrics``: what lmd counts, in Prometheus' text format.

Requests are counted once, when they end; a generated piece costs one look into a short list (`PieceTimes`). What the
pool and the downloads know themselves is read when somebody asks. Label values are bounded: dialects and statuses are
few, and of models that requests name only the first `MOST_MODELS` get a series of their own.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from lmd.api.activity import RequestRecord, current_record
from lmd.protocol import InstanceRow
from lmd.version import VERSION

if TYPE_CHECKING:
    from lmd.api.services import Services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_MODELS = 200
LAG_SECONDS = 1.0
"""How often the event loop is asked how late it is."""

_LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)
_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

_DIALECTS = (
    ("/v1/messages", "anthropic"),
    ("/v1/", "openai"),
    ("/api/v0/", "lmstudio"),
    ("/api/v1/", "lmstudio"),
    ("/tokenize", "llama-server"),
    ("/detokenize", "llama-server"),
    ("/apply-template", "llama-server"),
    ("/rerank", "llama-server"),
)
_PER_INSTANCE: tuple[tuple[str, str, Callable[[InstanceRow], float]], ...] = (
    ("lmd_instance_memory_bytes", "Memory of an instance: promised, then measured.", lambda row: row.memory),
    ("lmd_kv_cells", "Cells of an instance's KV cache.", lambda row: row.kv_cells),
    ("lmd_kv_cells_used", "Cells that hold something, kept prefixes included.", lambda row: row.kv_used),
    ("lmd_sequences_running", "Sequences that an instance computes.", lambda row: row.running),
    ("lmd_queue_length", "Sequences and requests that wait at an instance.", lambda row: row.queued),
    ("lmd_decode_tokens_per_second", "Tokens generated in the last second of work.", lambda row: row.decode_tps),
    ("lmd_prompt_tokens_per_second", "Prompt tokens computed in the last second.", lambda row: row.prompt_tps),
)
_STATES = ("starting", "loading", "ready", "draining", "dead", "backoff")


def dialect_of(path: str) -> str:
    """Whose API a path belongs to; "other" for what is nobody's."""
    return next((dialect for prefix, dialect in _DIALECTS if path.startswith(prefix)), "other")


class PieceTimes:
    """How long each piece of an answer was in coming, as a histogram without labels and without locks."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_GAPS) + 1)
        self._sum = 0.0

    def add(self, seconds: float, n_tokens: int) -> None:
        """``n_tokens`` came together, ``seconds`` after those before them."""
        self._counts[bisect_left(_GAPS, seconds / n_tokens)] += n_tokens
        self._sum += seconds

    def family(self) -> Metric:
        bounds = [*map(str, map(float, _GAPS)), "+Inf"]
        return HistogramMetricFamily(
            "lmd_inter_token_seconds",
            "Time from one generated token to the next, as the daemon got them.",
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


class Metrics:
    """One for the process. Event loop only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pieces = PieceTimes()
        self._models: set[str] = set()
        self._requests = CounterMetric(
            "lmd_requests", "Requests that have ended.", ("dialect", "model", "status"), registry=self.registry
        )
        self._duration = Histogram(
            "lmd_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("dialect", "model"),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self._ttft = Histogram(
            "lmd_time_to_first_token_seconds",
            "From a request's arrival to the first piece of its answer.",
            ("model",),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self._queue = Histogram(
            "lmd_queue_seconds",
            "What a request waited for its model, and then for a sequence.",
            ("model",),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self._tokens = CounterMetric(
            "lmd_tokens",
            "Tokens by kind: prompt, cached (of the prompt's), completion, drafted, accepted (of the drafted).",
            ("model", "kind"),
            registry=self.registry,
        )
        self._lag = Histogram(
            "lmd_event_loop_lag_seconds", "How late the event loop was.", buckets=_LAGS, registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def attach(self, services: "Services") -> None:
        """From now on tell of the pool and the downloads as well."""
        self.registry.register(_Live(services, self.pieces))

    def ended(self, record: RequestRecord, status: int) -> None:
        """A request is over, however it went."""
        dialect, model = dialect_of(record.path), self._model(record.model)
        self._requests.labels(dialect, model, str(status)).inc()
        if record.model is None:
            return
        self._duration.labels(dialect, model).observe(time.monotonic() - record.started)
        if record.first_token is not None:
            self._ttft.labels(model).observe(record.first_token - record.started)
        usage = record.usage
        if usage is None:
            return
        self._queue.labels(model).observe(record.waited + usage.queue_seconds)
        for kind, n in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("drafted", usage.drafted_tokens),
            ("accepted", usage.accepted_tokens),
        ):
            if n:
                self._tokens.labels(model, kind).inc(n)

    def _model(self, name: str | None) -> str:
        if name is None:
            return ""
        if name not in self._models:
            if len(self._models) >= MOST_MODELS:
                return "other"
            self._models.add(name)
        return name

    async def watch_loop(self) -> None:
        """Measure the event loop's lag, for as long as the daemon lives."""
        while True:
            asked = time.monotonic()
            await asyncio.sleep(LAG_SECONDS)
            self._lag.observe(max(0.0, time.monotonic() - asked - LAG_SECONDS))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Live(Collector):
    """What is read when it is asked for."""

    def __init__(self, services: "Services", pieces: PieceTimes) -> None:
        self._services = services
        self._pieces = pieces

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        services = self._services
        yield InfoMetricFamily("lmd_build", "What runs here.", value={"version": VERSION})
        yield self._pieces.family()
        yield GaugeMetricFamily("lmd_requests_open", "Requests being served.", value=services.activity.active)
        yield from self._instances()
        yield from self._pool()
        yield from self._downloads()

    def _instances(self) -> Iterator[Metric]:
        rows = self._services.pool.rows()
        states = Counter(row.state for row in rows)
        by_state = GaugeMetricFamily("lmd_instances", "Instances by their state.", labels=["state"])
        for state in _STATES:
            by_state.add_metric([state], states[state])
        yield by_state
        live = [row for row in rows if row.state not in {"dead", "backoff"}]
        for name, what, value in _PER_INSTANCE:
            family = GaugeMetricFamily(name, what, labels=["instance_id", "model"])
            for row in live:
                family.add_metric([row.id, row.model], value(row))
            yield family

    def _pool(self) -> Iterator[Metric]:
        tally = self._services.pool.tally
        yield GaugeMetricFamily(
            "lmd_models_memory_bytes", "Memory of all instances together.", value=self._services.pool.memory_used
        )
        loads = CounterMetricFamily("lmd_loads", "Loads that have ended.", labels=["model", "outcome"])
        for key, n in tally.loads.items():
            loads.add_metric(key, n)
        yield loads
        seconds = CounterMetricFamily("lmd_load_seconds", "Time that loads took.", labels=["model"])
        for model, spent in tally.load_seconds.items():
            seconds.add_metric([model], spent)
        yield seconds
        evictions = CounterMetricFamily("lmd_evictions", "Instances that left, by reason.", labels=["reason"])
        for reason, n in tally.evictions.items():
            evictions.add_metric([reason.value], n)
        yield evictions
        crashes = CounterMetricFamily("lmd_crashes", "Workers that died while they served.", labels=["model"])
        for model, n in tally.crashes.items():
            crashes.add_metric([model], n)
        yield crashes

    def _downloads(self) -> Iterator[Metric]:
        rows = self._services.downloads.rows()
        by_state = GaugeMetricFamily("lmd_downloads", "Downloads by their state.", labels=["state"])
        for state, n in sorted(Counter(row.state for row in rows).items()):
            by_state.add_metric([state], n)
        yield by_state
        yield GaugeMetricFamily(
            "lmd_download_bytes_per_second", "Of all downloads together.", value=sum(row.rate for row in rows)
        )


def counted(metrics: Metrics) -> Middleware:
    """Counts each request when it ends. Needs its record: stands within `lmd.api.middleware.request_records`."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = 499  # the client left before there was one
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            record = current_record()
            if record is not None:
                metrics.ended(record, record.answered or status)

    return middleware


def routes(metrics: Metrics) -> list[web.RouteDef]:
    async def scrape(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/metrics", scrape)]
