from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.backbone.shared import refuses

from ebrm.backbone import BackboneIdentity
from ebrm.backbone.identity import fingerprint

SKYWORK = BackboneIdentity(
    "Sky/RM", "c0ffee" * 7, "a" * 64, "Qwen3ForSequenceClassification", "score", "bfloat16", "sdpa"
)


def test_round_trip():
    assert BackboneIdentity.from_dict(SKYWORK.to_dict()) == SKYWORK
    with refuses("lacks head_module, dtype"):
        BackboneIdentity.from_dict({k: v for k, v in SKYWORK.to_dict().items() if k not in ("dtype", "head_module")})


def test_layers_are_a_list_in_json_and_were_not_stated_where_there_are_none():
    read = replace(SKYWORK, layers=(9, 19))
    stored = json.loads(json.dumps(read.to_dict()))
    assert stored["layers"] == [9, 19] and BackboneIdentity.from_dict(stored) == read
    assert "layers" not in SKYWORK.to_dict() and BackboneIdentity.from_dict(SKYWORK.to_dict()).layers == ()
    assert BackboneIdentity.from_dict(SKYWORK.to_dict() | {"layers": []}) == SKYWORK


def test_other_layers_are_another_embedding():
    read = replace(SKYWORK, layers=(9, 19))
    assert read.mismatch(read) is None
    said = read.mismatch(SKYWORK, ours="loaded now", theirs="in the features")
    assert said is not None and said.startswith("the embedding differs: Sky/RM@")
    assert said.endswith("; layers is 9,19 loaded now and none in the features")
    assert read.mismatch(replace(read, layers=(9,))) is not None


@pytest.mark.parametrize("field", ["weights_fingerprint", "head_module", "architecture"])
def test_a_mismatch_names_both_sides(field):
    other = replace(SKYWORK, name="Other/RM", **{field: "b" * 64})
    said = SKYWORK.mismatch(other, ours="loaded now", theirs="in the features")
    assert said is not None and "Sky/RM@c0ffeec0ffee loaded now, Other/RM@c0ffeec0ffee in the features" in said
    assert f"{field} is {getattr(SKYWORK, field)[:12]}" in said and "and bbbbbbbbbbbb in the features" in said


def test_names_never_count_and_precision_only_where_it_must_be_exact():
    other = replace(SKYWORK, name="/models/copy", revision=None, dtype="float32", attention="eager")
    assert SKYWORK.mismatch(other) is None
    said = SKYWORK.mismatch(other, exact=True)
    assert (
        said is not None and "dtype is bfloat16 here and float32 there; attention is sdpa here and eager there" in said
    )


def test_fingerprint_sees_bytes_and_names_and_no_order(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1" * 100_000)
    two.write_bytes(b"2")
    base = fingerprint([("one", one), ("two", two)])
    assert base == fingerprint([("two", two), ("one", one)]) and len(base) == 64
    assert base != fingerprint([("one", two), ("two", one)])
    assert base != fingerprint([("one", one)])
    assert base != fingerprint([("one", one), ("adapter/two", two)])
    one.write_bytes(b"1" * 99_999 + b"2")
    assert base != fingerprint([("one", one), ("two", two)])
