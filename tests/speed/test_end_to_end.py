from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from benchmarks import end_to_end
from benchmarks.end_to_end import figures, texts, turn


class Fake:
    """Reads texts in two seconds and refines in one hundredth of that, by a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.backbone = SimpleNamespace(embedding_size=3, read_texts=self.read_texts)

    def read_texts(self, prompts: list[str], responses: list[str]) -> tuple[SimpleNamespace, list[None]]:
        self.now += 2.0
        reward = torch.tensor([float(len(text)) for text in responses])
        return SimpleNamespace(embedding=torch.zeros(len(prompts), 3), reward=reward), [None] * len(prompts)

    def refine(self, embedding: torch.Tensor, base: torch.Tensor) -> SimpleNamespace:
        self.now += 0.02
        return SimpleNamespace(reward=base + 1)

    def score(self, prompts: list[str], responses: list[str]) -> SimpleNamespace:
        reading, _ = self.read_texts(prompts, responses)
        return self.refine(reading.embedding, reading.reward)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    model = Fake()
    monkeypatch.setattr(end_to_end, "fit", lambda source, **_: SimpleNamespace(model=model))
    monkeypatch.setattr(end_to_end.time, "perf_counter", lambda: model.now)
    return model


def test_base_and_refined_score_come_from_one_run(fake: Fake) -> None:
    base, refined, reward = turn(fake, ["p", "q"], ["ab", "c"])
    assert (base, refined) == pytest.approx((2.0, 2.02)) and reward.tolist() == [3.0, 2.0]


def test_the_figure_is_base_over_refined(fake: Fake) -> None:
    (made,) = figures(quick=True)
    assert made.ratio == pytest.approx(2 / 2.02) and made.required == 0.98 and made.met
    assert (made.d, made.rows) == (3, 128)


def test_what_is_timed_must_be_the_score(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "score", lambda *_: SimpleNamespace(reward=torch.zeros(128)))
    with pytest.raises(AssertionError, match="not close"):
        next(figures(quick=True))


def test_texts_are_of_mixed_lengths_and_fit_the_demonstration_rm() -> None:
    prompts, responses = texts(400)
    assert (prompts, responses) == texts(400) and len(set(responses)) == 400
    words = [len(f"{p} {r}".split()) for p, r in zip(prompts, responses, strict=True)]
    assert max(words) <= 450 and min(words) < 60 and 100 < sorted(words)[200] < 160
