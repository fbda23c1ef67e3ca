from __future__ import annotations

import pytest

from ebrm.errors import FeaturesError
from ebrm.features import manifest as manifests
from ebrm.features import read_manifest
from ebrm.features.manifest import describe, difference
from ebrm.utils.files import write_json


def manifest(**changes):
    values = {
        "origin": "extracted", "backbone": None, "text": None, "data": None, "embedding_dtype": "float32",
        "embedding_size": 2, "shard_rows": 4, "items": 9, "pairs": 3,
    }  # fmt: skip
    return describe(**(values | changes))


def test_shards_are_counted_with_the_last_one_short():
    for items, rows in ((0, []), (1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])):
        made = manifest(items=items)
        assert [manifests.rows_of_shard(made, number) for number in range(manifests.shard_count(made))] == rows


def test_differences_name_the_field_and_both_sides():
    assert difference({"a": {"b": [1, 2]}, "c": None}, {"a": {"b": [1, 2]}}, "here", "there") is None
    said = difference({"a": {"b": 1}, "c": "x", "d": 0}, {"a": {"b": 2}, "c": None, "d": 0}, "here", "there")
    assert said == 'a.b is 1 for here and 2 for there; c is "x" for here and not stated for there'
    long = difference({"a": "x" * 5000}, {"a": "y" * 5000}, "l", "r")
    assert len(long) < 300 and "…" in long


def test_only_what_both_sides_state_is_compared_if_so_wanted():
    left, right = {"a": 1, "b": None, "c": 3}, {"a": 1, "b": 2, "d": 4}
    assert difference(left, right, "l", "r", common=True) is None
    assert difference(left, right | {"c": 5}, "l", "r", common=True) == "c is 3 for l and 5 for r"
    assert difference(left, right | {"c": 5}, "l", "r", common=True, ignore=("c",)) is None


@pytest.mark.parametrize(
    ("field", "digest"),
    [("name", "weights_fingerprint"), ("revision", "weights_fingerprint"), ("template", "template_sha256")],
)
def test_a_digest_stands_for_what_it_decides(field, digest):
    left, right = {"in": {field: "x", digest: "1"}}, {"in": {field: "y", digest: "1"}}
    assert difference(left, right, "l", "r") is None
    assert f"in.{digest}" in difference(left, {"in": right["in"] | {digest: "2"}}, "l", "r")
    assert f"in.{field}" in difference({"in": {field: "x"}}, right, "l", "r", common=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "not the manifest of an ebrm features folder"),
        (b'{"format": "other"}', "not the manifest of an ebrm features folder"),
        (b'{"format": "ebrm-features", "format_version": 99}', "format version 99; this ebrm reads version 1"),
        (b'{"format": "ebrm-features", "format_version": 1}', "manifest.json: origin is missing. Copy the folder"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(FeaturesError, match=said):
        read_manifest(tmp_path)


@pytest.mark.parametrize("changes", [{"items": -1}, {"items": "9"}, {"shard_rows": 0}, {"pairs": 1.5}, {"items": True}])
def test_counts_that_cannot_be_are_refused(tmp_path, changes):
    write_json(tmp_path / "manifest.json", manifest() | changes)
    with pytest.raises(FeaturesError, match=f"manifest.json: {next(iter(changes))} is .*; expected a"):
        read_manifest(tmp_path)


def test_files_outside_the_folder_are_never_looked_at(tmp_path):
    made = manifest(complete=True, items=1)
    made["files"] = {"../secret": {"bytes": 1, "sha256": "0" * 64}}
    write_json(tmp_path / "manifest.json", made)
    looked_at = {"items.parquet", "pairs.parquet", "shard-00000.safetensors"}
    assert set(manifests.find_faults(tmp_path, read_manifest(tmp_path), verify=True)) == looked_at


@pytest.mark.parametrize(
    ("origin", "said"),
    [("extracted", "`ebrm features` again"), ("imported", "mport again"), ("memory", "rite them again")],
)
def test_the_remedy_is_that_of_the_origin(tmp_path, origin, said):
    made = manifest(origin=origin)
    assert said in manifests.fault_message(tmp_path, made, {"x": manifests.MISSING})
    assert "Delete" not in manifests.fault_message(tmp_path, made, {"x": manifests.MISSING})
    assert "Delete" in manifests.fault_message(tmp_path, made, {"x": "is damaged: …"})
    many = manifests.fault_message(tmp_path, made, {f"shard-{n}": "is damaged: …" for n in range(9)})
    assert "and 4 more files" in many
