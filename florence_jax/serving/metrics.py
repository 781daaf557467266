"""`Metrics`: what Prometheus reads of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (  # pyright: ignore[reportMissingImports]
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import (  # pyright: ignore[reportMissingImports]
    CounterMetricFamily,
    Metric,
)

from florence_jax.processing import TASKS
from florence_jax.serving.service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters in a registry of the server's own."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "florence_http_requests",
            "HTTP requests by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "florence_http_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._answers = Counter(
            "florence_answers", "Answers by task.", ("task",), registry=self.registry
        )
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "florence_ready": (
                "1 while requests are answered.",
                lambda: float(service.state == "ready"),
            ),
            "florence_requests_under_way": (
                "Requests that wait or are being answered.",
                lambda: float(service.admission.under_way),
            ),
            "florence_image_cache_bytes": (
                "Image features that are kept.",
                lambda: float(service.images.nbytes),
            ),
        }
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)
        self.registry.register(_EngineCounts(service))  # pyright: ignore[reportArgumentType]

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request to `route` has ended."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_answer(self, task: str) -> None:
        """A request was answered; tasks beside the 15 share one label."""
        self._answers.labels(task if task in TASKS else "other").inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCounts:
    """Counters that the engine keeps itself."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        stats, images = self._service.engine.stats, self._service.images
        batches, requests = stats.batches
        for name, text, value in (
            ("florence_batches", "Batches that the device got.", batches),
            ("florence_batched_requests", "Requests in these batches.", requests),
            ("florence_tokens", "Generated tokens.", stats.tokens),
            ("florence_image_cache_hits", "Images that were there.", images.hits),
            ("florence_image_cache_misses", "Images that were read.", images.misses),
        ):
            yield CounterMetricFamily(name, text, value=value)
