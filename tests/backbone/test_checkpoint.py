from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from tests.tiny import build_model, save_rm

from ebrm.backbone import open_checkpoint
from ebrm.errors import BackboneError


def test_lists_tensors_without_loading_and_reads_one(tmp_path: Path) -> None:
    model = build_model("llama")
    found = open_checkpoint(str(save_rm(tmp_path)))
    assert set(found.tensors) == set(model.state_dict())
    assert found.tensors["score.weight"].shape == (1, 32) and found.tensors["score.weight"].dtype == "F32"
    torch.testing.assert_close(found.read("score.weight"), model.state_dict()["score.weight"])
    assert found.config["model_type"] == "llama" and found.adapter is None and found.revision is None


def test_reads_shards_through_their_index_and_nothing_else(tmp_path: Path) -> None:
    build_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    save_file({"stray": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    found = open_checkpoint(str(tmp_path))
    assert len(found.weights) > 1 and "stray" not in found.tensors and "score.weight" in found.tensors
    assert found.read("score.weight").shape == (1, 32)
    found.weights[0].unlink()
    with pytest.raises(BackboneError, match="lacks weight files that its index lists: model-00001"):
        open_checkpoint(str(tmp_path))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="neither config.json nor adapter_config.json"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", ["{not json", "[1]", "\udcff"])
def test_a_damaged_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BackboneError, match="config.json (is not valid JSON|holds a list)"):
        open_checkpoint(str(tmp_path))


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    save_rm(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"only as pickles \(pytorch_model.bin\).*save_pretrained"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(BackboneError, match="has no weights in safetensors"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_weights_cut_short(tmp_path: Path, keep: int) -> None:
    path = save_rm(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        BackboneError, match="model.safetensors (is not a readable safetensors file|has .* it was cut short)"
    ):
        open_checkpoint(str(tmp_path))


class TestHub:
    def hub(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def snapshot_download(name: str, **options: Any) -> str:
            asked.update(options, name=name)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    def test_a_snapshot_carries_its_commit_and_no_pickles_or_code_are_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "models--o--m" / "snapshots" / "abc123"
        save_rm(folder)
        asked = self.hub(monkeypatch, folder)
        found = open_checkpoint("o/m", "main")
        assert found.revision == "abc123" and found.name == "o/m" and "score.weight" in found.tensors
        assert asked["name"] == "o/m" and asked["revision"] == "main"
        assert not {"*.bin", "*.py", "*.pt"} & set(asked["allow_patterns"])
        open_checkpoint("o/m", with_code=True)
        assert "*.py" in asked["allow_patterns"]

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (
                errors.RepositoryNotFoundError,
                r"There is no reward model o/m: no folder .* no such repository on the Hub",
            ),
            (errors.GatedRepoError, "o/m is on the Hub but gated"),
            (errors.RevisionNotFoundError, "o/m has no revision 'v9'"),
            (errors.LocalEntryNotFoundError, r"There is no reward model o/m: .*the Hub could not be reached"),
            (errors.HFValidationError, r"There is no reward model o/m: .*not a Hub name"),
        ],
    )
    def test_what_is_not_there_is_one_paragraph(
        self, monkeypatch: pytest.MonkeyPatch, error: type[Exception], said: str
    ) -> None:
        self.hub(monkeypatch, error.__new__(error))  # their constructors want HTTP responses
        with pytest.raises(BackboneError, match=said) as caught:
            open_checkpoint("o/m", "v9")
        assert "\n" not in str(caught.value)
