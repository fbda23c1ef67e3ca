"""What one batch gives: shapes it knows, and a head that runs once. Numbers are tested through Backbone.read."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import save_rm

from ebrm.backbone import BackboneConfig, Forward, float32_head, load_backbone
from ebrm.backbone.forward import InnerLayers, configs, pooled, vocabulary_size
from ebrm.errors import BackboneError


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Forward:
    return load_backbone(BackboneConfig(str(save_rm(tmp_path_factory.mktemp("rm"))), device="cpu")).forward


def with_head(forward: Forward, head: torch.nn.Linear) -> Forward:
    return Forward("rm", "score", forward.model, head, InnerLayers(), 0, torch.device("cpu"), None)


def test_shapes_it_does_not_know() -> None:
    mask = torch.ones(2, 3, dtype=torch.int64)
    for shape in ((3, 4), (2, 4, 5), (6, 4), (1, 3, 4)):
        with pytest.raises(BackboneError, match="The head got a tensor of shape"):
            pooled(torch.zeros(shape), mask)
    assert pooled(torch.zeros(2, 1, 4), mask).shape == (2, 4)
    assert pooled(torch.zeros(2, 4), mask).shape == (2, 4)


def test_the_last_position_of_each_text_is_pooled() -> None:
    captured = torch.arange(6.0).reshape(2, 3, 1)
    assert pooled(captured, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [[1.0], [5.0]]


def test_a_head_that_does_not_run_once(forward: Forward) -> None:
    with pytest.raises(BackboneError, match="ran its head score 0 times"):
        with_head(forward, torch.nn.Linear(32, 1)).embed([[5]])


def test_it_leaves_no_hooks_and_reads_in_the_model_s_own_precision(forward: Forward) -> None:
    expected = forward.embed([[5, 6, 7], [8]], check=True)
    assert expected.shape == (2, 64) and expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(forward.embed([[5, 6, 7], [8]]), expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in forward.model.modules())


def test_a_head_is_copied_in_float32() -> None:
    head = float32_head(torch.nn.Linear(3, 1, bias=False).to(torch.bfloat16))
    assert head.weight.dtype == torch.float32 and head.bias is None
    embedding = torch.tensor([[1.0, 2.0, 3.0, 99.0]])  # what follows the first d numbers is not its input
    torch.testing.assert_close(head(embedding), (embedding[:, :3] @ head.weight.T)[:, 0])


def test_models_without_a_configuration_or_a_table(forward: Forward) -> None:
    bare = torch.nn.Linear(2, 1)
    assert configs(bare) == [] and vocabulary_size(bare) is None
    assert configs(forward.model) == [forward.model.config] and vocabulary_size(forward.model) == 267
