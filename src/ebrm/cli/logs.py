"""Log levels and the chatter of the libraries underneath."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ebrm.cli.console import write

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # A forked data loader after tokenizing in threads would print a page of advice.
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def logging_to_stderr(verbose: bool) -> Iterator[None]:
    """Send `ebrm` logs to stderr while the body runs, and keep other libraries quiet unless `verbose`."""
    root, ours = logging.getLogger(), logging.getLogger("ebrm")
    handler = _Stderr()
    levels = root.level, ours.level, ours.propagate
    set_here = {} if verbose else {k: v for k, v in _ENVIRONMENT.items() if k not in os.environ}
    os.environ.update(set_here)
    root.addHandler(handler)
    set_levels(quiet=False, verbose=verbose)
    try:
        with warnings.catch_warnings():
            if not verbose and not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        for key in set_here:
            os.environ.pop(key, None)


def set_levels(quiet: bool, verbose: bool) -> None:
    """Ours: INFO, WARNING under --quiet, DEBUG under --verbose. Others: ERROR, INFO under --verbose."""
    logging.getLogger("ebrm").setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    logging.getLogger().setLevel(logging.INFO if verbose else logging.ERROR)
    for name in ("transformers", "datasets", "huggingface_hub", "accelerate", "peft"):
        if name in sys.modules and not verbose:
            logging.getLogger(name).setLevel(logging.ERROR)


class _Stderr(logging.Handler):
    """Log records as paragraphs on whatever stderr is at that moment.

    While a progress bar is shown that is rich's stand-in, which writes above the bar; a handler with a console of its
    own would write across it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            write(sys.stderr, text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}")
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)
