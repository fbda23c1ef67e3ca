"""Model cards: metadata of the Hub, the reward model's own license, and nothing about this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.test_hub import METRICS

from ebrm.backbone.provenance import license_files, provenance
from ebrm.card import model_card
from ebrm.heads import EnergyConfig
from ebrm.model import ModelRecord


def card(standalone: bool = False, **changes: Any) -> ModelCard:
    values = {
        "head": EnergyConfig(), "backbone": {"name": "owner/rm", "revision": "c0ffee"},
        "data": {"origin": "pairs.jsonl", "pairs": 10}, "metrics": METRICS,
    }  # fmt: skip
    record = ModelRecord(**{**values, **changes})
    return ModelCard(model_card(record.to_dict(), standalone))  # refuses what the Hub would


def save(folder: Path, front: str | None = None, license: str | None = None, **more: str) -> dict[str, Any]:
    """A folder of a reward model with a card and a license; the identity it would have."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"README.md": None if front is None else f"---\n{front}\n---\n# RM", "LICENSE": license}
    for name, text in (files | more).items():
        if text is not None:
            (folder / name).write_text(text)
    return {"name": str(folder), "revision": None}


LLAMA = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"


class TestMetadata:
    def test_of_a_model_of_the_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        save(tmp_path, "license: llama3.1\nbase_model: meta-llama/Llama-3.1-8B", **{"config.json": "{}"})
        asked: list[Any] = []

        def cached(name: str, file: str, revision: str | None) -> str:
            asked.append((name, file, revision))
            return str(tmp_path / file)

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
        data = card().data.to_dict()
        assert asked[0] == ("owner/rm", "config.json", "c0ffee")
        assert data["license"] == "llama3.1" and "license_name" not in data
        assert data["base_model"] == ["owner/rm"] and data["base_model_relation"] == "adapter"
        assert data["pipeline_tag"] == "text-classification" and data["library_name"] == "ebrm"
        assert card(standalone=True).data.to_dict()["base_model_relation"] == "finetune"

    def test_results_are_the_measured_ones(self) -> None:
        data = card(data={"origin": "Hub data set owner/prefs, split train", "pairs": 10}).data
        assert data.to_dict()["datasets"] == ["owner/prefs"]
        found = {(result.dataset_type, result.metric_name): result.metric_value for result in data.eval_results or []}
        assert found == {
            ("owner/prefs", "Accuracy of the refined reward"): 0.634,
            ("owner/prefs", "Accuracy of the base reward"): 0.512,
            ("owner/prefs", "Difference of the accuracies"): 0.122,
        }
        assert data.eval_results is not None and "1234 held-out pairs" in str(data.eval_results[0].dataset_name)

    @pytest.mark.parametrize("metrics", [{}, {"pairs": 0}, {"pairs": 3, "base": {"accuracy": float("nan")}}])
    def test_nothing_measured_is_no_result(self, metrics: dict[str, Any]) -> None:
        record = ModelRecord(head=EnergyConfig(), backbone={"name": "owner/rm", "revision": "c0ffee"})
        values = record.to_dict() | {"metrics": metrics}
        assert "model-index" not in model_card({**values, "metrics": {}})
        from ebrm.card import _results

        assert _results(values) is None

    @pytest.mark.parametrize(
        ("origin", "datasets", "shown"),
        [
            ("/srv/me/secret/pairs.jsonl", None, "pairs.jsonl"),
            ("data/a.jsonl, split train", None, "a.jsonl, split train"),
            ("/x/secret/a.jsonl, /y/secret/b.jsonl, …", None, "a.jsonl, b.jsonl, …"),
            (r"C:\data\secret\pairs.csv (3 files)", None, "pairs.csv (3 files)"),
            ("secret/my-features", None, "my-features"),
            ("Hub data set o/d, config c, split train", ["o/d"], "Hub data set o/d, config c, split train"),
            ("Hub data set o/d, split train; /x/secret/b.jsonl", ["o/d"], "Hub data set o/d, split train; b.jsonl"),
            ("Hub data set o/d, split a; Hub data set o/e, split b", ["o/d", "o/e"], "Hub data set o/e, split b"),
        ],
    )
    def test_data_are_named_without_folders(self, origin: str, datasets: list[str] | None, shown: str) -> None:
        made = card(data={"origin": origin, "pairs": 10, "sources": {"/a/secret/f.jsonl": 3, "owner/name": 7}})
        assert made.data.to_dict().get("datasets") == datasets
        assert shown in made.content and "secret" not in made.content and "| owner/name | 7 |" in made.content


class TestLicense:
    @pytest.mark.parametrize(
        ("front", "text", "expected"),
        [
            ("license: mit", None, {"license": "mit"}),
            ("license: [gemma]", None, {"license": "gemma"}),
            ("license: mit", LLAMA, {"license": "mit"}),
            (None, LLAMA, {"license": "llama3.1"}),
            ("tags: [x]", "Apache License\n   Version 2.0, January 2004", {"license": "apache-2.0"}),
            (
                "license: other\nlicense_name: qwen\nlicense_link: LICENSE", "QWEN",
                {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
            ),
            (
                None, "All rights are ours.",
                {"license": "other", "license_name": "license-of-the-reward-model", "license_link": "LICENSE"},
            ),
            (None, None, {"license": "other", "license_name": "unknown"}),
            ("license: [broken", None, {"license": "other", "license_name": "unknown"}),
            ("license: other", None, {"license": "other", "license_name": "unknown"}),
        ],
    )  # fmt: skip
    def test_is_the_reward_model_s(
        self, tmp_path: Path, front: str | None, text: str | None, expected: dict[str, str]
    ) -> None:
        identity = save(tmp_path / "rm", front, text)
        found = provenance(identity)
        assert {key: value for key, value in found.items() if key != "base_model"} == expected
        data = card(backbone=identity, standalone=True).data.to_dict()
        assert {key: data[key] for key in expected} == expected

    def test_a_link_to_a_file_that_is_not_copied_is_left_out(self, tmp_path: Path) -> None:
        identity = save(tmp_path / "rm", "license: other\nlicense_name: qwen\nlicense_link: LICENSE", "QWEN")
        assert "license_link" not in card(backbone=identity).data.to_dict()

    def test_what_nobody_knows_is_said(self) -> None:
        made = card(backbone={})
        assert made.data.to_dict()["license"] == "other" and made.data.to_dict()["license_name"] == "unknown"
        assert "Nothing beside the reward model says which license it has" in made.content
        assert "imported features" in made.content and "base_model" not in made.data.to_dict()

    def test_of_an_adapter_and_its_base_model(self, tmp_path: Path) -> None:
        base = save(tmp_path / "base", "license: gemma", "Gemma Terms of Use", NOTICE="n")
        stated = '{"base_model_name_or_path": "../base"}'
        adapter = save(tmp_path / "adapter", "license: mit", "MIT License", **{"adapter_config.json": stated})
        assert provenance(adapter)["license_name"] == "mit-and-gemma"
        assert set(license_files(adapter)) == {"LICENSE", "LICENSE-base", "NOTICE"}
        elsewhere = {**adapter, "base": base["name"]}
        (tmp_path / "adapter" / "README.md").unlink()
        (tmp_path / "adapter" / "LICENSE").unlink()
        assert provenance(elsewhere)["license"] == "gemma"

    def test_is_remembered_when_the_reward_model_is_gone(self, tmp_path: Path) -> None:
        kept = {"base_model": ["o/base"], "license": "mit"}
        data = card(backbone={"name": str(tmp_path / "gone"), "revision": None}, provenance=kept).data.to_dict()
        assert data["license"] == "mit" and data["base_model"] == ["o/base"]

    def test_of_the_demonstration(self) -> None:
        data = card(backbone={"name": "demo", "revision": None}).data.to_dict()
        assert data["license"] == "apache-2.0" and data["base_model"] == ["sentence-transformers/all-MiniLM-L6-v2"]


def test_base_models_are_names_of_the_hub_only(tmp_path: Path) -> None:
    identity = save(tmp_path / "rm", "base_model:\n- o/base\n- /srv/me/base\n- 3")
    assert provenance(identity)["base_model"] == ["o/base"]
    adapter = save(tmp_path / "a", **{"adapter_config.json": '{"base_model_name_or_path": "o/base"}'})
    assert provenance(adapter)["base_model"] == ["o/base"]


NAMES = st.text(st.sampled_from("ab_*`[]<>|#~!\\.- "), min_size=1, max_size=12).filter(lambda name: name.strip(". "))


@given(name=NAMES)
def test_a_folder_s_name_is_shown_as_it_is_without_its_path(name: str) -> None:
    name = name.replace("\\", "").strip() or "x"
    text = model_card(
        ModelRecord(
            head=EnergyConfig(), backbone={"name": f"/srv/secret/models/{name}", "revision": None},
            data={"origin": f"/srv/secret/{name}.jsonl"}, provenance={"license": "mit"},
        ).to_dict()
    )  # fmt: skip
    assert "secret" not in text
    body = text.partition("\n---\n")[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    title = next(tokens[k + 1] for k, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h1")
    shown = "".join(child.content for child in title.children or [])
    assert shown == f"Energy-based refinement of {' '.join(name.split())}"
    assert not [child for child in title.children or [] if child.type not in ("text", "text_special")]
