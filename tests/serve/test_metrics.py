from __future__ import annotations

from ebrm.serve.batching import Batch
from ebrm.serve.metrics import Metrics


def test_batches_are_counted():
    meters = Metrics(lambda: 7)
    meters.batch(Batch(texts=3, tokens=40, waited=(0.1, 0.2, 0.3), seconds=2.0))
    meters.batch(Batch(texts=1, tokens=5, waited=(0.0,), seconds=1.0))
    said = meters.text().decode()
    for line in ("ebrm_texts_total 4.0", "ebrm_batch_texts_count 2.0", "ebrm_batch_texts_sum 4.0",
                 "ebrm_batch_tokens_sum 45.0", "ebrm_queue_seconds_count 4.0", "ebrm_model_seconds_sum 3.0",
                 'ebrm_batch_texts_bucket{le="2.0"} 1.0', "ebrm_queue_texts 7.0"):  # fmt: skip
        assert line in said, line


def test_two_servers_in_a_process_count_apart():
    first, second = Metrics(lambda: 0), Metrics(lambda: 0)
    first.texts.inc()
    assert "ebrm_texts_total 1.0" in first.text().decode() and "ebrm_texts_total 0.0" in second.text().decode()
