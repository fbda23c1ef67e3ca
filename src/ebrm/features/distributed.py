"""Which of the processes of one `accelerate launch` this is, and how they agree; alone when not launched so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ebrm.errors import EBRMError, FeaturesError
from ebrm.utils.progress_bar import progress


class Ranks:
    """This process's number among those that share the work.

    Attributes:
        index: 0 for the main process.
        count: Number of processes.
    """

    def __init__(self) -> None:
        self.index, self.count = 0, 1
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched > 1:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
            self.index, self.count = state.process_index, state.num_processes
            if self.count != launched:
                raise FeaturesError(
                    f"The environment says that {launched} processes were launched (WORLD_SIZE), but they cannot "
                    f"reach each other ({self.count} found). Start them with `accelerate launch`, or unset "
                    "WORLD_SIZE to run alone."
                )

    @property
    def main(self) -> bool:
        """Whether this process plans and finishes the folder."""
        return self.index == 0

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Give what to call with every amount done; shown by the main process only."""
        if not self.main:
            yield lambda amount: None
            return
        with progress(what, total=total, unit=unit) as bar:
            yield bar.advance

    def agree(self, error: EBRMError | None = None) -> None:
        """Wait for all processes; if any of them brings an error, every one of them raises it.

        Raises:
            EBRMError: This process's error, or another's.
        """
        if self.count > 1:
            from accelerate.utils import gather_object

            said = gather_object([None if error is None else str(error)])
            if error is None:
                for index, text in enumerate(said):
                    if text is not None:
                        raise FeaturesError(f"Process {index} of {self.count} stopped: {text}")
        if error is not None:
            raise error
