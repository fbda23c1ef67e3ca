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
        self._registry = r = CollectorRegistry()
        self.requests = Counter("ebrm_requests", "Requests by route and status", ["route", "code"], registry=r)
        self.texts = Counter("ebrm_texts", "Texts scored", registry=r)
        self.truncated = Counter("ebrm_texts_truncated", "Texts whose prompt was cut at its beginning", registry=r)
        self.refused = Counter("ebrm_texts_refused", "Texts that the reward model cannot read", registry=r)
        self.batch_texts, self.batch_tokens, self.queue_seconds, self.model_seconds = (
            Histogram(f"ebrm_{name}", help, buckets=buckets, registry=r)
            for name, help, buckets in (
                ("batch_texts", "Texts in a batch", [2**k for k in range(11)]),
                ("batch_tokens", "Tokens in a batch, without padding", [2**k for k in range(5, 17)]),
                ("queue_seconds", "Seconds a text waited for its batch", _SECONDS),
                ("model_seconds", "Seconds a batch took", _SECONDS),
            )
        )
        Gauge("ebrm_queue_texts", "Texts accepted and not yet answered", registry=r).set_function(pending)

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
