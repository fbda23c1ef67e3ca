"""Write a model for those who use it through transformers: with its base RM's weights, or referring to them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ebrm.backbone import quiet
from ebrm.errors import DataError
from ebrm.hub import write_model
from ebrm.integrations.tokenizer import make_tokenizer
from ebrm.integrations.transformers import EBRMForSequenceClassification
from ebrm.model import EnergyRewardModel


def export(model: EnergyRewardModel, out: str | Path, standalone: bool = False) -> Path:
    """Write a folder that `AutoModelForSequenceClassification.from_pretrained` loads after `import ebrm`.

    Both kinds hold the energy (`energy.safetensors`), the configuration, a model card, and a tokenizer whose chat
    template writes texts as `ebrm.data.text.tokenize` does, start and end tokens included.

    Args:
        model: a fitted model; its base RM is loaded.
        out: the folder, which must not exist yet or be empty. It appears complete or not at all.
        standalone: also write the base RM's weights. Otherwise the folder refers to them by name, revision and
            fingerprint, and they have to be where they were when it is loaded.

    Raises:
        DataError: something is at `out`.
        ModelError: fitted on features made elsewhere; a tokenizer that cannot write such texts; for a standalone
            folder, a base RM that transformers cannot build from a configuration.
    """
    out = Path(out)
    refuse_used(out)
    backbone = model.backbone
    tokenizer = make_tokenizer(backbone.text_rule, backbone.tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if standalone:
            wrapped = EBRMForSequenceClassification.wrap(model)
            with quiet():
                wrapped.save_pretrained(partial)
        else:
            record = model.record.to_dict() | {"trust": model.density_model.trust.to_dict()}
            write_model(partial, record, model.density_model.state_dict(), own_tokenizer=True)
        tokenizer.save_pretrained(partial)
        for path in partial.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(partial, out)  # over an empty folder, or nothing
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def refuse_used(out: Path) -> None:
    """Refuse a place where something is.

    Raises:
        DataError: says what.
    """
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"--out {out} exists already and is not empty; it was left as it is. Choose another name.")
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; it was left as it is. Name a folder that does not exist yet.")
