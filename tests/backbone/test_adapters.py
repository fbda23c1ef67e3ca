"""Adapters with tokens of their own, and base models that have moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.backbone.shared import close, load, refuses
from tests.tiny import byte_tokenizer, save_rm
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ebrm.backbone import Backbone, reload_backbone
from ebrm.backbone.adapters import adapter_vocabulary
from ebrm.backbone.checkpoint import open_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]
ROWS = 267  # of the tiny models' vocabulary
IDS = [[5, 6, 7, ROWS + 2], [9, 8], [ROWS, 4, ROWS + 1]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rm(tmp_path_factory.mktemp("base"), kind="causal")


def grown(base: Path, folder: Path, rows: int, ids: list[list[int]], save: str | bool = "auto", **lora: Any) -> Tensor:
    """Save an adapter on the base model with a vocabulary of that size; the rewards [n] of ids before it was saved."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.resize_token_embeddings(rows, mean_resizing=False)
    given = {"target_modules": ["q_proj"], "modules_to_save": ["score"]} | lora
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, **given)).eval()
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta")):
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder, save_embedding_layers=save)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return torch.cat([adapted(input_ids=torch.tensor([row])).logits[:, 0] for row in ids])


GROWN: dict[str, dict[str, Any]] = {
    "saved beside it": {},
    "trained whole": {"modules_to_save": ["score", "embed_tokens"]},
    "changed by low rank": {"target_modules": ["q_proj", "embed_tokens"]},
    "some rows trained": {"trainable_token_indices": [ROWS, ROWS + 1, ROWS + 2], "save": False},
    "some rows trained, by module": {"trainable_token_indices": {"embed_tokens": [3, ROWS, ROWS + 1, ROWS + 2]}},
    "rounded up": {"rows": 320},
}


@pytest.mark.parametrize("how", GROWN)
def test_tokens_that_an_adapter_added_are_its_own(base: Path, tmp_path: Path, how: str) -> None:
    given = {"rows": ROWS + 3} | GROWN[how]
    expected = grown(base, tmp_path, given.pop("rows"), IDS, given.pop("save", "auto"), **given)
    backbone = load(tmp_path)
    close(backbone.read(IDS).reward, expected)
    assert len(backbone.tokenizer) == ROWS + 3  # the adapter's, whose tokens these are
    assert backbone.read_texts("x <a> y", "<c>")[1] == (None,)


def test_a_smaller_vocabulary_too(base: Path, tmp_path: Path) -> None:
    expected = grown(base, tmp_path, 200, [[5, 6], [199]])
    backbone = load(tmp_path)
    assert backbone.model.get_input_embeddings().weight.shape[0] == 200
    close(backbone.read([[5, 6], [199]]).reward, expected)


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["q_proj", "embed_tokens"]}, {"trainable_token_indices": [ROWS + 1]}], ids=str
)
def test_new_tokens_without_embeddings_are_refused(base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    grown(base, tmp_path, ROWS + 3, IDS[1:2], save=False, **lora)
    with refuses(
        rf"more tokens than its base model .* has \({ROWS}\), and does not hold .* random numbers.*save_embedding"
    ):
        load(tmp_path)


def test_how_many_rows_an_adapter_needs(base: Path, tmp_path: Path) -> None:
    grown(base, tmp_path, ROWS + 3, IDS[1:2], target_modules=["q_proj", "embed_tokens"])
    adapter = open_checkpoint(str(tmp_path))
    assert adapter_vocabulary(adapter, "model.embed_tokens") == ROWS + 3
    assert adapter_vocabulary(adapter, "model.norm") is None


@pytest.mark.parametrize("name", ["score.bias", "score.weight", "model.layers.9.self_attn.q_proj.lora_A.weight"])
def test_a_tensor_of_the_adapter_that_nothing_takes_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    grown(base, tmp_path, ROWS, IDS[1:2])
    plain = load(tmp_path).read([[5, 6]]).reward
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    if name == "score.bias":  # the head can use it
        save_file(tensors | {f"base_model.model.{name}": torch.ones(1)}, path)
        close(load(tmp_path).read([[5, 6]]).reward, plain + 1)
    elif name == "score.weight":  # beside the one that was trained
        save_file(tensors | {"base_model.model.v_head.weight": torch.ones(1, 32)}, path)
        with refuses("more than one reward head: score, and v_head"):
            load(tmp_path)
    else:
        save_file(tensors | {f"base_model.model.{name}": torch.ones(4, 32)}, path)
        with refuses("no place for: model.layers.9.self_attn.q_proj.lora_A"):
            load(tmp_path)


class TestMoved:
    def moved(self, base: Path, tmp_path: Path) -> tuple[Path, Path, Tensor]:
        """An adapter whose base model is elsewhere than when it was trained, and its rewards."""
        there = Path(shutil.copytree(base, tmp_path / "there"))
        expected = grown(there, tmp_path / "adapter", ROWS, [[5, 6]])
        return tmp_path / "adapter", there.rename(tmp_path / "here"), expected

    def test_is_named(self, base: Path, tmp_path: Path) -> None:
        adapter, here, expected = self.moved(base, tmp_path)
        with refuses(
            r"is an adapter on .*there, which could not be opened. .* If it lies elsewhere now, .*`base=\"FOLDER\""
        ):
            load(adapter)
        backbone = load(adapter, base=str(here))
        close(backbone.read([[5, 6]]).reward, expected)
        assert backbone.identity.base == str(here)
        again = self.again(backbone)  # a model that was fitted on it finds it
        assert again.identity == backbone.identity
        here.rename(tmp_path / "farther")
        assert self.again(backbone, base=str(tmp_path / "farther")).identity.mismatch(backbone.identity) is None
        with refuses("is an adapter on .*gone, which could not be opened") as caught:
            load(adapter, base=str(tmp_path / "gone"))
        assert "elsewhere" not in str(caught.value)

    def again(self, backbone: Backbone, **changes: Any) -> Backbone:
        return reload_backbone(backbone.identity.to_dict(), backbone.text_rule.identity(), {"device": "cpu", **changes})

    def test_an_adapter_that_names_its_base_is_stored_without_one(self, base: Path, tmp_path: Path) -> None:
        grown(base, tmp_path, ROWS, IDS[1:2])
        assert "base" not in load(tmp_path).identity.to_dict()

    @pytest.mark.parametrize("name", ["whole", "demo"])
    def test_only_adapters_have_one(self, base: Path, tmp_path: Path, name: str) -> None:
        save_rm(tmp_path / "whole")
        model = "demo" if name == "demo" else tmp_path / name
        with refuses(rf"A base model is named .*, but .*{name} is no LoRA adapter: it needs none"):
            load(model, base=str(base))

    def test_an_adapter_on_an_adapter(self, base: Path, tmp_path: Path) -> None:
        grown(base, tmp_path / "one", ROWS, IDS[1:2])
        grown(base, tmp_path / "two", ROWS, IDS[1:2])
        with refuses("base model .*two of the adapter .*one is an adapter itself. Merge it"):
            load(tmp_path / "one", base=str(tmp_path / "two"))


class TestFiles:
    def test_a_pickled_adapter_is_refused_with_how_to_convert_it(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        grown(base, tmp_path, ROWS, IDS[1:2])
        wanted = load(tmp_path).read([[5, 6]]).reward
        path = tmp_path / "adapter_model.safetensors"
        torch.save(load_file(path), tmp_path / "adapter_model.bin")
        path.unlink()
        with refuses(r"only as pickles \(adapter_model.bin\).*Convert once, in that folder: python -c '") as caught:
            load(tmp_path)
        code = str(caught.value).partition("python -c '")[2].removesuffix("'")
        monkeypatch.chdir(tmp_path)
        exec(code, {})  # what is recommended works
        close(load(tmp_path).read([[5, 6]]).reward, wanted)

    def test_a_whole_model_beside_an_adapter_is_ambiguous(self, base: Path, tmp_path: Path) -> None:
        grown(base, tmp_path, ROWS, IDS[1:2])
        save_rm(tmp_path)
        with refuses(
            r"holds an adapter \(adapter_config.json\) and a whole model \(model.safetensors\), and it cannot"
        ):
            load(tmp_path)

    def test_other_weights_in_an_adapter_s_folder_are_not_the_adapter_s(self, base: Path, tmp_path: Path) -> None:
        grown(base, tmp_path, ROWS, IDS[1:2])
        before = load(tmp_path).identity
        save_file({"score.weight": torch.ones(2, 32)}, tmp_path / "optimizer.safetensors")
        assert load(tmp_path).identity == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("adapter_config.json", {"layer_replication": [[0, 2], [0, 2]]}, "repeats blocks .*layer_replication"),
        ("adapter_config.json", {"r": [1]}, "does not fit its base model"),
        ("adapter_config.json", {"base_model_name_or_path": 3}, "_name_or_path is 3; expected a valid string"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json cannot be read: it is not UTF-8"),
        ("tokenizer.json", b"[" * 3000, "tokenizer.json cannot be read: it is nested more than"),
        ("tokenizer.json", b"{}", "The tokenizer of .* cannot be loaded from"),
    ],
)  # fmt: skip
def test_files_that_peft_and_transformers_cannot_read_are_named(
    base: Path, tmp_path: Path, file: str, content: bytes | dict[str, Any], said: str
) -> None:
    grown(base, tmp_path, ROWS, IDS[1:2])
    path = tmp_path / file
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)
    with refuses(said):
        load(tmp_path)
