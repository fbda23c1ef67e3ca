from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.backbone.shared import IDS, close, refuses
from tests.tiny import build_model, edit_config, save_rm, tokenizer_for
from torch import Tensor, nn

from ebrm.backbone import Backbone, BackboneConfig, Loaded, families, load_backbone, open_checkpoint
from ebrm.backbone.checkpoint import Checkpoint
from ebrm.backbone.families import HEAD_RULE, head_names, register_family, stored_head
from ebrm.data import TextConfig
from ebrm.errors import BackboneError


def load(folder: Path, **settings: Any) -> Backbone:
    # Models of one's own may state no limit.
    return load_backbone(BackboneConfig(str(folder), device="cpu", **settings), TextConfig(max_length=128))


def random_linear(rows: int, columns: int, seed: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(columns, rows)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(rows, columns, generator=generator) / 4)
        linear.bias.copy_(torch.randn(rows, generator=generator))
    return linear


def replace_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def last_hidden(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in IDS])


def mean_hidden(model: nn.Module) -> Tensor:
    """Mean over the tokens of the hidden states after the first of two blocks: what is read by default."""
    with torch.no_grad():
        states = [model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in IDS]
    return torch.stack([state[1][0].mean(0) for state in states])


def save_with_head(folder: Path, name: str, head: nn.Module, kind: str = "causal", family: str = "llama") -> nn.Module:
    """Save a causal model whose checkpoint also holds `head` under `name`; give the base model back."""
    save_rm(folder, family, kind)
    more = {f"{name}.{key}": value.detach().contiguous() for key, value in head.state_dict().items()}
    replace_tensors(folder, lambda tensors: {**tensors, **more})
    return build_model(family, kind).base_model


class TestHeadsThatTransformersDoesNotKnow:
    @pytest.mark.parametrize(
        "name", ["v_head.summary", "v_head", "value_head", "regression_head", "score_head", "reward_head", "out_proj"]
    )
    def test_are_read_from_the_checkpoint(self, tmp_path, name):
        head = random_linear(1, 32, 1)
        base = save_with_head(tmp_path, name, head)
        backbone = load(tmp_path)
        assert backbone.identity.head_module == name and backbone.identity.architecture == "LlamaModel"
        reading, embedding = backbone.read(IDS), last_hidden(base)
        close(reading.embedding[:, :32], embedding)
        close(reading.embedding[:, 32:], mean_hidden(base))
        with torch.no_grad():
            close(reading.reward, head(embedding)[:, 0])

    def test_openrlhf_names_its_own(self, tmp_path):
        head = random_linear(1, 32, 1)
        base = save_with_head(tmp_path, "my_scalar", head)
        edit_config(tmp_path, value_head_prefix="my_scalar", architectures=["RewardModel"])
        with torch.no_grad():
            close(load(tmp_path).read(IDS).reward, head(last_hidden(base))[:, 0])

    def test_open_assistant(self, tmp_path):
        head = random_linear(1, 32, 1)
        base = save_with_head(tmp_path, "out_proj", head, family="gpt_neox")
        edit_config(tmp_path, model_type="gpt_neox_reward_model", architectures=["GPTNeoXRewardModel"], pooling="last")
        backbone = load(tmp_path)
        assert backbone.identity.architecture == "GPTNeoXModel"
        with torch.no_grad():
            close(backbone.read(IDS).reward, head(last_hidden(base))[:, 0])
        edit_config(tmp_path, pooling="mean")
        with refuses("pools its embedding by 'mean'"):
            load(tmp_path)

    def test_a_head_in_a_file_of_its_own(self, tmp_path):
        save_rm(tmp_path, kind="causal")
        head = random_linear(1, 32, 1)
        path = tmp_path / "value_head.safetensors"
        save_file({f"v_head.summary.{key}": value.detach() for key, value in head.state_dict().items()}, path)
        backbone = load(tmp_path)
        before = backbone.identity.weights_fingerprint
        with torch.no_grad():
            own = head(last_hidden(build_model("llama", "causal").base_model))[:, 0]
        close(backbone.read(IDS).reward, own)
        save_file({"v_head.summary.weight": torch.ones(1, 32)}, path)
        assert load(tmp_path).identity.weights_fingerprint != before

    def test_a_head_in_a_file_of_its_own_under_the_name_transformers_uses(self, tmp_path):
        save_rm(tmp_path, kind="causal")
        weight = torch.arange(32.0)[None] / 32
        save_file({"score.weight": weight}, tmp_path / "value_head.safetensors")
        torch.testing.assert_close(load(tmp_path).head.weight, weight)

    @pytest.mark.parametrize("name", ["score", "v_head.summary"])
    def test_several_maps_with_relu_between_are_read_before_the_last(self, tmp_path, name):
        head = nn.Sequential(random_linear(24, 32, 1), nn.ReLU(), random_linear(1, 24, 2))
        base = save_with_head(tmp_path, name, head)
        backbone = load(tmp_path)
        assert backbone.identity.head_module == name + ".2" and backbone.embedding_size == 24 + 32
        reading = backbone.read(IDS)
        with torch.no_grad():
            close(reading.embedding[:, :24], head[:2](last_hidden(base)))
            close(reading.embedding[:, 24:], mean_hidden(base))
            close(reading.reward, head(last_hidden(base))[:, 0])

    @pytest.mark.parametrize(
        "head",
        [
            nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 1)),
            nn.Sequential(nn.Linear(32, 8), nn.LayerNorm(8), nn.Linear(8, 1)),
        ],
        ids=["no ReLU", "LayerNorm"],
    )
    def test_several_maps_of_unknown_kind_are_refused(self, tmp_path, head):
        save_with_head(tmp_path, "score", head)
        with refuses("parts that its tensors do not tell how to compute"):
            load(tmp_path)

    def test_a_head_of_another_size_is_refused(self, tmp_path):
        save_with_head(tmp_path, "v_head", random_linear(1, 16, 1))
        with refuses("takes 16 numbers, but its base model gives 32"):
            load(tmp_path)

    def test_a_model_type_without_a_classifier(self, tmp_path):
        head = random_linear(1, 32, 1)
        base = save_with_head(tmp_path, "v_head", head, family="cohere")
        with torch.no_grad():
            close(load(tmp_path).read(IDS).reward, head(last_hidden(base))[:, 0])


class TestRule:
    def test_the_configured_name_comes_first_and_an_override_stands_alone(self):
        assert head_names({}, None) == HEAD_RULE
        assert head_names({"value_head_prefix": "value_head"}, None)[:2] == ("value_head", "score")
        assert sorted(head_names({"value_head_prefix": "value_head"}, None)) == sorted(HEAD_RULE)
        assert head_names({"value_head_prefix": "value_head"}, "my.head") == ("my.head",)

    def test_the_override_wins(self, tmp_path):
        head = random_linear(1, 32, 1)
        save_with_head(tmp_path, "v_head", head, kind="classifier")
        base = build_model("llama").base_model
        with refuses(r"more than one reward head: score, and v_head \(2 weights\).*`head=\"score\"`, or another"):
            load(tmp_path)
        assert load(tmp_path, head="score").identity.head_module == "score"
        backbone = load(tmp_path, head="v_head")
        assert backbone.identity.head_module == "v_head"
        with torch.no_grad():
            close(backbone.read(IDS).reward, head(last_hidden(base))[:, 0])

    def test_names_of_transformers_own_classes(self, tmp_path):
        names = {"llama": "score", "bert": "classifier", "deberta-v2": "classifier", "roberta": "classifier.out_proj"}
        for family, name in (names | {"electra": "classifier.out_proj"}).items():
            found = stored_head(open_checkpoint(str(save_rm(tmp_path / family, family))), HEAD_RULE)
            assert found is not None and found.name == name and found.rows == 1


class Doubled(nn.Module):
    """A model as a repository might bring it: its own class, its own output, its head called `judge`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build_model("llama", "base")
        self.judge = random_linear(1, 32, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.judge(hidden)[..., 0]  # a score for every token


class TestRegister:
    @pytest.fixture(autouse=True)
    def clean(self):
        yield
        for name in ("mine", "other"):
            families.forget_family(name)

    def folder(self, tmp_path: Path) -> Path:
        save_rm(tmp_path, kind="causal")
        edit_config(tmp_path, model_type="doubled", architectures=["Doubled"])
        return tmp_path

    def test_a_family_of_ones_own(self, tmp_path):
        folder = self.folder(tmp_path)
        with pytest.raises(BackboneError):
            load(folder)
        seen: list[Checkpoint] = []

        def load_doubled(checkpoint: Checkpoint, settings: BackboneConfig) -> Loaded:
            seen.append(checkpoint)
            model = Doubled()
            return Loaded(model, model.judge, "judge")

        register_family("mine", lambda config: config.get("model_type") == "doubled", load_doubled)
        backbone = load(folder)
        assert seen[0].folder == folder and backbone.identity.head_module == "judge"
        with torch.no_grad():
            own = Doubled().judge(last_hidden(build_model("llama", "base")))[:, 0]
        reading = backbone.read(IDS)
        close(reading.reward, own)
        # The model has no configuration of its own; its blocks are found by that of the part inside.
        close(reading.embedding[:, 32:], mean_hidden(build_model("llama", "base")))
        assert backbone.identity.layers == (1,)
        again = load_backbone(BackboneConfig(str(folder)), TextConfig(max_length=128), blocks=(2,))
        assert again.identity.layers == (2,)

    def test_the_last_registered_is_asked_first_and_a_name_replaces(self):
        def nothing(checkpoint: Checkpoint, settings: BackboneConfig) -> Loaded:
            raise NotImplementedError

        def also_nothing(checkpoint: Checkpoint, settings: BackboneConfig) -> Loaded:
            raise NotImplementedError

        register_family("mine", lambda config: True, nothing)
        register_family("other", lambda config: "x" in config, also_nothing)
        assert families.find_family({"x": 1}) is also_nothing and families.find_family({}) is nothing
        register_family("mine", lambda config: False, nothing)
        families.forget_family("other")
        assert families.find_family({"x": 1}) is None

    def test_its_reading_is_checked_too(self, tmp_path):
        def load_wrong(checkpoint: Checkpoint, settings: BackboneConfig) -> Loaded:
            model = Doubled()
            judge = model.judge
            model.forward = lambda input_ids, attention_mask: torch.sigmoid(  # type: ignore[method-assign]
                judge(model.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)[..., 0]
            )
            return Loaded(model, judge, "judge")

        register_family("mine", lambda config: config.get("model_type") == "doubled", load_wrong)
        with refuses("the model applies a sigmoid after its head"):
            load(self.folder(tmp_path)).read(IDS)


def test_tokenizers_of_tests_fit_their_models():
    for family in ("llama", "bert", "roberta"):
        assert len(tokenizer_for(family)) <= build_model(family, "base").get_input_embeddings().weight.shape[0]
