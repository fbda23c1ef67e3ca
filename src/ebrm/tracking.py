"""A fit's curves in an experiment tracker (TensorBoard, Weights & Biases, trackio), through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebrm.errors import ConfigError
from ebrm.heads import Epoch
from ebrm.utils.extras import install_hint

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "wandb", "trackio")


@contextmanager
def tracked(
    trackers: Sequence[str | GeneralTracker], folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Epoch], None]]:
    """Open trackers and yield what logs an epoch to them; they are closed at the end, also after an error.

    Args:
        trackers: names out of `TRACKERS`, or accelerate's own tracker objects.
        folder: where trackers that write files (TensorBoard) put them.
        settings: stage to its settings, logged once; nested values are flattened to `stage.name`.

    Raises:
        ConfigError: an unknown name, or a tracker whose package is not installed.
    """
    for name in trackers:
        if isinstance(name, str) and name not in TRACKERS:
            raise ConfigError(f"There is no tracker {name!r}; choose among {', '.join(TRACKERS)}.")
        if isinstance(name, str) and find_spec(name) is None:
            raise ConfigError(
                f"The tracker {name} is not installed: pip install {name}, or "
                f"for all of them {install_hint('trackers')}."
            )
    if not trackers:
        yield lambda epoch: None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, log_with=list(trackers), project_dir=folder)
    flat = {f"{stage}.{key}": str(value) for stage, values in settings.items() for key, value in values.items()}
    accelerator.init_trackers("ebrm", config=flat)

    def log(epoch: Epoch) -> None:
        values = {key: value for key, value in epoch.to_dict().items() if key != "epoch" and value is not None}
        accelerator.log(values, step=epoch.epoch)

    try:
        yield log
    finally:
        accelerator.end_training()
