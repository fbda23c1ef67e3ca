"""Exported folders: complete or not there, and what loads from them scores the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from tests.integrations.autos import FAMILIES, PROMPTS, RESPONSES, as_trl, fitted
from tests.linear import QUICK
from tests.terminal import preference_rows
from tests.tiny import byte_tokenizer, edit_config, save_rm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ebrm.errors import BackboneError, DataError, ModelError
from ebrm.fitting import fit
from ebrm.integrations import EBRMConfig, EBRMForSequenceClassification, export
from ebrm.model import EnergyRewardModel
from ebrm.utils.files import sha256_file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def standalone(root: Path) -> Path:
    return export(fitted(root), root / "standalone", standalone=True)


@pytest.fixture(scope="module")
def referring(root: Path) -> Path:
    return export(fitted(root), root / "referring")


def scores(folder: Path, **options: Any) -> torch.Tensor:
    """What TRL would read of a folder, loaded as it loads one."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options)
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    with torch.inference_mode():
        return model(**as_trl(tokenizer, PROMPTS, RESPONSES)).logits[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_kinds_score_as_the_model_does(root: Path, family: str, tmp_path: Path) -> None:
    model = fitted(root, family)
    expected = model.score(PROMPTS, RESPONSES).reward
    for kind in (True, False):
        folder = export(model, tmp_path / str(kind), standalone=kind)
        torch.testing.assert_close(scores(folder), expected, atol=1e-5, rtol=0)
        assert type(AutoConfig.from_pretrained(folder)) is EBRMConfig
        assert "AutoModelForSequenceClassification" in (folder / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False", "True"]


@pytest.mark.parametrize("bos", ["strip", "keep"])
def test_a_text_rule_that_is_not_the_tokenizer_s_own(root: Path, tmp_path: Path, bos: str) -> None:
    model = fitted(root, "llama", bos=bos, eos="append", template="plain" if bos == "strip" else None)
    folder = export(model, tmp_path / "m", standalone=True)
    torch.testing.assert_close(scores(folder), model.score(PROMPTS, RESPONSES).reward, atol=1e-5, rtol=0)


def test_a_standalone_folder_needs_nothing_else(root: Path, tmp_path: Path) -> None:
    model = fitted(root, "qwen3")
    expected = model.score(PROMPTS, RESPONSES).reward
    made = export(model, tmp_path / "m", standalone=True)
    here = Path(model.record.backbone["name"])
    here.rename(tmp_path / "elsewhere")
    try:
        moved = Path(shutil.move(made, tmp_path / "delta"))
        torch.testing.assert_close(scores(moved), expected, atol=1e-5, rtol=0)
    finally:
        (tmp_path / "elsewhere").rename(here)
    with pytest.raises(BackboneError, match="There is no reward model"):
        AutoModelForSequenceClassification.from_pretrained(_gone(export(model, tmp_path / "r")))


def _gone(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, backbone=config["backbone"] | {"name": "no-such/rm"})
    return folder


def test_the_license_and_its_files_are_the_reward_model_s(root: Path, tmp_path: Path) -> None:
    folder = save_rm(tmp_path / "secret" / "my_rm")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: rm-terms\nbase_model: o/base\n---\n")
    (folder / "LICENSE.md").write_text("Terms.")
    model = fit(str(folder), preference_rows(24), head=QUICK).model
    made = export(model, tmp_path / "standalone", standalone=True)
    here = export(model, tmp_path / "referring")
    assert (made / "LICENSE.md").read_text() == "Terms." and not (here / "LICENSE.md").exists()
    shutil.rmtree(folder)  # what was known goes on with the copy
    again = AutoModelForSequenceClassification.from_pretrained(made)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "LICENSE.md").read_text() == "Terms."
    for name, relation in (("standalone", "finetune"), ("referring", "adapter"), ("again", "finetune")):
        card = ModelCard.load(tmp_path / name / "README.md")
        data = card.data.to_dict()
        assert data["license_name"] == "rm-terms" and data["base_model"] == ["o/base"], name
        assert data["base_model_relation"] == relation and data["pipeline_tag"] == "text-classification"
        text = (tmp_path / name / "README.md").read_text()
        assert "# A head over the embeddings of my\\_rm\n" in text or "refinement of my\\_rm\n" in text
        assert "secret" not in text and str(tmp_path) not in text
        assert ("license files are copied" in text) == (name != "referring")


def test_a_folder_that_fit_wrote_loads_as_it_is(root: Path, tmp_path: Path) -> None:
    model = fitted(root)
    model.save_pretrained(tmp_path / "m")
    torch.testing.assert_close(scores(tmp_path / "m"), model.score(PROMPTS, RESPONSES).reward, atol=1e-5, rtol=0)
    loaded = EBRMForSequenceClassification.from_pretrained(tmp_path / "m")
    assert loaded.config._name_or_path == model.record.backbone["name"]


def test_a_tokenizer_that_writes_otherwise_is_told(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = fitted(root, "llama", bos="strip")
    model.save_pretrained(tmp_path / "m")
    EBRMForSequenceClassification.from_pretrained(tmp_path / "m")
    assert "does not by itself render texts as the model was fitted on" in caplog.text
    caplog.clear()
    EBRMForSequenceClassification.from_pretrained(export(model, tmp_path / "e"))
    assert not caplog.text


def test_the_energy_model_reads_an_exported_folder(root: Path, standalone: Path) -> None:
    model, loaded = fitted(root), EnergyRewardModel.from_pretrained(standalone)
    assert loaded.fingerprint() == model.fingerprint()
    assert json.dumps(loaded.record.to_dict(), sort_keys=True) == json.dumps(model.record.to_dict(), sort_keys=True)


@pytest.mark.parametrize("kind", [True, False], ids=["standalone", "referring"])
def test_precision_and_device_are_those_asked_for(root: Path, tmp_path: Path, kind: bool) -> None:
    folder = export(fitted(root), tmp_path / "m", standalone=kind)
    exact, half = scores(folder), scores(folder, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, atol=0.3, rtol=0.1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.base.config._attn_implementation == "eager"
    expected = {name: tensor.dtype for name, tensor in fitted(root).head.state_dict().items()}
    assert {name: t.dtype for name, t in model.energy.head.state_dict().items()} == expected
    again = AutoModelForSequenceClassification.from_pretrained(folder, device_map={"": "cpu"}, output_loading_info=True)
    assert again[0].dtype == torch.float32


def test_saved_again_in_parts_it_is_the_same(standalone: Path, tmp_path: Path) -> None:
    model = EBRMForSequenceClassification.from_pretrained(standalone)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    again = EBRMForSequenceClassification.from_pretrained(tmp_path / "m")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_push_to_hub_uploads_the_whole_folder(standalone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EBRMForSequenceClassification.from_pretrained(standalone)
    sent: dict[str, Any] = {}

    def upload(self: Any, folder: Any, repo_id: str, *_: Any, **__: Any) -> None:
        sent[repo_id] = {path.name for path in Path(folder).iterdir()}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(type(model), "_upload_modified_files", upload)
    model.push_to_hub("me/mine")
    model.save_pretrained(standalone.parent / "pushed", push_to_hub=True, repo_id="me/other")
    files = {"README.md", "config.json", "energy.safetensors", "model.safetensors"}
    assert {name: found >= files for name, found in sent.items()} == {"me/mine": True, "me/other": True}


class TestRefused:
    @pytest.mark.parametrize("name", ["base.score.weight", "base.model.layers.0.mlp.up_proj.weight"])
    @pytest.mark.parametrize("lost", [True, False], ids=["lost", "of another shape"])
    def test_weights_are_never_random(self, standalone: Path, tmp_path: Path, name: str, lost: bool) -> None:
        folder = Path(shutil.copytree(standalone, tmp_path / "m"))
        weights = load_file(folder / "model.safetensors")
        taken = weights.pop(name)
        weights |= {} if lost else {name: taken.repeat(2, 1)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        edit_json(
            folder / "config.json",
            lambda values: values["sha256"].update({"model.safetensors": sha256_file(folder / "model.safetensors")}),
        )
        with pytest.raises(BackboneError, match=f"lacks weights that the model needs: .*{name}"):
            AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=not lost)

    def test_another_energy(self, standalone: Path, root: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(standalone, tmp_path / "m"))
        fitted(root, "qwen3").save_pretrained(tmp_path / "q")
        shutil.copy(tmp_path / "q" / "energy.safetensors", folder)
        with pytest.raises(ModelError, match="energy.safetensors is damaged or belongs to another config"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_options_that_need_the_weights_in_the_folder(self, root: Path, tmp_path: Path) -> None:
        folder = export(fitted(root), tmp_path / "m")
        with pytest.raises(ModelError, match="quantization_config cannot be used .* --standalone"):
            EBRMForSequenceClassification.from_pretrained(folder, quantization_config={"load_in_8bit": True})
        with pytest.raises(ModelError, match="device_map is .* loaded on one device"):
            EBRMForSequenceClassification.from_pretrained(folder, device_map={"base.model": 0, "base.score": 1})
        with pytest.raises(ModelError, match="subfolder is not supported"):
            EBRMForSequenceClassification.from_pretrained(folder, subfolder="x")

    def test_a_base_that_transformers_cannot_build(self, root: Path, tmp_path: Path) -> None:
        model = fitted(root).with_backbone()
        model.backbone.model.extra = torch.nn.Linear(2, 2)
        with pytest.raises(ModelError, match="cannot be written into a standalone folder"):
            export(model, tmp_path / "m", standalone=True)
        assert not list(tmp_path.iterdir())
        torch.testing.assert_close(
            scores(export(model, tmp_path / "m")), model.score(PROMPTS, RESPONSES).reward, atol=1e-5, rtol=0
        )

    def test_a_folder_that_is_taken_and_a_full_disk(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "x").write_text("mine")
        with pytest.raises(DataError, match="exists already and is not empty"):
            export(fitted(root), tmp_path)
        with pytest.raises(DataError, match="is a file"):
            export(fitted(root), tmp_path / "x")
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            export(fitted(root), tmp_path / "m")
        assert [path.name for path in tmp_path.iterdir()] == ["x"]  # nothing half-written stays


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_base(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: edit_json(folder / "config.json", lambda values: values["base"]["config"].update(changes))


def edit_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[next(iter(weights))].mul_(1.5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# What is changed, words of the refusal, and whether a folder that refers to its base RM has it, too.
EDITS: dict[str, tuple[Callable[[Path], Any], str, bool]] = {
    "rotary base": (edit_base(rope_theta=123.0), r"describes \(`base`\) is not the one", False),
    "activation": (edit_base(hidden_act="gelu"), r"describes \(`base`\) is not the one", False),
    "no description": (lambda f: edit_json(f / "config.json", lambda v: v.update(base="x")), "`base`", False),
    "no checksums": (lambda f: edit_json(f / "config.json", lambda v: v.pop("sha256")), "states no checksums", True),
    "weights": (edit_weights, "model.safetensors of .* is damaged or was edited", False),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors", False),
    "more weights": (lambda f: save_file({}, f / "model-1.safetensors"), "holds model-1.safetensors, which", False),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds adapter_config.json, which", True),
    "merges": (
        lambda f: edit_json(f / "tokenizer.json", lambda v: v["model"]["merges"].pop()),
        "tokenizer.json of .* was edited", True,
    ),
    "added tokens": (lambda f: (f / "added_tokens.json").write_text("{}"), "holds added_tokens.json, which", True),
    "template": (lambda f: (f / "chat_template.jinja").write_text("{{ 1 }}"), "chat_template.jinja of .* edited", True),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_export_that_was_changed_is_refused_with_the_part_that_differs(
    standalone: Path, referring: Path, tmp_path: Path, what: str
) -> None:
    change, said, both = EDITS[what]
    for folder in (standalone, referring) if both else (standalone,):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        change(copy)
        with pytest.raises(ModelError, match=said):
            AutoModelForSequenceClassification.from_pretrained(copy)


def test_an_export_moved_renamed_and_written_again_is_the_same(standalone: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(standalone, tmp_path / "elsewhere")
    edit_base(transformers_version="0", _name_or_path="x", id2label={"0": "good"}, dtype=None)(copy)
    edit_config(copy, transformers_version="0", _name_or_path="x")
    edit_json(copy / "tokenizer_config.json", lambda values: values.update(name_or_path="x"))
    (copy / "README.md").write_text("Mine.")
    (copy / "pytorch_model.bin").write_bytes(b"no pickle is read")
    model = EBRMForSequenceClassification.from_pretrained(copy, use_safetensors=False)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, EBRMForSequenceClassification.from_pretrained(standalone)(ids).logits)
    tokenizer = byte_tokenizer()
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")  # whichever the user puts beside it
    again = EBRMForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(ids).logits, model(ids).logits)
