from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebrm.data import PreferenceConfig, read_rows
from ebrm.data.sources import open_source
from ebrm.errors import DataError

ROWS: list[dict[str, Any]] = [{"prompt": "p\u2028q 👩‍👩‍👧 \x00", "n": 1}, {"prompt": "é", "n": None}]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(source: Any, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    return list(read_rows(source, PreferenceConfig(**settings)))


def test_jsonl_keeps_every_character_and_counts_lines(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert read(str(path)) == [("a.jsonl:1", ROWS[0]), ("a.jsonl:2", ROWS[1])]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n" + json.dumps(ROWS[0]).encode() + b"\r\n\n" + b'{"n": 2}')
    assert read(path) == [("a.jsonl:2", ROWS[0]), ("a.jsonl:4", {"n": 2})]


def test_jsonl_is_streamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\nbroken\n')
    rows = read_rows(path)
    assert [next(rows), next(rows)] == [("a.jsonl:1", {"n": 1}), ("a.jsonl:2", {"n": 2})]
    with pytest.raises(DataError, match=r"a\.jsonl:3 is not JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"n": 1}\n{"n": 1,}\n', r"a\.jsonl:2 is not JSON.*column 9.*Correct or remove"),
        ("a.jsonl", b'{"n": 1}\n{"n": "cut', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"n": 1}\n[1]\n', r"a\.jsonl:2 holds list.*one JSON object.*name it \.json"),
        ("a.jsonl", b"3\n", r"a\.jsonl:1 holds int 3; every line must be one JSON object\.$"),
        ("a.jsonl", b'[\n{"n": 1}\n]\n', r"a\.jsonl:1 is not JSON.*name it \.json"),
        ("a.jsonl", b'{\n"n": 1}\n', r"a\.jsonl:1 is not JSON.*name it \.json"),
        ("a.jsonl", b'{"n": 1}\n{"n": "\xff"}\n', r"a\.jsonl:2 is not UTF-8"),
        ("a.jsonl", b'{"n": "a\x00b"}\n', r"a\.jsonl:1 is not JSON.*control character"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}\n", r"a\.jsonl:1 is not JSON"),
        ("a.json", b'[\n{"n": 1},\n{"n": }\n]', r"a\.json:3 is not JSON"),
        ("a.json", b'{"n": 1}\n{"n": 2}\n{"n"\n', r"a\.json:3 is not JSON"),
        ("a.json", b'[{"n": 1}, 2]', r"a\.json: element 2 is int 2"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3 has 3 fields, the header has 2 \(a, b\)"),
        ("a.csv", b"a,b\n1\n", r"a\.csv:2 has 1 fields"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1 names a column twice"),
        ("a.csv", b'a,b\n1,2\n"never closed,2\n', r"a\.csv:3 is not CSV"),
        ("a.csv", b"a,b\n1,\xff\n", r"a\.csv, near line \d, is not UTF-8"),
        ("c.json.gz", b"not gzip", r"c\.json\.gz cannot be read as \.json"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


LINES = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize("text", [json.dumps(ROWS), json.dumps(ROWS, indent=2), LINES, "\ufeff" + json.dumps(ROWS)])
def test_json_arrays_lines_and_one_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.json") == [("a.json:1", ROWS[0]), ("a.json:2", ROWS[1])]
    (tmp_path / "b.json").write_text(json.dumps(ROWS[0], indent=1))
    assert read(tmp_path / "b.json") == [("b.json:1", ROWS[0])]


def test_csv_values_are_strings_and_lines_are_the_editors(tmp_path):
    big = "x" * 1_000_000
    text = f'\ufeffprompt,n\r\n"two\r\nlines, ""quoted""",1\r\n\r\n👋,{big}\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert read(tmp_path / "a.csv") == [
        ("a.csv:2", {"prompt": 'two\r\nlines, "quoted"', "n": "1"}),
        ("a.csv:5", {"prompt": "👋", "n": big}),
    ]
    (tmp_path / "b.tsv").write_text("prompt\tn\na,b\t2\n")
    assert read(tmp_path / "b.tsv") == [("b.tsv:2", {"prompt": "a,b", "n": "2"})]


def test_parquet_rows_over_several_batches(tmp_path):
    rows = [{"prompt": f"{i} é", "messages": [{"role": "user", "content": "x"}], "n": None} for i in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    assert read(tmp_path / "a.parquet") == [(f"a.parquet:{i + 1}", row) for i, row in enumerate(rows)]


def test_damaged_files_are_named(tmp_path):
    pq.write_table(pa.table({"n": ["x" * 50_000]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"n": "' + bytes(range(65, 90)) * 9 + b'"}')[:-9])
    for name in ("a.parquet", "b.jsonl.gz"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as \.(parquet|json)"):
            read(tmp_path / name)
    text = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"n": text}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet.*row 1, holds text that is not UTF-8"):
        read(tmp_path / "d.parquet")


def test_gzip(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n'))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress("n\né\n".encode()))
    assert read(tmp_path / "a.jsonl.gz") == [("a.jsonl.gz:1", {"n": 1})]
    assert read(tmp_path / "a.csv.gz") == [("a.csv.gz:2", {"n": "é"})]


def zst(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


def test_zstandard(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(zst(b'{"n": 1}\n') + zst(b'{"n": 2}\n'))  # frames, as `zstd` appends them
    (tmp_path / "a.csv.zst").write_bytes(zst("n\ne\u0301\n".encode()))
    (tmp_path / "a.json.zst").write_bytes(zst(b'[{"n": 3}]'))
    assert read(tmp_path / "a.jsonl.zst") == [("a.jsonl.zst:1", {"n": 1}), ("a.jsonl.zst:2", {"n": 2})]
    assert read(tmp_path / "a.csv.zst") == [("a.csv.zst:2", {"n": "e\u0301"})]
    assert read(tmp_path / "a.json.zst") == [("a.json.zst:1", {"n": 3})]
    (tmp_path / "cut.jsonl.zst").write_bytes(zst(b'{"n": "%s"}\n' % os.urandom(9999).hex().encode())[:-99])
    with pytest.raises(
        DataError, match=r"cut\.jsonl\.zst (cannot be read as \.jsonl|is not JSON)|cut\.jsonl\.zst:1 is not"
    ):
        read(tmp_path / "cut.jsonl.zst")
    (tmp_path / "no.jsonl.zst").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"no\.jsonl\.zst cannot be read as \.jsonl"):
        read(tmp_path / "no.jsonl.zst")
    monkeypatch.setattr(pa, "Codec", SimpleNamespace(is_available=lambda name: False))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"a\.jsonl\.zst is packed by Zstandard.*pip install zstandard.*zstd -d"):
        read(tmp_path / "a.jsonl.zst")


def test_tables(tmp_path):
    numpy_rows = [{"prompt": [{"role": "user", "content": "p"}], "n": 1}, {"prompt": [], "n": 2}]
    frame = pd.DataFrame({"prompt": [np.array(row["prompt"], dtype=object) for row in numpy_rows], "n": [1, 2]})
    expected = [("rows[0]", numpy_rows[0]), ("rows[1]", numpy_rows[1])]
    assert read(frame) == read(frame.to_records(index=False)) == expected
    assert read([*frame.to_dict("records")]) == read([row for _, row in frame.iterrows()]) == expected
    assert read(np.array(numpy_rows, dtype=object)) == read(pa.Table.from_pylist(numpy_rows)) == expected
    assert [type(row["n"]) for _, row in read(frame)] == [int, int]
    gaps = pd.DataFrame({"n": pd.array([1, None], dtype="Int64"), "x": [float("nan"), 2.0], "s": [None, "a"]})
    assert read(gaps) == [("rows[0]", {"n": 1, "x": None, "s": None}), ("rows[1]", {"n": None, "x": 2.0, "s": "a"})]
    assert open_source(frame).origin == "DataFrame of 2 rows"
    assert [row["n"] for _, row in read(frame.assign(split=["train", "test"]), split="test")] == [2]
    with pytest.raises(DataError, match="names a column twice: n, n"):
        read(pd.DataFrame([[1, 2]], columns=["n", "n"]))
    with pytest.raises(DataError, match=r"array of shape \(2, 2\).*records"):
        read(np.zeros((2, 2)))


def test_several_sources(tmp_path):
    one, two = jsonl(tmp_path / "x/a.jsonl", [{"n": 1}]), jsonl(tmp_path / "y/a.jsonl", [{"n": 2}])
    assert read([one, str(two)]) == [("x/a.jsonl:1", {"n": 1}), ("y/a.jsonl:1", {"n": 2})]
    assert read([tmp_path / "x", two]) == [("a.jsonl:1", {"n": 1}), ("a.jsonl:1", {"n": 2})]
    assert open_source([one, two]).origin.endswith("(2 files)")
    with pytest.raises(DataError, match="no file or folder"):
        read([one, tmp_path / "none.jsonl"])


def test_folders_and_globs_read_in_order_with_relative_names(tmp_path):
    jsonl(tmp_path / "d/b.jsonl", [{"n": 2}])
    jsonl(tmp_path / "d/a/z.jsonl", [{"n": 1}])
    jsonl(tmp_path / "d/.hidden.jsonl", [{"n": 0}])
    jsonl(tmp_path / "d/.cache/c.jsonl", [{"n": 0}])
    (tmp_path / "d/README.md").write_text("not data")
    expected = [("a/z.jsonl:1", {"n": 1}), ("b.jsonl:1", {"n": 2})]
    assert read(tmp_path / "d") == read(f"{tmp_path}/d/**/*.jsonl") == expected
    assert read(f"{tmp_path}/d/*.jsonl") == [("b.jsonl:1", {"n": 2})]
    assert open_source(tmp_path / "d").origin == f"{tmp_path}/d (2 files)"


def test_a_file_with_brackets_in_its_name_is_a_file(tmp_path):
    assert read(str(jsonl(tmp_path / "a[1].jsonl", [{"n": 1}]))) == [("a[1].jsonl:1", {"n": 1})]


def test_unclear_folders_and_patterns(tmp_path):
    def refused(source: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(source)

    refused(tmp_path, "holds no data file")
    jsonl(tmp_path / "a.jsonl", [{"n": 1}])
    (tmp_path / "b.csv").write_text("n\n1\n")
    refused(tmp_path, r"several kinds of data file \(\.csv, \.jsonl\).*glob")
    refused(f"{tmp_path}/*.parquet", "No file matches")
    (tmp_path / "c.txt").write_text("x")
    refused(tmp_path / "c.txt", r"c\.txt is not a kind of file")
    refused((tmp_path / "c.txt").rename(tmp_path / "c.parquet.gz"), r"c\.parquet\.gz is not a kind of file")
    refused("", "empty")
    refused("x" * 5000, r"cannot be looked at|no file or folder")
    refused(3, "given as int")


def test_lists_of_dicts():
    assert read(ROWS) == [("rows[0]", ROWS[0]), ("rows[1]", ROWS[1])]
    with pytest.raises(DataError, match=r"rows\[1\] is str 'x'; every row must be a dict"):
        read([{}, "x"])


def test_datasets(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    expected = [("dataset[0]", ROWS[0]), ("dataset[1]", ROWS[1])]
    assert read(data) == read(data.with_format("numpy")) == read(data.to_iterable_dataset()) == expected
    both = datasets.DatasetDict(train=data, test=data.select([1]))
    assert read(both)[0] == ("dataset train[0]", ROWS[0])
    assert read(both, split="test") == [("dataset test[0]", ROWS[1])]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read(both, split="dev")


def test_folders_written_by_datasets(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(test=data).save_to_disk(str(tmp_path / "dict"))
    assert read(tmp_path / "one") == [("one[0]", ROWS[0]), ("one[1]", ROWS[1])]
    assert read(tmp_path / "dict", split="test")[0] == ("dataset test[0]", ROWS[0])
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(DataError, match="could not be loaded"):
        read(tmp_path / "one")


def test_split_filters_local_rows(tmp_path):
    rows = [{"n": 1, "split": "train"}, {"n": 2, "split": "test"}, {"n": 3, "split": None}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert len(read(path)) == 3
    assert read(path, split="test") == [("a.jsonl:2", rows[1])]
    with pytest.raises(DataError, match=r"No row .* has 'dev' .*holds 'test', 'train', None"):
        read(path, split="dev")
    with pytest.raises(DataError, match=r"rows\[0\] has no column 'part' \(columns: n, split\)"):
        read(rows, split="test", columns={"split": "part"})


class Hub:
    """Stands in for `datasets.load_dataset`: keeps the call, gives rows or raises."""

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.calls = outcome, []  # type: ignore[var-annotated]

    def __call__(self, path: str, name: str | None = None, **options: Any) -> Any:
        self.calls.append((path, name, options))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stand_in = Hub(datasets.Dataset.from_list(ROWS))
    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    return stand_in


@pytest.mark.parametrize(
    ("name", "settings", "call"),
    [
        ("owner/name", {}, ("owner/name", None, {"split": "train", "revision": None})),
        ("owner/name", {"split": "test"}, ("owner/name", None, {"split": "test", "revision": None})),
        ("o/n-1.0:conf_a", {}, ("o/n-1.0", "conf_a", {"split": "train", "revision": None})),
        ("o/n@refs/pr/1", {}, ("o/n", None, {"split": "train", "revision": "refs/pr/1"})),
        ("o/n:c@abc", {}, ("o/n", "c", {"split": "train", "revision": "abc"})),
        ("o/data.json@main", {}, ("o/data.json", None, {"split": "train", "revision": "main"})),
    ],
)
def test_hub_names(hub, name, settings, call):
    split = settings.get("split", "train")
    assert read(name, **settings) == [(f"{call[0]} {split}[{i}]", row) for i, row in enumerate(ROWS)]
    assert hub.calls == [call]
    source = open_source(name, PreferenceConfig(**settings))
    assert source.split == split
    assert source.origin.startswith(f"Hub data set {call[0]}")


def test_what_is_on_disk_wins_over_a_hub_name(hub, tmp_path):
    jsonl(tmp_path / "owner/name/a.jsonl", [{"n": 1}])
    assert read("owner/name") == [("a.jsonl:1", {"n": 1})]
    assert hub.calls == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/train.jsonl", r"no file or folder 'data/train.jsonl' .*Hub was not tried.*data/train\.jsonl@main"),
        ("train.parquet", r"no file or folder .*Hub data set either \(owner/name"),
        ("squad", r"no file or folder .*Hub data set either"),
        ("/tmp/no/such/file.jsonl", r"no file or folder .*Hub data set either"),
        (Path("owner/name"), r"no file or folder .*not by a Path"),
    ],
)
def test_names_that_are_nothing_never_reach_the_hub(hub, name, message):
    with pytest.raises(DataError, match=message):
        read(name)
    assert hub.calls == []


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist\non the Hub"),
        ValueError("Unknown split \"train\". Should be one of ['test']."),
        ConnectionError("no network"),
    ],
)
def test_what_the_hub_refuses_names_both_readings(hub, error):
    hub.outcome = error
    with pytest.raises(DataError) as caught:
        read("o/n")
    said = str(caught.value)
    assert "no file or folder 'o/n'" in said
    assert "Hub data set, o/n, split train" in said
    assert " ".join(str(error).split()) in said
    assert "\n" not in said


def test_reading_files_does_not_import_datasets(tmp_path):
    import subprocess

    path = jsonl(tmp_path / "a.jsonl", ROWS)
    code = (
        "import sys, ebrm.data.load; from ebrm.data.sources import read_rows;"
        f"list(read_rows({str(path)!r})); print('datasets' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
