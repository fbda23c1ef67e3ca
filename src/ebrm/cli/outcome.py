"""What a fit leaves in its folder: the model with its card, the numbers measured on held-out pairs, the report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ebrm.evaluation.fitted import measure
from ebrm.fitting import Fitted
from ebrm.report import write_report
from ebrm.utils.files import write_json

logger = logging.getLogger(__name__)


def write_outcome(fitted: Fitted, folder: Path) -> dict[str, Any]:
    """Write model, `metrics.json` and `report.html` into `folder`; returns the metrics.

    Where nothing was held out there is nothing to report on: the model is written with a warning and without a page.
    """
    record = fitted.model.record
    read = fitted.preferences.report if fitted.preferences is not None else None
    name = record.backbone.get("name") if record.backbone else None
    origin = read.origin if read is not None else str(fitted.features.path or "features")
    notes = [f"Data: {read.summary()}."] if read is not None else []
    measured = measure(fitted, title=f"{name or 'Imported features'}, refined on {origin}", notes=notes)
    if measured.report is not None:
        # What the card shows; where all test pairs share one prompt there are no intervals to show.
        record.metrics.update(measured.metrics)
    fitted.model.save_pretrained(folder)
    write_json(folder / "metrics.json", measured.metrics)
    if measured.report is None:
        logger.warning("No pairs were held out to measure the result on, so there is no report; see --test-fraction.")
    else:
        write_report(folder / "report.html", measured.report)
    return measured.metrics
