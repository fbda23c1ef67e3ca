from __future__ import annotations

from benchmarks import reading
from benchmarks.growth import make_features
from benchmarks.reading import drop_from_cache, figures, plain_read


def test_a_plain_read_reads_every_byte_of_every_file(tmp_path, monkeypatch):
    seen = []

    monkeypatch.setattr(reading, "_BLOCK", 7)
    files = [tmp_path / name for name in ("a", "b")]
    for file, size in zip(files, (20, 7), strict=True):
        file.write_bytes(bytes(size))
    real = open

    class Watched:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def readinto(self, buffer):
            seen.append(self.file.readinto(buffer))
            return seen[-1]

    monkeypatch.setattr(reading, "open", lambda *a, **b: Watched(real(*a, **b)), raising=False)
    plain_read(files)
    assert seen == [7, 7, 6, 0, 7, 0]


def test_dropping_a_file_from_the_cache_keeps_what_is_in_it(tmp_path):
    (tmp_path / "a").write_bytes(b"kept")
    drop_from_cache([tmp_path / "a"])
    assert (tmp_path / "a").read_bytes() == b"kept"


def test_both_figures_are_of_all_rows(monkeypatch):
    monkeypatch.setattr(reading, "make_features", lambda folder, rows: make_features(folder, 5000, 16))
    asked = []
    original = reading.plain_read
    monkeypatch.setattr(reading, "plain_read", lambda files: asked.append(len(files)) or original(files))
    cached, disk = figures(quick=True)
    assert (cached.figure, disk.figure) == ("reading shards, cached", "reading shards, from disk")
    assert cached.required == disk.required == 0.8 and cached.rows == 32_768 and set(asked) == {2}
