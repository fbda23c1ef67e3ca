"""A model called as transformers' classifiers are gives the rewards that EnergyRewardModel gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.autos import FAMILIES, LONG, PROMPTS, RESPONSES, as_trl, fitted
from tests.linear import QUICK, linear_features

from ebrm.errors import BackboneError, ModelError, TextError, TextTooLongError
from ebrm.fitting import fit
from ebrm.integrations import EBRMConfig, EBRMForSequenceClassification
from ebrm.integrations.tokenizer import make_tokenizer
from ebrm.model import EnergyRewardModel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("autos")


@pytest.fixture(scope="module")
def llama(root: Path) -> EBRMForSequenceClassification:
    return EBRMForSequenceClassification.wrap(fitted(root))


def tokens(model: EnergyRewardModel, side: str = "right") -> dict[str, torch.Tensor]:
    tokenizer = make_tokenizer(model.backbone.text_rule, model.backbone.tokenizer)
    return as_trl(tokenizer, PROMPTS, RESPONSES, side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_energy_model(root: Path, family: str, side: str) -> None:
    model = fitted(root, family)
    expected = model.score(PROMPTS, RESPONSES)
    with torch.inference_mode():
        found = EBRMForSequenceClassification.wrap(model)(**tokens(model, side))
    assert found.logits.shape == (len(PROMPTS), 1) and found.logits.dtype == torch.float32
    for name in ("base_reward", "std", "interval"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits[:, 0], expected.reward, atol=1e-5, rtol=0)
    assert float(found.logits.std()) > 1e-2
    assert float((found.logits[:, 0] - found.base_reward).abs().max()) > 1e-2  # it does refine


def test_rows_alone_without_a_mask_and_in_a_batch_are_the_same(llama: EBRMForSequenceClassification) -> None:
    batch = tokens(llama.energy)
    together = llama(**batch).logits
    for i, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        alone = llama(input_ids=ids[mask.bool()][None]).logits
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_outputs_as_a_tuple_and_without_gradients(llama: EBRMForSequenceClassification) -> None:
    logits, base_reward, std, interval = llama(torch.tensor([[5, 6, 7]]), return_dict=False)
    assert logits.shape == (1, 1) and interval.shape == (1, 2) and base_reward.shape == std.shape == (1,)
    assert not logits.requires_grad and not any(p.requires_grad for p in llama.parameters())
    assert not llama.train().training
    nothing = llama(torch.empty(0, 4, dtype=torch.int64))
    assert nothing.logits.shape == (0, 1) and nothing.interval.shape == (0, 2)


def test_autocast_changes_nothing(llama: EBRMForSequenceClassification) -> None:
    batch = tokens(llama.energy)
    expected = llama(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(llama(**batch).logits, expected)


def test_the_base_can_be_compiled(root: Path) -> None:
    torch._dynamo.reset()
    model = EBRMForSequenceClassification.wrap(fitted(root, "gpt_neox").with_backbone())  # a base RM of its own
    batch = tokens(model.energy)
    expected = model(**batch).logits
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model.base.compile(backend=backend)
    for rows in (slice(None), slice(2), slice(3)):
        found = model(**{name: value[rows] for name, value in batch.items()}).logits
        torch.testing.assert_close(found, expected[rows], atol=1e-5, rtol=0)
    torch._dynamo.reset()
    assert compiled


def test_half_precision_leaves_the_energy_as_it_is(root: Path) -> None:
    model = EBRMForSequenceClassification.wrap(fitted(root).with_backbone())  # a base RM of its own
    batch = tokens(model.energy)
    exact = model(**batch)
    found = model.to(torch.bfloat16)(**batch)
    assert model.dtype == torch.bfloat16 and found.logits.dtype == torch.float32
    kinds = {name: tensor.dtype for name, tensor in model.energy.head.state_dict().items()}
    assert kinds == {name: t.dtype for name, t in fitted(root).head.state_dict().items()}
    assert not torch.equal(found.base_reward, exact.base_reward)
    torch.testing.assert_close(found.base_reward, exact.base_reward, atol=0.3, rtol=0.1)
    torch.testing.assert_close(found.logits, exact.logits, atol=0.3, rtol=0.1)


class TestRefused:
    def test_a_long_text_as_the_energy_model_refuses_it(self, root: Path, llama: EBRMForSequenceClassification) -> None:
        with pytest.raises(TextError):
            llama.energy.score(["Hi", LONG], ["there", "x"])
        tokenizer = make_tokenizer(llama.energy.backbone.text_rule, llama.energy.backbone.tokenizer)
        with pytest.raises(TextTooLongError, match=r"1 of 2 texts are too long, first row 1: it has \d+ .* is 128"):
            llama(**as_trl(tokenizer, ["Hi", LONG], ["there", "x"]))
        model = EBRMForSequenceClassification.wrap(fitted(root, "llama", max_length=100))
        assert model(torch.full((1, 100), 7)).logits.shape == (1, 1)
        with pytest.raises(TextTooLongError, match="it has 101 tokens, and the limit is 100"):
            model(torch.full((1, 101), 7))

    @pytest.mark.parametrize(
        ("ids", "more", "kind", "said"),
        [
            (None, {}, ModelError, "input_ids is nothing"),
            ([7, 8], {}, ModelError, r"input_ids is a tensor of shape \[2\]"),
            ([[7, 8]], {"attention_mask": [[1]]}, ModelError, r"attention_mask has the shape \[1, 1\]"),
            ([[7, 8], [7, 8]], {"attention_mask": [[1, 1], [0, 0]]}, BackboneError, "Row 1 has no tokens"),
            ([[7, 9999]], {}, BackboneError, "Row 0 holds the token id 9999"),
            ([[7, 8]], {"token_type_ids": [[1, 1]]}, ModelError, "token_type_ids are not all 0"),
            *(
                ([[7, 8]], {name: [[1, 1]]}, ModelError, f"{name} cannot be used")
                for name in ("labels", "inputs_embeds", "position_ids", "output_hidden_states")
            ),
        ],
    )
    def test_inputs_that_cannot_be_used(
        self, llama: EBRMForSequenceClassification, ids: Any, more: dict[str, Any], kind: type, said: str
    ) -> None:
        given = {name: torch.tensor(value) for name, value in more.items()}
        with pytest.raises(kind, match=said):
            llama(None if ids is None else torch.tensor(ids), **given)

    def test_padding_that_nothing_tells_from_text(self, llama: EBRMForSequenceClassification) -> None:
        pad = llama.config.pad_token_id
        for ids in ([[7, 8, 9], [7, pad, pad]], [[7, 8, 9], [pad, pad, 7]]):
            with pytest.raises(ModelError, match=f"begin or end in the padding token {pad}.*attention_mask"):
                llama(torch.tensor(ids))
        zeros = torch.zeros(1, 2, dtype=torch.int64)
        assert llama(torch.tensor([[7, pad]]), token_type_ids=zeros, use_cache=True).logits.shape == (1, 1)

    def test_a_configuration_alone_and_a_model_of_imported_features(self, llama: EBRMForSequenceClassification) -> None:
        with pytest.raises(ModelError, match="built from a configuration alone"):
            EBRMForSequenceClassification(llama.config)(torch.tensor([[7]]))
        values = {**llama.config.to_dict(), "base": None}
        with pytest.raises(ModelError, match="refers to a base RM by name"):
            EBRMForSequenceClassification(EBRMConfig(**values))
        model = fit(linear_features(60), head=QUICK).model
        with pytest.raises(ModelError, match="features made elsewhere"):
            EBRMForSequenceClassification.wrap(model)
