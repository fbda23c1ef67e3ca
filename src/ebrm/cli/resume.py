"""The journal of a long `ebrm score`: finished parts beside the output, so that a killed run goes on.

For ``scored.jsonl`` the folder ``.scored.jsonl.progress`` holds ``job.json`` (what is scored with what) and one file
a finished chunk of rows. Chunks have fixed borders, so a run that was stopped ends with the same bytes as one that
was not. When the output is complete the parts go and ``job.json`` keeps its checksum: the same command run again
finds the work done, and an output that was changed since is not taken for ours.
"""

from __future__ import annotations

import glob
import shutil
from pathlib import Path
from typing import Any

from ebrm.errors import DataError
from ebrm.utils.files import read_json, sha256_file, write_json


class Journal:
    """Which chunks of a job are finished, and where they lie."""

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self.job = out, job
        self.folder = out.with_name(f".{out.name}.progress")
        self.record: dict[str, Any] = {}

    def open(self, overwrite: bool) -> bool:
        """Start or take up the job; True if its output is there already, complete and unchanged.

        Raises:
            DataError: an output that is not this job's, or unfinished work of another job, without `overwrite`.
        """
        stored = self._stored()
        finished = stored.get("finished")
        same = stored.get("job") == self.job
        if same and finished and not overwrite and self._is_whole(finished):
            self.record = stored
            return True
        if self.out.is_dir():
            raise DataError(f"--out {self.out} is a folder. Give the name of a file.")
        if not overwrite:
            if self.out.exists() and (finished or not same):
                why = "was changed since ebrm wrote it" if same else "exists already and holds something else"
                raise DataError(
                    f"--out {self.out} {why}; it was left as it is. Choose another name, or --overwrite to replace it."
                )
            if stored and not same and not finished:
                raise DataError(
                    f"{self.folder} holds unfinished work of another command ({self._difference(stored)}). Run that "
                    "command again to finish it, or give --overwrite to discard it and start anew."
                )
        if not same or finished:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "job.json", {"job": self.job})
        return False

    def part(self, number: int, ending: str) -> Path:
        """Where chunk `number` goes."""
        return self.folder / f"{number:08d}.{ending}"

    def finish(self, summary: dict[str, Any]) -> None:
        """Record the complete output, then let the parts go."""
        finished = {"bytes": self.out.stat().st_size, "sha256": sha256_file(self.out)}
        self.record = {"job": self.job, "finished": finished, "summary": summary}
        write_json(self.folder / "job.json", self.record)
        leftovers = self.out.parent.glob(f".{glob.escape(self.out.name)}.*.partial")  # of runs killed while joining
        for path in [*self.folder.iterdir(), *leftovers]:
            if path.name != "job.json":
                path.unlink()

    def _stored(self) -> dict[str, Any]:
        try:
            stored = read_json(self.folder / "job.json")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError:
            return {"job": None}
        return stored if isinstance(stored, dict) else {"job": None}

    def _is_whole(self, finished: dict[str, Any]) -> bool:
        return (
            self.out.is_file()
            and self.out.stat().st_size == finished.get("bytes")
            and sha256_file(self.out) == finished.get("sha256")
        )

    def _difference(self, stored: dict[str, Any]) -> str:
        theirs = stored.get("job") or {}
        names = [name for name in self.job if theirs.get(name) != self.job[name]]
        return "another " + ", ".join(names) if names else "unreadable"
