"""Prometheus metrics of one server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters and histograms, in a registry of their own (several servers fit in a process).

    Args:
        pending: number of texts accepted and not yet answered.
    """

    def __init__(self, pending: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self.requests = Counter("ebrm_requests", "Requests by route and status", ["route", "code"], registry=r)
        self.texts = Counter("ebrm_texts", "Texts scored", registry=r)
        self.truncated = Counter("ebrm_texts_truncated", "Texts whose prompt was cut at its beginning", registry=r)
        self.refused = Counter("ebrm_texts_refused", "Texts that the reward model cannot read", registry=r)
        sizes = [2**k for k in range(11)]
        self.batch_texts = Histogram("ebrm_batch_texts", "Texts in a batch", buckets=sizes, registry=r)
        self.batch_tokens = Histogram(
            "ebrm_batch_tokens", "Tokens in a batch, without padding", buckets=[2**k for k in range(5, 17)], registry=r
        )
        self.queue_seconds = Histogram(
            "ebrm_queue_seconds", "Seconds a text waited for its batch", buckets=_SECONDS, registry=r
        )
        self.model_seconds = Histogram("ebrm_model_seconds", "Seconds a batch took", buckets=_SECONDS, registry=r)
        queue = Gauge("ebrm_queue_texts", "Texts accepted and not yet answered", registry=r)
        queue.set_function(pending)

    def batch(self, tokens: int, waited: Sequence[float], seconds: float) -> None:
        """Count a batch: its tokens, how long each of its texts waited, how long the model took (seconds)."""
        self.texts.inc(len(waited))
        self.batch_texts.observe(len(waited))
        self.batch_tokens.observe(tokens)
        self.model_seconds.observe(seconds)
        for wait in waited:
            self.queue_seconds.observe(wait)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
