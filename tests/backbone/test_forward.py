"""Means of inner layers: which blocks, over which tokens, and never silently another thing."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.backbone.shared import close, load, refuses
from tests.tiny import FAMILIES, MORE_FAMILIES, build_model, edit_config, save_rm
from torch import Tensor, nn

from ebrm.backbone import (
    Backbone,
    BackboneConfig,
    Forward,
    Loaded,
    ValueHeadModel,
    float32_head,
    inner_layers,
    load_backbone,
)
from ebrm.backbone.families import forget_family, register_family
from ebrm.backbone.forward import InnerLayers, configs, find_blocks, pooled, vocabulary_size

IDS = [[9, 8, 7, 6, 5, 2], [50, 2], [100, 101, 102, 2], [7, 2]]
DEEP = {"num_hidden_layers": 4}
#: What some families call their number of blocks; where `tests.tiny` states it, both names must be changed.
COUNTS = {
    "bart": ("encoder_layers", "decoder_layers"), "t5": ("num_layers",), "distilbert": ("n_layers",),
    "gpt2": ("n_layer",), "bloom": ("n_layer",),
}  # fmt: skip


def naive_means(model: nn.Module, ids: list[int], indices: tuple[int, ...]) -> Tensor:
    """Means over tokens by a loop, of the states that transformers gives for one text without padding."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    # Those of an encoder with a decoder stand under another name.
    states = getattr(output, "encoder_hidden_states", None) or output.hidden_states
    parts = []
    for index in indices:
        total = torch.zeros(states[index].shape[-1], dtype=torch.float64)
        for token in range(len(ids)):
            total += states[index][0, token].double()
        parts.append(total / len(ids))
    return torch.cat(parts).float()


@pytest.mark.parametrize("family", [*FAMILIES, *(name for name in MORE_FAMILIES if name != "xlnet")])
def test_the_embedding_ends_in_the_means_of_inner_layers(tmp_path, family):
    four = dict.fromkeys(("num_hidden_layers", *COUNTS.get(family, ())), 4)
    backbone = load(save_rm(tmp_path, family, **four), layers=(0.75, 0.25))
    assert backbone.identity.layers == backbone.layers.indices == (1, 3)
    reading = backbone.read(IDS)
    d = backbone.head.weight.shape[1]
    assert reading.embedding.shape == (4, backbone.embedding_size) and backbone.embedding_size == d + 2 * 32
    expected = torch.stack([naive_means(backbone.model, ids, (1, 3)) for ids in IDS])
    close(reading.embedding[:, d:], expected, 2e-5)
    assert float((expected[:, :32] - expected[:, 32:]).norm()) > 0.1  # the layers do differ
    pooled_only = load(tmp_path, layers=()).read(IDS)
    assert torch.equal(pooled_only.embedding, reading.embedding[:, :d])
    assert torch.equal(pooled_only.reward, reading.reward)
    assert torch.equal(backbone.head(reading.embedding), reading.reward)


@pytest.mark.parametrize("family", ["llama", "deberta-v2"])
def test_batch_and_order_do_not_matter(tmp_path, family):
    folder = save_rm(tmp_path, family, **DEEP)
    expected = load(folder, token_budget=1).read(IDS).embedding  # one by one, without padding
    order = [2, 0, 3, 1]
    for budget in (7, 12, 1000):
        found = load(folder, token_budget=budget).read([IDS[row] for row in order]).embedding
        close(found, expected[order], 1e-5)


@given(depth=st.fractions(0, 1).filter(lambda x: x > 0), count=st.integers(1, 100))
def test_a_depth_is_a_share_of_the_blocks(depth, count):
    model = Stack([nn.Identity()] * count)
    (index,) = inner_layers("RM", model, (float(depth),)).indices
    assert 1 <= index <= count and (index == 1 or abs(index - depth * count) <= Fraction(1, 2) + Fraction(1, 10**9))
    assert inner_layers("RM", model, (), (index,)).indices == (index,)


@pytest.mark.parametrize(
    ("depths", "count", "expected"),
    [
        ((1 / 3, 2 / 3), 6, (2, 4)),
        ((1 / 3, 2 / 3), 28, (9, 19)),
        ((1 / 3, 2 / 3), 2, (1,)),  # both come to the first
        ((1 / 3, 2 / 3), 1, (1,)),
        ((0.01, 1.0), 12, (1, 12)),
        ((0.9, 0.1, 0.9), 10, (1, 9)),
        ((), 10, ()),
    ],
)
def test_known_blocks(depths, count, expected):
    model = Stack([nn.Linear(3, 3) for _ in range(count)])
    found = inner_layers("RM", model, depths)
    assert found.indices == expected and found.size == 3 * len(expected)
    assert all(block is model.layers[index - 1] for block, index in zip(found.blocks, expected, strict=True))


def test_blocks_that_are_not_there(tmp_path):
    model = Stack([nn.Identity()] * 4)
    for indices, named in (((1, 5), 5), ((0, 2), 0)):
        with refuses(f"RM has 4 blocks, and hidden states after block {named} are asked"):
            inner_layers("RM", model, (), indices)
    folder = save_rm(tmp_path)
    with refuses("has 2 blocks, and hidden states after block 9"):
        load_backbone(BackboneConfig(str(folder), device="cpu"), blocks=(9,))
    assert load_backbone(BackboneConfig(str(folder), device="cpu"), blocks=(2,)).identity.layers == (2,)
    assert load_backbone(BackboneConfig(str(folder), device="cpu"), blocks=()).identity.layers == ()


class Stack(nn.Module):
    """Blocks in a row, as a model of one's own may have them."""

    def __init__(self, blocks: list[nn.Module], width: int = 3, **config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.config = SimpleNamespace(num_hidden_layers=len(blocks), hidden_size=width, **config)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.layers:
            output = block(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


class Plus(nn.Module):
    """Adds a number, and gives a tuple, as blocks with attention weights do."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return hidden + self.number, None


def averaged(layers: InnerLayers, model: nn.Module, hidden: Tensor, mask: Tensor) -> list[Tensor]:
    with layers.averaging(mask) as means:
        model(hidden)
    return means


@given(data=st.data())
def test_only_the_text_counts_wherever_the_padding_is(data):
    n, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    rows = st.lists(st.integers(0, 1), min_size=length, max_size=length).filter(any)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=n, max_size=n)))
    hidden = torch.randn(n, length, 3, generator=torch.Generator().manual_seed(0))
    hidden[mask == 0] = torch.nan  # whatever stands there
    model = Stack([Plus(1.0), Plus(10.0)])
    first, second = averaged(inner_layers("RM", model, (0.5, 1.0)), model, hidden, mask)
    for row in range(n):
        text = hidden[row][mask[row].bool()].double()
        expected = torch.tensor([float(sum(text[:, column])) / len(text) for column in range(3)])
        close(first[row], expected + 1, 1e-5)
        close(second[row], expected + 11, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype):
    hidden = torch.full((1, 5000, 3), 100.0, dtype=dtype)  # in float16 the sum overflows, in bfloat16 it sticks
    hidden[0, 0] = 0
    model = Stack([nn.Identity()])
    (mean,) = averaged(inner_layers("RM", model, (1.0,)), model, hidden, torch.ones(1, 5000, dtype=torch.int64))
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.full((1, 3), 100 * 4999 / 5000), atol=0, rtol=1e-6)


def test_no_hidden_states_and_no_hooks_are_kept():
    model = Stack([Plus(1.0), Plus(1.0)])
    layers, mask = inner_layers("RM", model, (0.5, 1.0)), torch.ones(2, 50, dtype=torch.int64)
    for mean in averaged(layers, model, torch.zeros(2, 50, 3), mask):
        assert mean.shape == (2, 3) and mean.untyped_storage().nbytes() == 2 * 3 * 4
    with pytest.raises(RuntimeError, match="on the way"), layers.averaging(mask):
        raise RuntimeError("on the way")
    assert not any(block._forward_hooks for block in model.layers)


class Odd(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("output", "seen"),
    [
        (torch.zeros(5, 2, 3), r"a tensor of shape \[5, 2, 3\]"),
        (torch.zeros(2, 5, 4), r"a tensor of shape \[2, 5, 4\]"),
        ((torch.zeros(2, 3),), r"a tensor of shape \[2, 3\]"),
        ((), "tuple"),
        ({"hidden": 1}, "dict"),
    ],
)
def test_a_block_that_gives_no_hidden_states_is_refused(output, seen):
    model = Stack([Odd(output)])
    layers, mask = inner_layers("RM", model, (1.0,)), torch.ones(2, 5, dtype=torch.int64)
    with refuses(rf"Block 1 of RM gives {seen} for 2 texts of 5 tokens; .* \[2, 5, 3\] were"):
        averaged(layers, model, torch.zeros(2, 5, 3), mask)
    assert not model.layers[0]._forward_hooks


@pytest.mark.parametrize("runs", [0, 2])
def test_a_block_that_does_not_run_once_is_refused(runs):
    model = Stack([Plus(1.0), Plus(1.0)])
    layers = inner_layers("RM", model, (1.0,))
    mask, hidden = torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 2, 3)
    said = f"RM ran its block 2 {runs} times in one forward, and once was expected"
    with refuses(said), layers.averaging(mask):
        model.layers[0](hidden)
        for _ in range(runs):
            model.layers[1](hidden)


class TestFinding:
    def test_under_a_head_of_ones_own(self):
        base = build_model("gpt_neox", "base")
        blocks, width = find_blocks("RM", ValueHeadModel(base, nn.Linear(32, 1)))
        assert blocks is base.layers and width == 32

    @pytest.mark.parametrize("family", ["bart", "t5"])
    def test_of_an_encoder_with_a_decoder_the_encoder_is_read(self, family):
        model = build_model(family)
        blocks, _ = find_blocks("RM", model)
        encoder = model.get_encoder()
        assert blocks is (encoder.layers if family == "bart" else encoder.block)

    def test_a_list_inside_a_block_is_not_meant(self):
        model = build_model("t5", num_decoder_layers=1)  # the parts of a block are as many as the blocks
        assert find_blocks("RM", model)[0] is model.transformer.encoder.block

    def test_what_cannot_be_told_apart_is_said(self):
        twice = Stack([nn.Identity(), nn.Identity()])
        twice.layers_too = nn.ModuleList([nn.Identity(), nn.Identity()])
        bare = Stack([nn.Identity()])
        bare.config.num_hidden_layers = 7
        unsized = Stack([nn.Identity()])
        del unsized.config.hidden_size
        for model, said in (
            (twice, r"says 2, and the model has several lists of that many modules \(layers, layers_too\)"),
            (bare, "says 7, and the model has no list of that many"),
            (unsized, "does not say how many there are"),
            (nn.Linear(3, 1), "does not say how many there are"),
        ):
            with refuses(f"The blocks of RM cannot be found: .*{said}.*`layers=..`"):
                inner_layers("RM", model, (0.5,))
            assert inner_layers("RM", model, ()).indices == ()


Haunted = Callable[..., Backbone]


@pytest.fixture
def haunted(tmp_path):
    """Loads a reward model whose first block gives hidden states plus `noise` of them; the second gets them clean."""
    save_rm(tmp_path, **DEEP)
    edit_config(tmp_path, model_type="haunted")

    def load_haunted(noise: Callable[[Tensor], Any], **settings: Any) -> Backbone:
        kept: list[Tensor] = []

        def spoil(_: Any, inputs: Any, hidden: Tensor) -> Tensor:
            kept.append(hidden)
            return hidden + noise(hidden)

        def make(checkpoint: Any, settings: Any) -> Loaded:
            model = build_model("llama", **DEEP)
            model.model.layers[0].register_forward_hook(spoil)
            model.model.layers[1].register_forward_pre_hook(lambda _, inputs: (kept.pop(), *inputs[1:]))
            return Loaded(model, model.score, "score")

        register_family("haunted", lambda config: config.get("model_type") == "haunted", make)
        return load(tmp_path, **settings)

    yield load_haunted
    forget_family("haunted")


def test_the_check_of_padding_covers_inner_layers(haunted):
    def batch_length(hidden: Tensor) -> float:
        return 0.1 * hidden.shape[1]

    haunted(batch_length, layers=()).read(IDS)
    haunted(batch_length, layers=(0.5, 0.75)).read(IDS)
    with refuses("another mean of the hidden states after block 1 when it is padded"):
        haunted(batch_length, layers=(0.25, 0.75)).read(IDS)


def test_a_mean_that_is_not_finite_names_the_row(haunted):
    backbone = haunted(lambda hidden: float("inf") if hidden.shape[1] == 6 else 0.0, layers=(0.25,), token_budget=6)
    backbone.read(IDS[1:])
    with refuses(r"1 of 4 texts an embedding or reward .* first row 0 \(6 tokens\)"):
        backbone.read(IDS)


@pytest.fixture(scope="module")
def forward(tmp_path_factory):
    return load_backbone(BackboneConfig(str(save_rm(tmp_path_factory.mktemp("rm"))), device="cpu")).forward


def with_head(forward: Forward, head: torch.nn.Linear) -> Forward:
    return Forward("rm", "score", forward.model, head, InnerLayers(), 0, torch.device("cpu"), None)


def test_shapes_it_does_not_know():
    mask = torch.ones(2, 3, dtype=torch.int64)
    for shape in ((3, 4), (2, 4, 5), (6, 4), (1, 3, 4)):
        with refuses("The head got a tensor of shape"):
            pooled(torch.zeros(shape), mask)
    assert pooled(torch.zeros(2, 1, 4), mask).shape == (2, 4)
    assert pooled(torch.zeros(2, 4), mask).shape == (2, 4)


def test_the_last_position_of_each_text_is_pooled():
    captured = torch.arange(6.0).reshape(2, 3, 1)
    assert pooled(captured, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [[1.0], [5.0]]


def test_a_head_that_does_not_run_once(forward):
    with refuses("ran its head score 0 times"):
        with_head(forward, torch.nn.Linear(32, 1)).embed([[5]])


def test_it_leaves_no_hooks_and_reads_in_the_model_s_own_precision(forward):
    expected = forward.embed([[5, 6, 7], [8]], check=True)
    assert expected.shape == (2, 64) and expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(forward.embed([[5, 6, 7], [8]]), expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in forward.model.modules())


def test_a_head_is_copied_in_float32():
    head = float32_head(torch.nn.Linear(3, 1, bias=False).to(torch.bfloat16))
    assert head.weight.dtype == torch.float32 and head.bias is None
    embedding = torch.tensor([[1.0, 2.0, 3.0, 99.0]])  # what follows the first d numbers is not its input
    torch.testing.assert_close(head(embedding), (embedding[:, :3] @ head.weight.T)[:, 0])


def test_models_without_a_configuration_or_a_table(forward):
    bare = torch.nn.Linear(2, 1)
    assert configs(bare) == [] and vocabulary_size(bare) is None
    assert configs(forward.model) == [forward.model.config] and vocabulary_size(forward.model) == 267
