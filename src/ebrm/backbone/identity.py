"""Identity of a reward model: name, revision, fingerprint of its weights, and how it was run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ebrm.errors import BackboneError
from ebrm.utils.files import sha256_file, sha256_json

#: The attention implementation of a reward model that was read from a server, which does not say what it uses.
SERVER = "server"


@dataclass(frozen=True)
class BackboneIdentity:
    """Identity of a reward model: all that decides its outputs for given token ids.

    Attributes:
        name: the Hub name or folder it was loaded by.
        revision: the Hub commit, None for a folder.
        weights_fingerprint: SHA-256 over its weight files.
        architecture: class of the model.
        head_module: name of the reward head, as in the checkpoint.
        dtype: precision it ran in ("bfloat16", …).
        attention: attention implementation ("sdpa", …); "server" where it ran in a vLLM or SGLang server.
        layers: the blocks, counted from 1, whose hidden states were averaged into the embedding; () for none.
        base: an adapter's base model, if it was named otherwise than the adapter does; not compared, but found by.
    """

    name: str
    revision: str | None
    weights_fingerprint: str
    architecture: str
    head_module: str
    dtype: str
    attention: str
    layers: tuple[int, ...] = ()
    base: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The identity as JSON values; `layers` (a list) and `base` are left out where there are none."""
        values = asdict(self) | {"layers": list(self.layers)}
        return {name: value for name, value in values.items() if name not in ("layers", "base") or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneIdentity:
        """The identity of a `to_dict()`; BackboneError where a field other than `layers` and `base` is missing."""
        values = {"layers": (), "base": None, **values}
        missing = [f.name for f in fields(cls) if f.name not in values]
        if missing:
            raise BackboneError(
                f"The stored identity of the reward model lacks {', '.join(missing)} (it has "
                f"{', '.join(sorted(values))}). It was written by another version or damaged; make the features or the "
                "model again."
            )
        found = {f.name: values[f.name] for f in fields(cls)}
        return cls(**found | {"layers": tuple(found["layers"])})

    def mismatch(
        self, other: BackboneIdentity, *, ours: str = "here", theirs: str = "there", exact: bool = False
    ) -> str | None:
        """How two reward models differ (names do not count), naming both sides; None when they are the same.

        `exact` also compares dtype and attention implementation, which move rewards by rounding only.
        """
        names = ["weights_fingerprint", "head_module", "architecture", "layers"]
        names += ["dtype", "attention"] if exact else []
        mine, others = ({name: getattr(side, name) for name in names} for side in (self, other))
        unlike = [name for name in names if mine[name] != others[name]]
        if not unlike:
            return None
        parts = [f"{name} is {_short(mine[name])} {ours} and {_short(others[name])} {theirs}" for name in unlike]
        what = "the embedding" if unlike == ["layers"] else "the reward model"
        return f"{what} differs: {self._call()} {ours}, {other._call()} {theirs}; " + "; ".join(parts)

    def _call(self) -> str:
        return self.name + (f"@{self.revision[:12]}" if self.revision else "")


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 of the sorted list of (name, SHA-256) of weight files; an adapter's names begin with `adapter/`."""
    return sha256_json(sorted([name, sha256_file(path)] for name, path in files))


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    text = str(value)
    return text[:12] if len(text) == 64 else text
