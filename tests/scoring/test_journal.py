from __future__ import annotations

from pathlib import Path

import pytest

from ebrm.errors import DataError
from ebrm.scoring.files import Journal

JOB = {"input": "1", "model": "2"}
SHOWN = {"input": "a.jsonl", "token_budget": 100}


def begun(out: Path) -> Journal:
    journal = Journal(out, JOB, SHOWN)
    assert not journal.open(overwrite=False)
    journal.part(0, "jsonl").write_text("x")
    return journal


def finished(out: Path) -> Journal:
    journal = Journal(out, JOB)
    assert not journal.open(overwrite=False)
    journal.part(0, "jsonl").write_text("x")
    out.write_text("done")
    journal.finish({"rows": 1})
    return journal


def test_an_unfinished_job_goes_on_also_with_overwrite(tmp_path):
    out = tmp_path / "o.jsonl"
    journal = Journal(out, JOB)
    journal.open(overwrite=False)
    journal.part(0, "jsonl").write_text("x")
    for overwrite in (False, True):
        again = Journal(out, JOB)
        assert not again.open(overwrite)
        assert again.part(0, "jsonl").exists()


def test_a_kill_between_output_and_record_is_mended(tmp_path):
    out = tmp_path / "o.jsonl"
    journal = Journal(out, JOB)
    journal.open(overwrite=False)
    journal.part(0, "jsonl").write_text("x")
    out.write_text("complete")
    again = Journal(out, JOB)
    assert not again.open(overwrite=False)
    assert again.part(0, "jsonl").exists()


def test_what_is_not_ours_is_left_alone(tmp_path):
    out = tmp_path / "o.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match="exists already; it was left.*`overwrite=true`"):
        Journal(out, JOB).open(overwrite=False)
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]
    assert not Journal(out, JOB).open(overwrite=True)
    assert out.read_text() == "mine"  # until the new one is complete


def test_an_output_changed_since_is_not_taken_for_ours(tmp_path):
    out = tmp_path / "o.jsonl"
    finished(out)
    out.write_text("DONE")  # the same length
    with pytest.raises(DataError, match="was changed"):
        Journal(out, JOB).open(overwrite=False)
    assert out.read_text() == "DONE"


def test_a_finished_output_that_was_removed_is_made_again(tmp_path):
    out = tmp_path / "o.jsonl"
    finished(out)
    out.unlink()
    assert not Journal(out, JOB).open(overwrite=False)


def test_overwriting_a_finished_job_starts_anew(tmp_path):
    out = tmp_path / "o.jsonl"
    journal = finished(out)
    assert not Journal(out, JOB).open(overwrite=True)
    assert not journal.part(0, "jsonl").exists()


@pytest.mark.parametrize(
    ("job", "shown", "words"),
    [
        ({"input": "3"}, {}, r"\(the contents of the rows changed\)"),
        ({"input": "3"}, {"input": "b.jsonl"}, r'`input` was "a.jsonl" and is "b.jsonl"'),
        ({"settings": "3"}, {"token_budget": 50}, "`token_budget` was 100 and is 50"),
        ({"model": "3"}, {}, r"\(the model changed\)"),
    ],
)
def test_unfinished_work_of_another_job_is_named(tmp_path, job, shown, words):
    out = tmp_path / "o.jsonl"
    first, other = begun(out), Journal(out, JOB | job, SHOWN | shown)
    for overwrite in (False, True):
        with pytest.raises(DataError, match=words + ".*`restart=true`"):
            other.open(overwrite)
    assert first.part(0, "jsonl").exists()
    assert not other.open(overwrite=False, restart=True)
    assert not first.part(0, "jsonl").exists()


def test_a_job_without_a_part_leaves_nothing_and_stops_no_other(tmp_path):
    out = tmp_path / "o.jsonl"
    Journal(out, JOB).open(overwrite=False)  # killed
    other = Journal(out, {**JOB, "model": "3"})
    assert not other.open(overwrite=False)
    with pytest.raises(KeyError), other.keeping():
        raise KeyError
    assert not any(tmp_path.iterdir())


def test_a_restart_leaves_a_finished_output_alone(tmp_path):
    out = tmp_path / "o.jsonl"
    finished(out)
    assert Journal(out, JOB).open(overwrite=False, restart=True)
    with pytest.raises(DataError, match="exists already"):
        Journal(out, {**JOB, "model": "3"}).open(overwrite=False, restart=True)
    assert out.read_text() == "done" and [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


def test_a_torn_record_is_not_trusted(tmp_path):
    out = tmp_path / "o.jsonl"
    (begun(out).folder / "job.json").write_text("{")
    with pytest.raises(DataError, match="record cannot be read.*`restart=true`"):
        Journal(out, JOB).open(overwrite=False)


def test_a_summary_with_a_changed_number_is_not_given_back(tmp_path):
    out = tmp_path / "o.jsonl"
    journal = finished(out)
    journal.done.write_text(journal.done.read_text().replace('"rows": 1', '"rows": 2'))
    with pytest.raises(DataError, match="exists already"):
        Journal(out, JOB).open(overwrite=False)


def test_a_folder_is_no_output(tmp_path):
    (tmp_path / "o.jsonl").mkdir()
    with pytest.raises(DataError, match="folder"):
        Journal(tmp_path / "o.jsonl", JOB).open(overwrite=True)
