from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.backbone.shared import refuses
from torch import Tensor, nn

from ebrm.backbone import require_linear
from ebrm.backbone.check import check_padding, check_reading, reported_reward
from ebrm.errors import BackboneError

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
LAST = torch.tensor([3, 2, 3, 1])
ROWS = torch.arange(4)


def setting(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(64, 1, bias=bias)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 64, generator=generator) / 8)
        if bias:
            head.bias.fill_(0.7)
    return head.to(dtype), torch.randn(4, 4, 64, generator=generator).to(dtype)


def check(head: nn.Linear, hidden: Tensor, reported: Tensor, read_at: Tensor = LAST) -> None:
    check_reading("RM", head, hidden, MASK, hidden[ROWS, read_at], reported)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_models_own_rounding_passes(dtype, bias):
    head, hidden = setting(dtype, bias)
    with torch.no_grad():
        check(head, hidden, head(hidden[ROWS, LAST])[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("report", "said"),
    [
        (
            lambda r, head, hidden: head(hidden[ROWS, LAST - 1])[:, 0],
            r"Wrong position: .* 1 token\(s\) before the last",
        ),
        (lambda r, head, hidden: head(hidden[:, 0])[:, 0], "Wrong position: .* at the first token"),
        (
            lambda r, head, hidden: head(hidden[ROWS, torch.tensor([2, 0, 1, 3])])[:, 0],
            "Wrong position: .* at another token",
        ),
        (lambda r, head, hidden: r - head.bias, r"Everywhere by -0\.(7|69).*: a bias that was lost"),
        (lambda r, head, hidden: torch.sigmoid(r), "Post-processing: the model applies a sigmoid"),
        (lambda r, head, hidden: torch.tanh(3 * r), "Wrong head, or something not linear"),
        (lambda r, head, hidden: -r, "a change of sign"),
        (lambda r, head, hidden: 3 * r - 5, r"rescales its reward after the head \(by [23]\.\d+\)|\(by 3\)"),
        (lambda r, head, hidden: hidden[ROWS, LAST].sum(-1), "Wrong head"),
        (lambda r, head, hidden: torch.full_like(r, float("nan")), "but the model reports nan"),
    ],
)
def test_a_wrong_reading_is_refused_with_a_diagnosis(dtype, report, said):
    head, hidden = setting(dtype)
    with torch.no_grad():
        reward = head(hidden[ROWS, LAST])[:, 0]
        with refuses(said) as caught:
            check(head, hidden, report(reward, head, hidden))
    assert str(caught.value).startswith("RM: the head applied to the embedding gives")
    assert "Name another head with `head`" in str(caught.value)


def test_one_wrong_row_is_enough():
    head, hidden = setting()
    with torch.no_grad():
        reported = head(hidden[ROWS, LAST])[:, 0]
    reported[2] += 0.1
    with pytest.raises(BackboneError, match=r"\(text 3 of the first batch"):
        check(head, hidden, reported)


def test_reported_reward_under_its_many_names():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    reward = torch.tensor([1.5, -2.0])
    column, tokens = reward[:, None], torch.tensor([[9.0, 1.5, 9.0], [9.0, 9.0, -2.0]])
    for output in (
        SimpleNamespace(logits=column),
        SimpleNamespace(logits=reward),
        SimpleNamespace(logits=None, score=reward),
        SimpleNamespace(end_scores=column),
        SimpleNamespace(scores=reward),
        SimpleNamespace(rewards=column),
        SimpleNamespace(value=tokens),
        SimpleNamespace(value=tokens[..., None]),
        (column,),
        reward,
        column.bfloat16(),
    ):
        found = reported_reward(output, mask)
        assert found.dtype == torch.float32 and found.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "output", [SimpleNamespace(logits=torch.zeros(2, 2)), SimpleNamespace(), torch.zeros(3), ("x",)]
)
def test_what_is_no_reward(output):
    with refuses("for 2 texts; one reward for each text was expected"):
        reported_reward(output, torch.ones(2, 5, dtype=torch.int64))


def test_padding_that_changes_the_embedding():
    alone = torch.ones(8)
    check_padding("RM", alone * 1.001, alone, torch.float32)
    check_padding("RM", alone * 1.2, alone, torch.bfloat16)
    for moved, dtype in (
        (alone * 1.02, torch.float32),
        (alone * 1.4, torch.bfloat16),
        (alone * float("nan"), torch.float32),
    ):
        with refuses("RM: the shortest text .* another embedding when it is padded"):
            check_padding("RM", moved, alone, dtype)
        with refuses("another mean of block 3 when it is padded"):
            check_padding("RM", moved, alone, dtype, "mean of block 3")


def test_a_head_that_is_no_plain_linear_map():
    with refuses("The head v of RM is a Bilinear, not a linear map"):
        require_linear("RM", "v", nn.Bilinear(2, 2, 1))
    with refuses("The head v of RM is a NoneType"):
        require_linear("RM", "v", None)
    for dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn):
        quantized = nn.Linear(4, 1)
        quantized.weight = nn.Parameter(torch.zeros(1, 4).to(dtype), requires_grad=False)
        with refuses("The head v of RM is quantized"):
            require_linear("RM", "v", quantized)
