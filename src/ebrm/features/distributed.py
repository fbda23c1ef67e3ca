"""Rank and world size under `accelerate launch`; barriers that share errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ebrm.errors import EBRMError, FeaturesError
from ebrm.utils.progress_bar import progress


class World:
    """The processes that share the work (`rank` of `size`, 0 the main one); this one alone where none were launched."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched > 1:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
            self.rank, self.size = state.process_index, state.num_processes
            if self.size != launched:
                raise FeaturesError(
                    f"By the environment {launched} processes were launched (WORLD_SIZE), but they cannot "
                    f"reach each other ({self.size} found). Start them with `accelerate launch`, or unset "
                    "WORLD_SIZE to run alone."
                )

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which plans and finishes the folder."""
        return self.rank == 0

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with every amount done; only the main process shows it."""
        if not self.main:
            yield lambda amount: None
            return
        with progress(what, total=total, unit=unit) as bar:
            yield bar.advance

    def barrier(self, error: EBRMError | None = None) -> None:
        """Wait for all processes; if any of them brings an error, every one of them raises it."""
        if self.size > 1:
            from accelerate.utils import gather_object

            messages = gather_object([None if error is None else str(error)])
            if error is None:
                for rank, message in enumerate(messages):
                    if message is not None:
                        raise FeaturesError(f"Process {rank} of {self.size} stopped: {message}")
        if error is not None:
            raise error

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """All processes leave this block together, all with the error if one of them has one."""
        error: EBRMError | None = None
        try:
            yield
        except EBRMError as caught:
            error = caught
        self.barrier(error)
